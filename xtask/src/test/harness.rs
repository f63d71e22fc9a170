//! Runs `cargo test` and counts what it says.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader},
    num::NonZero,
    path::Path,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result};

use super::tally::Tally;
use crate::{process, workspace};

/// The test that lasts minutes, whatever the machine. It runs alone, after all others: its load would have them wait in vain, and
/// theirs would have it lose what no proxy loses.
const LONG: &str = "soak::five_minutes_break_no_connection";

/// Builds and runs all tests.
///
/// # Errors
/// `cargo test` can't be started.
pub(super) fn run(agent: &Path, tally: &mut Tally) -> Result<()> {
    let name = "building the tests";
    process::step(name);
    if let Err(error) = process::run(cargo_test(agent).arg("--no-run")) {
        eprintln!("{error:#}");
        tally.fail(name);
        return Ok(());
    }
    process::step("cargo test");
    let out = |line: String| println!("{line}");
    let err = |line: String| eprintln!("{line}");
    let others = count(
        cargo_test(agent).args(["--no-fail-fast", "--", "--skip", LONG]),
        &out,
        &err,
    );
    let long = count(
        cargo_test(agent).args(["--test", "scenarios", "--", "--exact", LONG]),
        &out,
        &err,
    );
    tally.add(others?);
    let mut long = long?;
    if long.is_empty() {
        eprintln!("no test is called {LONG}");
        long.fail(LONG);
    }
    tally.add(long);
    Ok(())
}

fn cargo_test(agent: &Path) -> Command {
    let mut command = Command::new(workspace::cargo());
    command
        // Always the whole workspace: another choice of packages is built with other features.
        .args(["test", "--workspace"])
        .current_dir(workspace::root())
        .env("PROXY_AGENT", agent)
        .env("RUST_TEST_THREADS", test_threads());
    command
}

/// How many tests run at once: half of a lab's time is waiting, for the kernel and for deadlines.
fn test_threads() -> OsString {
    env::var_os("RUST_TEST_THREADS").unwrap_or_else(|| {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        (2 * cores).to_string().into()
    })
}

/// Runs a command, passes the lines of its output and of its errors on, and counts what they say.
fn count(command: &mut Command, out: &impl Fn(String), err: &(impl Fn(String) + Sync)) -> Result<Tally> {
    let spawned = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.with_context(|| format!("cannot start `{}`", process::typed(command)))?;
    let output = BufReader::new(child.stdout.take().context("no pipe from cargo test")?);
    let errors = BufReader::new(child.stderr.take().context("no pipe from cargo test")?);
    let mut counted = Tally::default();
    // Both are passed on in whole lines, so that they don't break each other where they go to one place.
    thread::scope(|scope| {
        scope.spawn(|| errors.lines().map_while(Result::ok).for_each(err));
        for line in output.lines().map_while(Result::ok) {
            counted.read(&line);
            out(line);
        }
    });
    let status = child.wait().context("cannot wait for cargo test")?;
    if !status.success() && counted.is_success() {
        eprintln!("`{}`: {status}", process::typed(command));
        counted.fail("cargo test");
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What a shell script that stands for `cargo test` says, and what is counted.
    fn said(script: &str) -> Result<(Vec<String>, String)> {
        let (out, err) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
        let keep = |lines: &Mutex<Vec<String>>, line| lines.lock().expect("nobody panics here").push(line);
        let counted = count(
            Command::new("sh").args(["-c", script]),
            &|line| keep(&out, line),
            &|line| keep(&err, line),
        )?;
        let [out, err] = [out, err].map(|lines| lines.into_inner().expect("nobody panics here"));
        Ok(([out, err].concat(), counted.to_string()))
    }

    #[test]
    fn lines_are_passed_on_and_counted() -> Result<()> {
        let (lines, counted) = said(
            "echo ' Running tests/a.rs' >&2
             echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 5 filtered out; finished in 0.01s'",
        )?;
        assert!(
            lines.len() == 2 && lines[0].starts_with("test result") && lines[1] == " Running tests/a.rs",
            "{lines:?}"
        );
        assert_eq!(counted, "2 passed, 0 failed, 0 skipped");
        Ok(())
    }

    #[test]
    fn an_end_without_a_failed_test_is_a_failure() -> Result<()> {
        let (_, counted) = said("exit 101")?;
        assert_eq!(counted, "FAILED cargo test\n0 passed, 1 failed, 0 skipped");
        let (_, counted) = said(
            "echo 'test a ... FAILED'
             echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0s'
             exit 101",
        )?;
        assert_eq!(counted, "FAILED a\n0 passed, 1 failed, 0 skipped", "not twice");
        Ok(())
    }
}
