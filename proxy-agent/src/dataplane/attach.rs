//! Keeps the programs attached to the devices they belong to.
//!
//! Level-triggered: [`Attacher::sync`] looks at what is attached, not at what it remembers to have attached.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use aya::programs::ProgramError;

use super::{
    cgroup, clsact,
    edge::Edge,
    hook::Hook,
    object::{Programs, os_error},
    pin::{self, PinDirectory},
    tcx, xdp,
};

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Method {
    /// tcx, or clsact where the kernel has no tcx
    #[default]
    Auto,
    /// tcx links (Linux 6.6)
    Tcx,
    /// Filters of the clsact queueing discipline
    Clsact,
}

/// Keeps the programs attached where they should be.
pub(super) struct Attacher {
    pin: PinDirectory,
    method: Method,
    /// Devices with our clsact filters of this load
    filtered: BTreeSet<u32>,
}

impl Attacher {
    pub(super) fn new(pin: PinDirectory, method: Method) -> Self {
        Self {
            pin,
            method,
            filtered: BTreeSet::new(),
        }
    }

    /// Attaches to the devices in `wanted` (by interface index) and detaches from all others. What failed is
    /// returned by device name and is tried again at the next call.
    pub(super) fn sync(
        &mut self,
        programs: &mut Programs,
        wanted: &BTreeMap<u32, Edge>,
    ) -> Vec<(String, anyhow::Error)> {
        let mut failed = Vec::new();
        for (&index, edge) in wanted {
            if let Err(error) = self.attach(programs, index, edge)
                && pin::device_exists(index)
            {
                failed.push((edge.name.clone(), error));
            }
        }
        if let Err(error) = self.prune(wanted) {
            failed.push((self.pin.root().display().to_string(), error));
        }
        failed
    }

    fn attach(&mut self, programs: &mut Programs, index: u32, edge: &Edge) -> Result<()> {
        let name = &edge.name;
        for hook in Hook::ALL {
            let program = programs.program(hook, edge.framing)?;
            if self.method != Method::Clsact {
                match tcx::attach(program, &self.pin, index, name, hook) {
                    Ok(()) => continue,
                    Err(error) if self.method == Method::Auto && no_tcx(&error) => {
                        tracing::info!("this kernel has no tcx: clsact filters are used");
                        self.method = Method::Clsact;
                    }
                    Err(error) => return Err(error).with_context(|| format!("cannot attach {} with tcx", hook.name())),
                }
            }
            if !self.filtered.contains(&index) {
                clsact::attach(program, &self.pin, index, name, hook)
                    .with_context(|| format!("cannot attach {} with clsact", hook.name()))?;
            }
        }
        if self.method == Method::Clsact {
            self.filtered.insert(index);
        }
        Ok(())
    }

    /// Removes pins and filters of devices that are not wanted or gone, and of the method not used.
    fn prune(&mut self, wanted: &BTreeMap<u32, Edge>) -> Result<()> {
        for path in pin::entries(&self.pin.links())?
            .into_iter()
            .filter(|path| !xdp::is_pin(path) && !cgroup::is_pin(path))
        {
            let index = pin::index_of(&path);
            if self.method == Method::Clsact || index.is_none_or(|index| !wanted.contains_key(&index)) {
                pin::remove(&path)?;
            }
        }
        for path in pin::entries(&self.pin.filters())? {
            let index = pin::index_of(&path);
            if self.method != Method::Clsact || index.is_none_or(|index| !wanted.contains_key(&index)) {
                clsact::detach(&path)?;
            }
        }
        self.filtered.retain(|index| wanted.contains_key(index));
        Ok(())
    }
}

/// How a program is attached to a device, if it is.
pub(super) fn attached(pin: &PinDirectory, index: u32, hook: Hook) -> Result<Option<&'static str>> {
    if tcx::is_attached(pin, index, hook)? {
        return Ok(Some("tcx"));
    }
    Ok(clsact::is_attached(pin, index, hook).then_some("clsact"))
}

/// Whether the error means that this kernel has no tcx.
fn no_tcx(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<ProgramError>()
        .and_then(os_error)
        .is_some_and(|error| matches!(error, libc::EINVAL | libc::EOPNOTSUPP))
}
