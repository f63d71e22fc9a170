//! What a process costs, by /proc, and what it said when.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use crate::lab::{Agent, wait_until};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) struct Memory {
    /// What is resident (`VmRSS`)
    pub(super) resident: u64,
    /// What was at most (`VmHWM`)
    pub(super) peak: u64,
    /// Of what is resident, what is of no file (`RssAnon`)
    pub(super) anonymous: u64,
    /// The kernel's memory for the tables, which is of no process
    pub(super) tables: u64,
}

/// A process of the lab.
pub(super) struct Process {
    pid: u32,
    log: PathBuf,
    from: usize,
}

impl Process {
    /// Where a process is going to write its log: what is there by now isn't its.
    pub(super) fn logging_to(log: PathBuf) -> impl FnOnce(&Agent) -> Self {
        let from = fs::read(&log).map_or(0, |text| text.len());
        move |agent| Self {
            pid: agent.pid(),
            log,
            from,
        }
    }

    /// Waits until it says this, and returns when it did.
    pub(super) fn said(&self, words: &str) -> Result<SystemTime> {
        let find = || {
            let text = fs::read(&self.log).ok()?;
            let text = String::from_utf8_lossy(text.get(self.from..)?).into_owned();
            let line = text.lines().find(|line| line.ends_with(words))?;
            line.split(' ').next()?.parse::<Timestamp>().ok()
        };
        let said = wait_until(&format!("the agent says {words:?}"), PATIENCE, find)?;
        Ok(said.into())
    }

    /// Processor time so far.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        let clock: ClockId = clock_getcpuclockid(Pid::from_raw(self.pid.cast_signed()))?;
        Ok(clock_gettime(clock)?.into())
    }

    /// Memory now.
    pub(super) fn memory(&self) -> Result<Memory> {
        let directory = PathBuf::from(format!("/proc/{}", self.pid));
        let status = fs::read_to_string(directory.join("status"))?;
        let field = |name: &str| -> Result<u64> {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .with_context(|| name.to_owned())?;
            Ok(1024 * line.trim().trim_end_matches(" kB").parse::<u64>()?)
        };
        // A table is open more than once.
        let mut tables = BTreeMap::new();
        for entry in fs::read_dir(directory.join("fdinfo"))? {
            // It may be closed by now.
            let Ok(text) = fs::read_to_string(entry?.path()) else {
                continue;
            };
            let field = |name: &str| {
                text.lines()
                    .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
            };
            if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
                tables.insert(id, bytes);
            }
        }
        Ok(Memory {
            resident: field("VmRSS:")?,
            peak: field("VmHWM:")?,
            anonymous: field("RssAnon:")?,
            tables: tables.values().sum(),
        })
    }
}
