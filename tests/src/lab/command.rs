//! Runs the system's tools and says what went wrong when they fail.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs a tool with `input` on its standard input and returns its standard output.
///
/// The tool runs in the network namespace of the calling thread.
///
/// # Errors
/// The tool is missing, or ended with a status other than 0: its standard error is in the message.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{program}: cannot be started; `cargo xtask setup` installs what the lab needs"))?;
    // A tool that has read enough may close its end early: what counts is its status.
    let _ = child.stdin.take().context("a piped stdin")?.write_all(input.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}: {}\n{input}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs many `ip` commands, one a line, in one process.
pub(super) fn ip_batch(lines: &str) -> Result<()> {
    run("ip", &["-batch", "-"], lines).map(drop)
}
