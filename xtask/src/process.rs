//! Running other programs, and saying so.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};

/// Says which step comes now.
pub(crate) fn step(what: &str) {
    eprintln!("==> {what}");
}

/// The command as one would type it: the variables set, the program, its arguments.
pub(crate) fn typed(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(key, value)| {
        value.map(|value| format!("{}={}", key.display(), quoted(&value.to_string_lossy())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    variables
        .chain(words.map(|word| quoted(&word.to_string_lossy())))
        .collect::<Vec<_>>()
        .join(" ")
}

fn quoted(word: &str) -> String {
    if word.is_empty() || word.contains([' ', '*', '"', '$']) {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}

/// Runs a command whose output passes through, without input.
///
/// # Errors
/// The command can't be started or fails; the message holds it as one would type it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let start = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start `{}`", typed(command)))?;
    ensure!(
        status.success(),
        "`{}` failed after {:.0?}: {status}",
        typed(command),
        start.elapsed()
    );
    Ok(())
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// The command can't be started or fails; the message holds what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", typed(command)))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}",
            typed(command),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", typed(command)))
}
