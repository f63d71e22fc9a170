//! The table of rules and their tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::{Result, ensure};

use super::{
    Rules, Test,
    rule::{Number, Rule},
};

/// What stands above the tables.
const PREFACE: &str = "# Rules and their tests

What a kube-proxy replacement must do is a numbered list of rules, cited as `behaviour.md SECTION.RULE` throughout the sources.
Here is which tests cite which rule. Written by `cargo xtask rules`, checked by `cargo xtask test`: don't edit.
";

/// Every rule with the tests that cite it.
#[derive(Debug)]
pub(super) struct Document {
    rules: Rules,
    /// Names of tests by file, for each rule
    tests: BTreeMap<Number, BTreeMap<String, BTreeSet<String>>>,
}

impl Document {
    /// Sorts tests by what they cite.
    ///
    /// # Errors
    /// If a test cites a rule that isn't there, of a section that is.
    pub(super) fn new(rules: Rules, tests: Vec<Test>) -> Result<Self> {
        let mut by_rule: BTreeMap<_, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
        for test in tests {
            for number in test.cites {
                let exists = rules.iter().any(|rule| rule.number == number);
                ensure!(
                    exists || !rules.cover(number),
                    "{}: {} cites rule {number}, which does not exist",
                    test.file,
                    test.name
                );
                let files = by_rule.entry(number).or_default();
                files.entry(test.file.clone()).or_default().insert(test.name.clone());
            }
        }
        Ok(Self { rules, tests: by_rule })
    }

    /// The rules that no test cites, though one could, each as `3.6 title`.
    pub(super) fn missing(&self) -> Vec<String> {
        let is_missing = |rule: &&Rule| rule.not_applicable.is_none() && !self.tests.contains_key(&rule.number);
        let rules = self.rules.iter().filter(is_missing);
        rules.map(|rule| format!("{} {}", rule.number, rule.title)).collect()
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFACE)?;
        for section in &self.rules.0 {
            write!(
                f,
                "\n## {}\n\n| rule | what | tests |\n|---|---|---|\n",
                section.heading
            )?;
            for rule in &section.rules {
                let mut cells: Vec<String> = Vec::new();
                if let Some(reason) = &rule.not_applicable {
                    cells.push(format!("not applicable: {reason}"));
                }
                for (file, names) in self.tests.get(&rule.number).into_iter().flatten() {
                    cells.extend(names.iter().map(|name| format!("`{file}`: `{name}`")));
                }
                if cells.is_empty() {
                    cells.push("**none**".to_owned());
                }
                writeln!(f, "| {} | {} | {} |", rule.number, rule.title, cells.join("<br>"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, cites: &[Number]) -> Test {
        Test {
            file: "a.rs".to_owned(),
            name: name.to_owned(),
            cites: cites.to_vec(),
        }
    }

    fn rules() -> Rules {
        let rules = "# 1 One\n1.1 First.\n1.2 Second. | internal\n1.3 Third.\n";
        rules.parse().expect("rules")
    }

    #[test]
    fn a_row_lists_the_tests_of_a_rule() {
        let tests = vec![test("b", &[Number(1, 1)]), test("a", &[Number(1, 1), Number(9, 9)])];
        let document = Document::new(rules(), tests).expect("a document");
        assert_eq!(document.missing(), ["1.3 Third."]);
        let (_, table) = document
            .to_string()
            .split_once("|---|---|---|\n")
            .map(own)
            .expect("a table");
        assert_eq!(
            table,
            "| 1.1 | First. | `a.rs`: `a`<br>`a.rs`: `b` |\n| 1.2 | Second. | not applicable: internal |\n\
             | 1.3 | Third. | **none** |\n"
        );
    }

    fn own((one, other): (&str, &str)) -> (String, String) {
        (one.to_owned(), other.to_owned())
    }

    #[test]
    fn a_rule_that_does_not_exist_is_an_error() {
        let error = Document::new(rules(), vec![test("a", &[Number(1, 4)])]).expect_err("no such rule");
        assert_eq!(error.to_string(), "a.rs: a cites rule 1.4, which does not exist");
    }
}
