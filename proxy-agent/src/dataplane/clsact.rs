//! Filters of the clsact queueing discipline, for kernels without tcx. They stay when the agent ends, at a fixed place, so
//! that the next agent replaces them. Directories below `filters` remember what is ours: `<ifindex>/<hook>` a filter,
//! `<ifindex>/qdisc` the queueing discipline.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    SchedClassifier, TcError,
    links::Link as _,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
};

use super::{
    hook::Hook,
    network,
    object::os_error,
    pin::{self, PinDirectory},
};

/// Handle of our filters: "px" in ASCII.
const HANDLE: TcHandle = TcHandle::new(0, 0x7078);

/// Name of the mark that says that the queueing discipline is ours, too.
const QDISC_MARK: &str = "qdisc";

fn mark(pin: &PinDirectory, index: u32, hook: Hook) -> PathBuf {
    pin.filters().join(index.to_string()).join(hook.name())
}

/// Whether a program is attached to a device by a filter of ours.
pub(super) fn is_attached(pin: &PinDirectory, index: u32, hook: Hook) -> bool {
    mark(pin, index, hook).exists()
}

/// Attaches a program to a device, or replaces the one that our filter has.
pub(super) fn attach(
    program: &mut SchedClassifier,
    pin: &PinDirectory,
    index: u32,
    name: &str,
    hook: Hook,
) -> Result<()> {
    let mark = mark(pin, index, hook);
    let parent = mark.parent().context("a mark is in a directory")?;
    create_directory(parent)?;
    match tc::qdisc_add_clsact(name) {
        Ok(()) => create_directory(&parent.join(QDISC_MARK))?,
        Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
        Err(error) => return Err(anyhow!(error).context(format!("cannot add the clsact qdisc to {name}"))),
    }
    create_directory(&mark)?;
    let place = TcAttachOptions::Netlink(NlOptions {
        priority: hook.filter_priority(),
        handle: HANDLE,
        classid: None,
    });
    let id = match program.attach_with_options(name, hook.attach_type(), place) {
        Err(error) if os_error(&error) == Some(libc::EEXIST) => program.attach_to_link(filter(name, hook)?)?,
        result => result?,
    };
    // It stays attached when the agent ends.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn filter(name: &str, hook: Hook) -> Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, hook.attach_type(), hook.filter_priority(), HANDLE, None)
        .with_context(|| format!("device {name}"))
}

/// Removes the filters that the marks in `directory` speak of. The queueing discipline stays with its mark, unless it went
/// with the device.
pub(super) fn detach(directory: &Path) -> Result<()> {
    let name = pin::index_of(directory).and_then(device_name);
    for hook in Hook::ALL {
        let mark = directory.join(hook.name());
        if !mark.exists() {
            continue;
        }
        if let Some(name) = &name {
            match filter(name, hook)?.detach() {
                Ok(()) => {}
                Err(error) if matches!(os_error(&error), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {}
                Err(error) => {
                    return Err(anyhow!(error).context(format!("cannot remove the {} filter of {name}", hook.name())));
                }
            }
        }
        remove_directory(&mark)?;
    }
    let qdisc = directory.join(QDISC_MARK);
    if name.is_none() && qdisc.exists() {
        remove_directory(&qdisc)?;
    }
    if qdisc.exists() {
        Ok(())
    } else {
        remove_directory(directory)
    }
}

/// Removes filters like [`detach`], and the queueing discipline if it is ours and nobody else has filters there.
pub(super) fn remove(directory: &Path) -> Result<()> {
    detach(directory)?;
    let qdisc = directory.join(QDISC_MARK);
    if let Some(index) = pin::index_of(directory).filter(|_| qdisc.exists()) {
        network::remove_unused_clsact(index)?;
        remove_directory(&qdisc)?;
        remove_directory(directory)?;
    }
    Ok(())
}

fn device_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok()
}

fn create_directory(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    fs::remove_dir(path).with_context(|| format!("cannot remove {}", path.display()))
}
