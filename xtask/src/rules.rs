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
    if written != document.to_string() {
        bail!("docs/rules.md is not what the tests say: type `cargo xtask rules`, and commit what it writes");
    }
    Ok(())
}

fn document() -> Result<Document> {
    let tests = source::directories(workspace::root(), &["proxy-agent", "proxy-common", "tests"])?;
    Document::new(Rules::known(), tests)
}

fn path() -> PathBuf {
    workspace::root().join("docs/rules.md")
}
