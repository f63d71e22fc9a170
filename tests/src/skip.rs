//! Tests that can't run here say so, and are counted as skipped, never as passed.

use std::io::{self, Write as _};

/// Ends the test that it stands in: it can't run here for this reason (formatted as by `format!`).
///
/// `cargo xtask test` counts it as skipped and prints the reason.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        fn here() {}
        return ::core::convert::From::from($crate::skip::report(::core::any::type_name_of_val(&here), &format!($($reason)+)));
    }};
}

/// A test was skipped: what [`skip!`] makes a test return, whether it returns nothing or a `Result`.
#[derive(Clone, Copy, Debug)]
pub struct Skipped;

impl From<Skipped> for () {
    fn from(_: Skipped) -> Self {}
}

impl<E> From<Skipped> for Result<(), E> {
    fn from(_: Skipped) -> Self {
        Ok(())
    }
}

/// Says that a test is skipped, in a line of its own.
///
/// `test` is the path of a function within the test, as [`std::any::type_name_of_val`] gives it.
///
/// # Panics
/// Standard output is closed: the test would be counted as passed.
pub fn report(test: &str, reason: &str) -> Skipped {
    // Not `println!`: the harness keeps what that prints in a test that passes.
    writeln!(io::stdout(), "\nSKIPPED {}", line(test, reason)).expect("standard output is closed");
    Skipped
}

/// `test: reason` in one line.
fn line(test: &str, reason: &str) -> String {
    let test: Vec<&str> = test
        .split("::")
        .filter(|part| !matches!(*part, "here" | "{{closure}}"))
        .collect();
    format!("{}: {}", test.join("::"), reason.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_test_and_reason() {
        assert_eq!(line("pods::tcp::{{closure}}::here", "not\nroot"), "pods::tcp: not root");
    }

    #[test]
    fn skipping_is_no_error() {
        let result: Result<(), std::fmt::Error> = Skipped.into();
        assert_eq!(result, Ok(()));
    }
}
