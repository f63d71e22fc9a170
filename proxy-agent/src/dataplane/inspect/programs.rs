//! How long the programs have run, which the kernel counts while `kernel.bpf_stats_enabled` is 1.

use std::{fs, io, time::Duration};

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;

use crate::dataplane::pin::PinDirectory;

/// What the kernel counted of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramRuns {
    /// Name of the program
    pub name: String,
    /// How often it ran
    pub count: u64,
    /// How long it ran in all
    pub time: Duration,
}

/// The programs that have run while the kernel counted: none, if it never did.
///
/// # Errors
/// If what is pinned can't be read.
pub fn program_runs(pin: &PinDirectory) -> Result<Vec<ProgramRuns>> {
    let directory = pin.generation().programs();
    let entries = match fs::read_dir(&directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("cannot read {}", directory.display()))?,
    };
    let mut runs = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // Another may be taking its place.
        let Ok(info) = ProgramInfo::from_pin(&path) else {
            continue;
        };
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        runs.extend(name.filter(|_| info.run_count() > 0).map(|name| ProgramRuns {
            name,
            count: info.run_count(),
            time: info.run_time(),
        }));
    }
    runs.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(runs)
}
