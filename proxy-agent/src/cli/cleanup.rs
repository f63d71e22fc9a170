//! `cleanup`: removes every trace.

use anyhow::Result;
use clap::Args;

use crate::dataplane::{
    cleanup,
    pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
};

/// Detach all programs and remove all that is pinned; traffic to Services is not served any more
#[derive(Debug, Args)]
pub(super) struct CleanupArgs {
    /// Directory on a BPF file system where the agent pins
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIRECTORY)]
    pin_dir: PinDirectory,
}

impl CleanupArgs {
    pub(super) fn run(self) -> Result<()> {
        let removed = cleanup::cleanup(&self.pin_dir)?;
        println!(
            "{}: removed {} tcx links, clsact filters of {} devices, {} tables",
            self.pin_dir.root().display(),
            removed.links,
            removed.filtered_devices,
            removed.tables
        );
        Ok(())
    }
}
