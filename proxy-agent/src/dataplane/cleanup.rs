//! Removes every trace of the proxy from the node.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    clsact,
    pin::{PinDirectory, entries},
    tcx,
};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// tcx links, each a program detached from a device
    pub links: usize,
    /// Devices with clsact filters
    pub filtered_devices: usize,
    /// Tables
    pub tables: usize,
}

/// Detaches all programs and removes all pins below the pin directory, of whichever layout version, and the directory.
/// Nothing to remove is no error.
///
/// # Errors
/// If an agent runs there, or something can't be removed.
pub fn cleanup(pin: &PinDirectory) -> Result<Removed> {
    let mut removed = Removed::default();
    if !pin.root().exists() {
        return Ok(removed);
    }
    let _lock = pin.lock()?;
    for version in entries(pin.root())?.into_iter().filter(|path| is_version(path)) {
        // Detach first: a program must not run on tables that are half gone.
        for filtered in entries(&version.join("filters"))? {
            clsact::remove(&filtered)?;
            removed.filtered_devices += 1;
        }
        for link in entries(&version.join("links"))? {
            tcx::detach(&link)?;
            removed.links += 1;
        }
        removed.tables += remove_files(&version.join("maps"))?;
        fs::remove_dir_all(&version).with_context(|| format!("cannot remove {}", version.display()))?;
    }
    fs::remove_dir(pin.root()).with_context(|| {
        format!(
            "cannot remove {}: is something else pinned there?",
            pin.root().display()
        )
    })?;
    Ok(removed)
}

fn is_version(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.and_then(|name| name.strip_prefix('v'))
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

fn remove_files(directory: &Path) -> Result<usize> {
    let files = entries(directory)?;
    for file in &files {
        fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    }
    Ok(files.len())
}
