//! What passed, failed and was skipped.

use std::fmt;

/// A count of tests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Names of failed tests
    failures: Vec<String>,
    /// `name: reason` of skipped tests
    skips: Vec<String>,
}

impl Tally {
    /// Counts tests that passed.
    pub(super) fn pass(&mut self, count: usize) {
        self.passed += count;
    }

    /// Counts a test that failed.
    pub(super) fn fail(&mut self, name: &str) {
        self.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// Counts a test that can't run here, given as `name: reason`.
    pub(super) fn skip(&mut self, test_and_reason: &str) {
        self.skipped += 1;
        self.skips.push(test_and_reason.to_owned());
    }

    /// Counts a test as skipped that has been counted as passed.
    pub(super) fn skip_passed(&mut self, test_and_reason: &str) {
        self.passed = self.passed.saturating_sub(1);
        self.skip(test_and_reason);
    }

    /// Counts what a line of the test harness's output says: `test NAME ... FAILED`, and
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
    pub(super) fn read(&mut self, line: &str) {
        let Some(text) = line.strip_prefix("test ") else { return };
        if let Some(name) = text.strip_suffix(" ... FAILED") {
            self.failures.push(name.to_owned());
        }
        let Some((_, counts)) = text.strip_prefix("result: ").and_then(|text| text.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            let (number, what) = count.split_once(' ').unwrap_or_default();
            let Ok(number) = number.parse::<usize>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => (),
            }
        }
    }

    /// Adds another tally.
    pub(super) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// Whether nothing failed.
    pub(super) const fn is_success(&self) -> bool {
        self.failed == 0
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for skip in &self.skips {
            writeln!(f, "SKIPPED {skip}")?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_is_understood() {
        let mut tally = Tally::default();
        for line in [
            "running 5 tests",
            "test model::tests::a ... ok",
            "test model::tests::b ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.read(line);
        }
        tally.skip_passed("lab::pods: not root");
        assert_eq!(
            tally.to_string(),
            "SKIPPED lab::pods: not root\nFAILED model::tests::b\n6 passed, 1 failed, 2 skipped"
        );
        assert!(!tally.is_success());
    }

    #[test]
    fn checks_and_tests_add_up() {
        let mut tally = Tally::default();
        tally.pass(2);
        let mut other = Tally::default();
        other.skip("clippy: not installed");
        tally.add(other);
        assert!(tally.is_success());
        tally.fail("rustfmt");
        assert_eq!(
            tally.to_string(),
            "SKIPPED clippy: not installed\nFAILED rustfmt\n2 passed, 1 failed, 1 skipped"
        );
    }
}
