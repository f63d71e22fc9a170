//! Removes every trace of the proxy from the node.

use std::fs;

use anyhow::{Context as _, Result};

use super::{generation, pin::PinDirectory};

pub use super::generation::Removed;

/// Detaches all programs and removes all pins below the pin directory, of whichever generation, and the directory.
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
    for generation in generation::all(pin)? {
        removed += generation.remove()?;
    }
    fs::remove_dir(pin.root()).with_context(|| {
        format!(
            "cannot remove {}: is something else pinned there?",
            pin.root().display()
        )
    })?;
    Ok(removed)
}
