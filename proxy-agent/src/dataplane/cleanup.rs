//! Removes every trace of the proxy from the node.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, bail};
use proxy_common::layout::{AddressBytes, ServiceKey, ServiceRanges, ServiceValue, Timeouts};
use serde::Serialize;

use super::{collect::Collector, generation, inspect, kernel, pin::PinDirectory, table::BoxedTable};

pub use super::generation::Removed;

/// What was handed back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HandedBack {
    /// Frontends that are served no more
    pub frontends: usize,
    /// Connections that go on
    pub connections: usize,
}

/// Serves no frontend any more: what is new passes untouched, to kube-proxy's rules. Programs and tables stay, for the
/// connections that there are. Nothing pinned is no error.
///
/// # Errors
/// If an agent runs there, or a table can't be read or written.
pub fn hand_back(pin: &PinDirectory, now: Duration) -> Result<HandedBack> {
    let mut handed_back = HandedBack::default();
    if !pin.root().exists() {
        return Ok(handed_back);
    }
    let _lock = pin.lock()?;
    if pin.generation().previous().directory.exists() {
        bail!("what another build left still serves: run an agent until its log says that nothing is left of it");
    }
    let mut tables = kernel::open(pin)?;
    // First: an address of the range that no entry has would be refused.
    tables.service_ranges.insert(&0, &ServiceRanges::default())?;
    handed_back.frontends = clear(&mut tables.v4.services)? + clear(&mut tables.v6.services)?;
    Collector::new(kernel::open(pin)?, Timeouts::DEFAULT).collect(now)?;
    let flows = inspect::flows(&tables, now)?;
    handed_back.connections = flows.iter().filter(|flow| !flow.conntrack).count();
    Ok(handed_back)
}

/// Removes all entries; first the wildcards, which refuse the ports that have none.
fn clear<A: AddressBytes>(services: &mut BoxedTable<ServiceKey<A>, ServiceValue>) -> Result<usize> {
    let mut keys: Vec<_> = services.entries()?.into_iter().map(|(key, _)| key).collect();
    keys.sort_by_key(|key| key.protocol != 0);
    let mut frontends = 0;
    for key in keys {
        services.remove(&key)?;
        frontends += usize::from(key.protocol != 0);
    }
    Ok(frontends)
}

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
