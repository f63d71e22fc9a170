//! tcx links (Linux 6.6), pinned by interface index: they stay when the agent ends, and the next one replaces their
//! programs atomically.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::{
    SchedClassifier,
    links::{FdLink, PinnedLink},
    tc::{SchedClassifierLink, TcAttachOptions},
};

use super::{
    hook::Hook,
    object::os_error,
    pin::{self, PinDirectory},
    raw,
};

/// What stands at the pin of a link.
enum Pinned {
    Missing,
    /// The device is gone, the pin isn't
    Dead,
    /// Attached, with this program
    Attached(u32),
}

/// Path of the pin of a tcx link.
fn link_pin(pin: &PinDirectory, index: u32, hook: Hook) -> PathBuf {
    pin.links().join(format!("{index}_{}", hook.name()))
}

fn inspect(path: &Path) -> Result<Pinned> {
    let link = match raw::object_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Pinned::Missing),
        Err(error) => return Err(error).with_context(|| format!("cannot open the link pinned at {}", path.display())),
    };
    let info = raw::tcx_link_info(link.as_fd()).with_context(|| format!("{} is no link", path.display()))?;
    Ok(if info.ifindex == 0 {
        Pinned::Dead
    } else {
        Pinned::Attached(info.program)
    })
}

/// Whether a program is attached to a device by a link of ours.
pub(super) fn is_attached(pin: &PinDirectory, index: u32, hook: Hook) -> Result<bool> {
    is_link_attached(&link_pin(pin, index, hook))
}

/// Whether a program is attached by the link that is pinned at `path`, if one is.
pub(super) fn is_link_attached(path: &Path) -> Result<bool> {
    Ok(matches!(inspect(path)?, Pinned::Attached(_)))
}

/// Id of the program that is attached by the link that is pinned at `path`, to a device or a cgroup.
pub(super) fn attached_program(path: &Path) -> Result<Option<u32>> {
    Ok(match inspect(path)? {
        Pinned::Attached(program) => Some(program),
        Pinned::Missing | Pinned::Dead => None,
    })
}

/// Attaches a program to a device, or replaces the one that the pinned link has.
pub(super) fn attach(
    program: &mut SchedClassifier,
    directory: &PinDirectory,
    index: u32,
    name: &str,
    hook: Hook,
) -> Result<()> {
    let path = &link_pin(directory, index, hook);
    match inspect(path)? {
        Pinned::Attached(attached) if attached == program.info()?.id() => return Ok(()),
        Pinned::Attached(_) => {
            let link = PinnedLink::from_pin(path).with_context(|| format!("link pinned at {}", path.display()))?;
            let link = SchedClassifierLink::try_from(FdLink::from(link))
                .with_context(|| format!("{} is no tcx link", path.display()))?;
            match program.attach_to_link(link) {
                Ok(id) => {
                    // The pin keeps it attached.
                    drop(program.take_link(id)?);
                    return Ok(());
                }
                // The device went since we looked.
                Err(error) if os_error(&error) == Some(libc::ENOLINK) => pin::remove(path)?,
                Err(error) => return Err(error.into()),
            }
        }
        Pinned::Dead => pin::remove(path)?,
        Pinned::Missing => {}
    }
    let id = program.attach_with_options(name, hook.attach_type(), TcAttachOptions::TcxOrder(hook.order()))?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    drop(
        link.pin(path)
            .with_context(|| format!("cannot pin the link at {}", path.display()))?,
    );
    // Names can move between devices while we look them up.
    let attached = raw::tcx_link_info(raw::object_get(path)?.as_fd())?.ifindex;
    if attached != index {
        pin::remove(path)?;
        bail!("device {name} changed its index from {index} to {attached}");
    }
    Ok(())
}

/// Detaches the program of the link pinned at `path`, and removes the pin. When it returns, the program no longer runs.
pub(super) fn detach(path: &Path) -> Result<()> {
    if let Pinned::Attached(_) = inspect(path)? {
        match raw::object_get(path).and_then(|link| raw::link_detach(link.as_fd())) {
            // The device went since we looked.
            Err(error) if error.raw_os_error() != Some(libc::ENOLINK) => {
                return Err(error).with_context(|| format!("cannot detach the link pinned at {}", path.display()));
            }
            _ => {}
        }
    }
    pin::remove(path)
}
