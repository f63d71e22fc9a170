//! Tests that can't run here say so, and are counted as skipped, never as passed.

use std::{env, fs::OpenOptions, io::Write as _};

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

/// Reports that a test is skipped: to the file that `PROXY_SKIPPED_FILE` names, a line a test, or to standard error.
///
/// `test` is the path of a function within the test, as [`std::any::type_name_of_val`] gives it.
///
/// # Panics
/// The file can't be written: the test would be counted as passed.
pub fn report(test: &str, reason: &str) -> Skipped {
    let line = line(test, reason);
    if let Some(path) = env::var_os("PROXY_SKIPPED_FILE") {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            // One write a line: tests of several processes append to it.
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()))
            .unwrap_or_else(|error| panic!("PROXY_SKIPPED_FILE {}: {error}", path.display()));
    } else {
        eprintln!("SKIPPED {line}");
    }
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
