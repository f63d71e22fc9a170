//! The rules, by number.

use std::{fmt, str::FromStr};

use anyhow::{Context as _, Result, ensure};

/// One line a rule: its number, a title, and, after a bar, why no test can cite it; headings of sections start with `#`.
const LIST: &str = include_str!("rules.txt");

/// Number of a rule: section and place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(pub(super) u8, pub(super) u8);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl FromStr for Number {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (section, place) = text.split_once('.').context("a rule's number is SECTION.PLACE")?;
        Ok(Self(section.parse()?, place.parse()?))
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Its number
    pub(super) number: Number,
    /// What it is about
    pub(super) title: String,
    /// Why nothing that this proxy does can show whether it follows the rule, where that is so
    pub(super) not_applicable: Option<String>,
}

/// A section and its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// Number and name
    pub(super) heading: String,
    /// Its rules in order
    pub(super) rules: Vec<Rule>,
}

/// All rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rules(pub(super) Vec<Section>);

impl Rules {
    /// The rules that tests are to cite.
    ///
    /// # Panics
    /// If the list is broken, which a test rules out.
    pub(super) fn known() -> Self {
        LIST.parse().expect("rules.txt")
    }

    /// Every rule in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter().flat_map(|section| &section.rules)
    }

    /// Whether a number belongs to a section of these rules.
    pub(super) fn cover(&self, number: Number) -> bool {
        self.iter().any(|rule| rule.number.0 == number.0)
    }
}

impl FromStr for Rules {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut sections: Vec<Section> = Vec::new();
        let mut last = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(heading) = line.strip_prefix("# ") {
                sections.push(Section {
                    heading: heading.to_owned(),
                    rules: Vec::new(),
                });
                continue;
            }
            let rule = rule(line).with_context(|| format!("no rule: {line:?}"))?;
            ensure!(last < Some(rule.number), "out of order: {line:?}");
            last = Some(rule.number);
            let section = sections.last_mut().context("a rule before any heading")?;
            section.rules.push(rule);
        }
        Ok(Self(sections))
    }
}

fn rule(line: &str) -> Result<Rule> {
    let (number, text) = line.split_once(' ').context("a number and a title")?;
    let (title, not_applicable) = match text.split_once(" | ") {
        Some((title, reason)) => (title, Some(reason.to_owned())),
        None => (text, None),
    };
    Ok(Rule {
        number: number.parse()?,
        title: title.to_owned(),
        not_applicable,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole() {
        for section in Rules::known().0 {
            for (place, rule) in (1..).zip(&section.rules) {
                assert_eq!(rule.number.1, place, "{}", section.heading);
                assert!(section.heading.starts_with(&rule.number.0.to_string()));
            }
        }
    }

    #[test]
    fn lines_have_number_title_and_perhaps_a_reason() {
        let rules: Rules = "# 2 Two\n2.1 One.\n2.10 Ten. | why\n".parse().expect("rules");
        let all: Vec<_> = rules.iter().collect();
        assert_eq!(all[0].number, Number(2, 1));
        assert_eq!(
            (all[0].title.as_str(), all[0].not_applicable.as_deref()),
            ("One.", None)
        );
        assert_eq!(
            (all[1].title.as_str(), all[1].not_applicable.as_deref()),
            ("Ten.", Some("why"))
        );
        assert!(rules.cover(Number(2, 9)) && !rules.cover(Number(1, 1)));
    }

    #[test]
    fn broken_lists_are_refused() {
        for text in [
            "2.1 One",
            "# 2\n2.1",
            "# 2\n2.x One",
            "# 2\n2.2 b\n2.1 a",
            "# 2\n2.1 a\n2.1 a",
        ] {
            assert!(text.parse::<Rules>().is_err(), "{text}");
        }
    }
}
