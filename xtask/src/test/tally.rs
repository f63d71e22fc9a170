//! What passed, failed and was skipped.

use std::fmt;

/// A count of tests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Signed: a test is heard to skip before the harness counts it as passed
    passed: i32,
    failed: usize,
    skipped: usize,
    /// Names of failed tests
    failures: Vec<String>,
    /// `name: reason` of skipped tests
    skips: Vec<String>,
}

impl Tally {
    /// Counts a test that passed.
    pub(super) fn pass(&mut self) {
        self.passed += 1;
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

    /// Counts what a line of the tests' output says: `test NAME ... FAILED`,
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`, and
    /// `SKIPPED NAME: REASON` of a test that the harness takes for passed.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(test_and_reason) = line.strip_prefix("SKIPPED ") {
            self.passed -= 1;
            self.skip(test_and_reason);
        }
        let Some(text) = line.strip_prefix("test ") else { return };
        if let Some(name) = text.strip_suffix(" ... FAILED") {
            self.failures.push(name.to_owned());
        }
        let Some((_, counts)) = text.strip_prefix("result: ").and_then(|text| text.split_once(". ")) else {
            return;
        };
        for count in counts.split("; ") {
            let (number, what) = count.split_once(' ').unwrap_or_default();
            let Ok(number) = number.parse::<u16>() else { continue };
            match what {
                "passed" => self.passed += i32::from(number),
                "failed" => self.failed += usize::from(number),
                "ignored" => self.skipped += usize::from(number),
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

    /// Whether nothing was counted.
    pub(super) const fn is_empty(&self) -> bool {
        self.passed == 0 && self.failed == 0 && self.skipped == 0
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
        assert!(tally.is_empty());
        for line in [
            "running 5 tests",
            "SKIPPED lab::pods: not root",
            "test model::tests::a ... ok",
            "test model::tests::b ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
            "test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        ] {
            tally.read(line);
        }
        assert_eq!(
            tally.to_string(),
            "SKIPPED lab::pods: not root\nFAILED model::tests::b\n6 passed, 1 failed, 2 skipped"
        );
        assert!(!tally.is_success() && !tally.is_empty());
    }

    #[test]
    fn checks_and_tests_add_up() {
        let mut tally = Tally::default();
        tally.pass();
        tally.pass();
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
