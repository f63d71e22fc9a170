//! What a node is like for this proxy: its kernel, mounts, this process' rights, settings, and what else has a hand in packets.
//! Everything is looked at or tried out now; nothing is changed, and no agent is needed.

mod drivers;
mod kernel;
mod mounts;
mod process;
mod programs;
mod rivals;
mod settings;

use std::{fmt, path::Path};

use serde::Serialize;

use super::{
    pin::PinDirectory,
    table::{TableError, Tables},
};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be
    Ok,
    /// Something is lost by it, or may be
    Warning,
    /// Services are not served, or not right
    Problem,
}

/// What was found of one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `kernel`, `mounts`, `process`, `settings`, `programs` or `rivals`
    pub area: &'static str,
    /// The thing
    pub subject: String,
    /// How bad it is
    pub severity: Severity,
    /// What it is like
    pub found: String,
    /// What that means for the proxy; `null` where all is well
    pub consequence: Option<String>,
    /// What to do about it; `null` where all is well
    pub fix: Option<String>,
}

/// Findings of one area.
struct Findings {
    area: &'static str,
    list: Vec<Finding>,
}

impl Findings {
    const fn of(area: &'static str) -> Self {
        Self { area, list: Vec::new() }
    }

    fn ok(&mut self, subject: impl Into<String>, found: impl Into<String>) {
        self.list.push(Finding {
            area: self.area,
            subject: subject.into(),
            severity: Severity::Ok,
            found: found.into(),
            consequence: None,
            fix: None,
        });
    }

    fn warning(
        &mut self,
        subject: impl Into<String>,
        found: impl Into<String>,
        consequence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.bad(Severity::Warning, subject, found, consequence, fix);
    }

    fn problem(
        &mut self,
        subject: impl Into<String>,
        found: impl Into<String>,
        consequence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.bad(Severity::Problem, subject, found, consequence, fix);
    }

    fn bad(
        &mut self,
        severity: Severity,
        subject: impl Into<String>,
        found: impl Into<String>,
        consequence: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.list.push(Finding {
            area: self.area,
            subject: subject.into(),
            severity,
            found: found.into(),
            consequence: Some(consequence.into()),
            fix: Some(fix.into()),
        });
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "problem",
        })
    }
}

/// Looks at everything, in the network namespace of the calling thread. `cgroup` is where socket hooks are to be attached, if that
/// isn't the root; `tables` are those that are pinned, if there are any.
///
/// # Errors
/// If a table can't be read.
pub fn examine(pin: &PinDirectory, cgroup: Option<&Path>, tables: Option<&Tables>) -> Result<Vec<Finding>, TableError> {
    let node_ports = tables.map_or_else(|| Ok(Vec::new()), node_ports)?;
    let mut programs = programs::examine(pin);
    if let Some(tables) = tables {
        drivers::examine(&mut programs, tables)?;
    }
    let areas = [
        kernel::examine(),
        mounts::examine(pin, cgroup),
        process::examine(),
        settings::examine(&node_ports),
        programs,
        rivals::examine(),
    ];
    Ok(areas.into_iter().flat_map(|findings| findings.list).collect())
}

/// Every nodePort, sorted.
fn node_ports(tables: &Tables) -> Result<Vec<u16>, TableError> {
    let mut ports = Vec::new();
    tables.v4.services.scan(&mut |key, _| {
        if key.address == [0; 4] {
            ports.push(key.port);
        }
    })?;
    tables.v6.services.scan(&mut |key, _| {
        if key.address == [0; 16] {
            ports.push(key.port);
        }
    })?;
    ports.sort_unstable();
    ports.dedup();
    Ok(ports)
}
