//! Attaches the programs to devices, so that they stay when the agent ends: tcx links pinned by interface index, or
//! clsact filters at a fixed place where the kernel has no tcx (before Linux 6.6).
//!
//! Level-triggered: [`Attacher::sync`] looks at what is attached, not at what it remembers to have attached.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType, TcError,
        links::{FdLink, Link as _, PinnedLink},
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle},
    },
    sys::SyscallError,
};

use super::{object::Programs, pin::PinDirectory, raw};

/// A place in a device's packet path where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// Packets that come from the device
    Ingress,
    /// Packets that leave through the device
    Egress,
}

impl Hook {
    /// Both hooks.
    pub(super) const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Name of the hook and of its program.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// At ingress last, at egress first: programs of a CNI see the virtual addresses, as they did under kube-proxy.
    fn order(self) -> LinkOrder {
        match self {
            Self::Ingress => LinkOrder::last(),
            Self::Egress => LinkOrder::first(),
        }
    }

    /// The same order among clsact filters, where the lowest priority runs first. Fixed, so that replacing is idempotent.
    const fn filter_priority(self) -> u16 {
        match self {
            Self::Ingress => 60_000,
            Self::Egress => 1,
        }
    }
}

/// Handle of our clsact filters: "px" in ASCII.
const FILTER_HANDLE: TcHandle = TcHandle::new(0, 0x7078);

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

/// What stands at the pin of a link.
enum Pinned {
    Missing,
    /// The device is gone, the pin isn't
    Dead,
    /// Attached, with this program
    Attached(u32),
}

impl Attacher {
    pub(super) fn new(pin: PinDirectory, method: Method) -> Self {
        Self {
            pin,
            method,
            filtered: BTreeSet::new(),
        }
    }

    /// Attaches to the devices in `wanted` (names by interface index) and detaches from all others. What failed is
    /// returned by device name and is tried again at the next call.
    pub(super) fn sync(
        &mut self,
        programs: &mut Programs,
        wanted: &BTreeMap<u32, String>,
    ) -> Vec<(String, anyhow::Error)> {
        let mut failed = Vec::new();
        for (&index, name) in wanted {
            if let Err(error) = self.attach(programs, index, name) {
                failed.push((name.clone(), error));
            }
        }
        if let Err(error) = self.prune(wanted) {
            failed.push((self.pin.root().display().to_string(), error));
        }
        failed
    }

    fn attach(&mut self, programs: &mut Programs, index: u32, name: &str) -> Result<()> {
        for hook in Hook::ALL {
            let program = programs.program(hook)?;
            if self.method != Method::Clsact {
                match attach_tcx(program, &link_pin(&self.pin, index, hook), index, name, hook) {
                    Ok(()) => continue,
                    Err(error) if self.method == Method::Auto && no_tcx(&error) => self.method = Method::Clsact,
                    Err(error) => return Err(error).with_context(|| format!("cannot attach {} with tcx", hook.name())),
                }
            }
            if !self.filtered.contains(&index) {
                attach_filter(program, &self.pin, index, name, hook)
                    .with_context(|| format!("cannot attach {} with clsact", hook.name()))?;
            }
        }
        if self.method == Method::Clsact {
            self.filtered.insert(index);
        }
        Ok(())
    }

    /// Removes pins and filters of devices that are not wanted or gone, and of the method not used.
    fn prune(&mut self, wanted: &BTreeMap<u32, String>) -> Result<()> {
        for path in files(&self.pin.links())? {
            let index = index_of(&path);
            if self.method == Method::Clsact || index.is_none_or(|index| !wanted.contains_key(&index)) {
                remove_pin(&path)?;
            }
        }
        for path in files(&self.pin.filters())? {
            let index = index_of(&path);
            if self.method != Method::Clsact || index.is_none_or(|index| !wanted.contains_key(&index)) {
                remove_filters(&path)?;
            }
        }
        self.filtered.retain(|index| wanted.contains_key(index));
        Ok(())
    }
}

/// Path of the pin of a tcx link.
fn link_pin(pin: &PinDirectory, index: u32, hook: Hook) -> PathBuf {
    pin.links().join(format!("{index}_{}", hook.name()))
}

/// Directory that says that a clsact filter of ours is there.
fn filter_mark(pin: &PinDirectory, index: u32, hook: Hook) -> PathBuf {
    pin.filters().join(index.to_string()).join(hook.name())
}

/// The interface index in the name of a pin or mark.
fn index_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.split('_').next()?.parse().ok()
}

/// What stands in a directory; nothing if there is none.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .with_context(|| format!("cannot read {}", directory.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}

fn remove_pin(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the pin {}", path.display()))
        }
        _ => Ok(()),
    }
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

/// How a program is attached to a device, if it is.
pub(super) fn attached(pin: &PinDirectory, index: u32, hook: Hook) -> Result<Option<&'static str>> {
    if let Pinned::Attached(_) = inspect(&link_pin(pin, index, hook))? {
        return Ok(Some("tcx"));
    }
    Ok(filter_mark(pin, index, hook).exists().then_some("clsact"))
}

fn attach_tcx(program: &mut SchedClassifier, path: &Path, index: u32, name: &str, hook: Hook) -> Result<()> {
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
                Err(error) if os_error(&error) == Some(libc::ENOLINK) => remove_pin(path)?,
                Err(error) => return Err(error.into()),
            }
        }
        Pinned::Dead => remove_pin(path)?,
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
        remove_pin(path)?;
        bail!("device {name} changed its index from {index} to {attached}");
    }
    Ok(())
}

fn attach_filter(program: &mut SchedClassifier, pin: &PinDirectory, index: u32, name: &str, hook: Hook) -> Result<()> {
    let mark = filter_mark(pin, index, hook);
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
        handle: FILTER_HANDLE,
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

/// Name of the mark that says that the clsact qdisc is ours, too.
const QDISC_MARK: &str = "qdisc";

fn filter(name: &str, hook: Hook) -> Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, hook.attach_type(), hook.filter_priority(), FILTER_HANDLE, None)
        .with_context(|| format!("device {name}"))
}

/// Removes the filters that the marks in `directory` speak of, and the marks.
pub(super) fn remove_filters(directory: &Path) -> Result<()> {
    let name = index_of(directory).and_then(device_name);
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
    let mark = directory.join(QDISC_MARK);
    if mark.exists() {
        remove_directory(&mark)?;
    }
    remove_directory(directory)
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

/// Whether the error means that this kernel has no tcx.
fn no_tcx(error: &anyhow::Error) -> bool {
    error
        .downcast_ref()
        .and_then(os_error)
        .is_some_and(|error| matches!(error, libc::EINVAL | libc::EOPNOTSUPP))
}

fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(SyscallError { io_error, .. }) => io_error.raw_os_error(),
        ProgramError::NetlinkError(error) | ProgramError::TcError(TcError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    }
}
