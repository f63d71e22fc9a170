//! Removes what kube-proxy left.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{IPVS_DEVICE, has_ipvs_device, iptables, leftovers, nftables};
use crate::dataplane::{conntrack::Conntrack, network};

/// What was removed, and what was left for a reason.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// What is gone
    pub removed: Vec<String>,
    /// Connections that conntrack translates
    pub connections: usize,
    /// Whether [`KEEPER`](super::KEEPER) is there for them
    pub is_kept: bool,
}

/// Removes kube-proxy's rules, sets and devices from this network namespace, and nothing else. Established connections go on:
/// for as long as there are any, a table without effect on others keeps conntrack translating. Nothing to remove is no error,
/// nor is a missing tool of which nothing is left.
///
/// # Errors
/// If a tool is missing or fails, or the kernel doesn't tell. What was removed up to then is gone.
pub fn remove() -> Result<Removed> {
    let mut outcome = Removed {
        connections: translated()?,
        ..Removed::default()
    };
    if outcome.connections == 0 {
        release()?;
    } else if !leftovers().context(CANNOT_LOOK)?.is_empty() {
        nftables::keep_established().context("cannot keep the established connections")?;
    }
    let tables = nftables::remove()?;
    let tables = tables
        .iter()
        .map(|family| format!("nftables table {family} {}", nftables::TABLE));
    outcome.removed.extend(tables);
    outcome.removed.extend(iptables::remove()?);
    if has_ipvs_device() {
        network::remove_device(IPVS_DEVICE)?;
        outcome.removed.push(format!("device {IPVS_DEVICE}"));
    }
    outcome.removed.extend(remove_sets()?);
    outcome.is_kept = nftables::is_kept()?;
    Ok(outcome)
}

/// Removes the table that keeps conntrack translating, if it is there and no more needed: there is nothing to translate, or
/// kube-proxy's rules are back and see to it; whether it did.
///
/// # Errors
/// If a tool is missing or fails, or the kernel doesn't tell.
pub fn release() -> Result<bool> {
    let is_idle = nftables::is_kept()? && (translated()? == 0 || !leftovers().context(CANNOT_LOOK)?.is_empty());
    if is_idle {
        nftables::forget_keeper()?;
    }
    Ok(is_idle)
}

fn translated() -> Result<usize> {
    let translated = Conntrack::open().and_then(|conntrack| conntrack.translated());
    Ok(translated.context("cannot list the connections of conntrack")?.len())
}

const CANNOT_LOOK: &str = "cannot look for what kube-proxy left";

/// IPVS mode keeps addresses in sets. Nothing but its rules, which are gone, could use them.
fn remove_sets() -> Result<Vec<String>> {
    // Without the command there are none: kube-proxy makes them by it.
    if Command::new("ipset").arg("--version").output().is_err() {
        return Ok(Vec::new());
    }
    let names = run("ipset", &["list", "-name"], "")?;
    let names: Vec<&str> = names
        .lines()
        .filter(|name| name.starts_with(iptables::PREFIX))
        .collect();
    for name in &names {
        run("ipset", &["destroy", name], "")?;
    }
    Ok(names.iter().map(|name| format!("ipset {name}")).collect())
}

/// Runs a tool with `input` and gives what it printed.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}: it has to be installed for this"))?;
    let mut stdin = child.stdin.take().context("a piped stdin")?;
    let text = input.to_owned();
    // What it prints meanwhile may be more than a pipe holds.
    let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()));
    let output = child.wait_with_output()?;
    match writer.join() {
        // A tool that failed may not have read everything: its status says why.
        Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(error).with_context(|| format!("cannot write to {program}"));
        }
        _ => {}
    }
    if !output.status.success() {
        bail!(
            "{program} {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
