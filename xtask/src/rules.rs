//! `rules`: which tests cite which rule of the proxy's behaviour.

mod citation;
mod document;
mod rule;
mod source;

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result, bail};

use self::{document::Document, rule::Rules, source::Test};
use crate::workspace;

/// Arguments of the task.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Writes nothing, but fails if the document is not up to date or a rule has no test
    #[arg(long)]
    check: bool,
}

/// Writes the document, or checks it.
///
/// # Errors
/// If a source can't be read or cites a rule that doesn't exist, or those of [`check`].
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.check {
        check()?;
        return Ok(ExitCode::SUCCESS);
    }
    let (document, path) = (document()?, path());
    fs::write(&path, document.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    for rule in document.missing() {
        eprintln!("cited by no test: {rule}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that every rule has a test, and that the document is up to date.
///
/// # Errors
/// If it is not so: the message says what to do.
pub(crate) fn check() -> Result<()> {
    let (document, path) = (document()?, path());
    let missing = document.missing();
    if !missing.is_empty() {
        bail!("these rules are cited by no test:\n  {}", missing.join("\n  "));
    }
    let written = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(line) = first_difference(&written, &document.to_string()) {
        bail!(
            "docs/rules.md is not what the tests say, from line {line} on: type `cargo xtask rules`, and commit what it \
             writes"
        );
    }
    Ok(())
}

/// The first line, from 1, in which two texts differ.
fn first_difference(one: &str, other: &str) -> Option<usize> {
    let (mut one, mut other) = (one.split('\n'), other.split('\n'));
    (1..).find_map(|line| match (one.next(), other.next()) {
        (None, None) => Some(None),
        (one, other) => (one != other).then_some(Some(line)),
    })?
}

fn document() -> Result<Document> {
    let tests = source::directories(workspace::root(), &["proxy-agent", "proxy-common", "tests"])?;
    Document::new(Rules::known(), tests)
}

fn path() -> PathBuf {
    workspace::root().join("docs/rules.md")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_from_a_line_on() {
        for (one, other, line) in [
            ("a\nb\n", "a\nb\n", None),
            ("a\nb\n", "a\nc\n", Some(2)),
            ("a\nb", "a\nb\n", Some(3)),
            ("", "a", Some(1)),
        ] {
            assert_eq!(first_difference(one, other), line, "{one:?} {other:?}");
            assert_eq!(first_difference(other, one), line, "{one:?} {other:?}");
        }
    }
}
