//! How a test says which rules it is about: `rule_3_6_...` in its name, `behaviour.md 3.6, 3.8` or `(3.6, 3.8)` in a
//! comment.

use super::rule::Number;

/// The rules that a test's name cites: `rule_3_8_and_rule_5_6_...` cites two.
pub(super) fn in_name(name: &str) -> Vec<Number> {
    let cited = name.split("rule_").skip(1).filter_map(|text| {
        let mut parts = text.split('_');
        Some(Number(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    });
    cited.collect()
}

/// The rules that a comment cites.
pub(super) fn in_comment(text: &str) -> Vec<Number> {
    let mut cited = Vec::new();
    for (_, rest) in text
        .match_indices("behaviour.md ")
        .map(|(at, mark)| text.split_at(at + mark.len()))
    {
        cited.extend(numbers(rest).0);
    }
    for (_, rest) in text.match_indices('(').map(|(at, mark)| text.split_at(at + mark.len())) {
        let (numbers, rest) = numbers(rest);
        if rest.starts_with(')') {
            cited.extend(numbers);
        }
    }
    cited
}

/// The list of numbers that a text starts with, and the text after it.
fn numbers(text: &str) -> (Vec<Number>, &str) {
    let mut found = Vec::new();
    let (mut rest, mut next) = (text, Some(text));
    while let Some((number, after)) = next.and_then(number) {
        found.push(number);
        rest = after;
        next = [", ", " and ", ", and "].iter().find_map(|between| {
            let next = rest.strip_prefix(between)?;
            next.starts_with(|first: char| first.is_ascii_digit()).then_some(next)
        });
    }
    (found, rest)
}

/// The number that a text starts with, and the text after it.
fn number(text: &str) -> Option<(Number, &str)> {
    let is_part = |character: char| character.is_ascii_digit() || character == '.';
    let end = text.find(|character| !is_part(character)).unwrap_or(text.len());
    let digits = text[..end].trim_end_matches('.');
    Some((digits.parse().ok()?, &text[digits.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cite_one_rule_or_several() {
        assert_eq!(in_name("rule_3_10_ranges"), [Number(3, 10)]);
        assert_eq!(in_name("rule_3_8"), [Number(3, 8)]);
        assert_eq!(in_name("rule_3_8_and_rule_5_6_x"), [Number(3, 8), Number(5, 6)]);
        assert_eq!(in_name("the_rule_of_3_6"), []);
        assert_eq!(in_name("rule_3rd_6"), []);
    }

    #[test]
    fn comments_cite_after_the_files_name() {
        assert_eq!(
            in_comment("behaviour.md 3.4, 3.6, 3.8: a port"),
            [Number(3, 4), Number(3, 6), Number(3, 8)]
        );
        assert_eq!(in_comment("As behaviour.md 1.1 and 1.2."), [Number(1, 1), Number(1, 2)]);
        assert_eq!(
            in_comment("behaviour.md 4.6.\nbehaviour.md 5.6 ii"),
            [Number(4, 6), Number(5, 6)]
        );
        assert_eq!(in_comment("behaviour.md 4, 5 and others"), []);
    }

    #[test]
    fn comments_cite_between_parentheses() {
        assert_eq!(
            in_comment("drain (2.6, 2.7), and (5.2)"),
            [Number(2, 6), Number(2, 7), Number(5, 2)]
        );
        assert_eq!(in_comment("(RFC 9260, 3.1) (3.1 seconds) (3.3.2) (42) ()"), []);
        assert_eq!(in_comment("(behaviour.md 5.2)"), [Number(5, 2)]);
    }
}
