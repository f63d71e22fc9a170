//! Keeps the programs attached that translate what processes connect and send to: at the root of the cgroup2 hierarchy,
//! where every process of the machine is.
//!
//! Level-triggered, as [`super::attach`]. Links are pinned beside those of devices; a program is replaced in its link, so
//! that no call falls between two agents.

use std::{
    fmt, fs, io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink};
use proxy_common::layout::device_flags;
use serde::Serialize;

use super::{object::Programs, pin::PinDirectory, raw, tcx};

/// `CGROUP2_SUPER_MAGIC` (include/uapi/linux/magic.h).
const CGROUP2_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0x6367_7270);

/// Beginning of the names of pins.
const PREFIX: &str = "cgroup_";

/// Whose sockets are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Those of processes in the host's network; pods are served at the edges
    #[default]
    Host,
    /// Those of pods, too: they pay nothing for a packet, but what sees their connections sees the backends
    All,
    /// None
    Off,
}

/// What sockets are to be served, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Whose
    pub mode: Mode,
    /// The cgroup to attach to; `None` for the root of the hierarchy, which is looked for
    pub cgroup: Option<PathBuf>,
}

/// A call of a process that a program is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are the kernel's")]
pub enum SocketHook {
    Getpeername4,
    Getpeername6,
    Recvmsg4,
    Recvmsg6,
    Sendmsg4,
    Sendmsg6,
    Connect4,
    Connect6,
}

impl SocketHook {
    /// All, in the order of attaching: who is answered must know by whom.
    pub const ALL: [Self; 8] = [
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// Name of the hook and of its program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
        }
    }

    fn pin(self, directory: &PinDirectory) -> PathBuf {
        directory.links().join(format!("{PREFIX}{}", self.name()))
    }
}

impl fmt::Display for SocketHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a pinned link is one of a socket hook, by its file's name.
pub(super) fn is_pin(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(PREFIX)
}

/// Keeps the socket hooks as they should be.
pub(super) struct SocketAttacher {
    pin: PinDirectory,
    policy: Policy,
}

impl SocketAttacher {
    pub(super) const fn new(pin: PinDirectory, policy: Policy) -> Self {
        Self { pin, policy }
    }

    /// Attaches all hooks, or detaches them where none are wanted. What failed is returned by name, and is tried again at the
    /// next call.
    pub(super) fn sync(&self, programs: &mut Programs) -> Vec<(String, anyhow::Error)> {
        let failure = |hook: SocketHook, error: anyhow::Error| (format!("socket hook {hook}"), error);
        let mut failed = Vec::new();
        if self.policy.mode == Mode::Off {
            // The other way round: nobody is to be translated whose answers are not.
            for hook in SocketHook::ALL.into_iter().rev() {
                let removed = tcx::detach(&hook.pin(&self.pin));
                failed.extend(removed.err().map(|error| failure(hook, error)));
            }
            return failed;
        }
        let cgroup = match programs.can_serve_sockets().and_then(|()| self.cgroup()) {
            Ok(cgroup) => cgroup,
            Err(error) => return vec![("sockets of processes".to_owned(), error)],
        };
        for hook in SocketHook::ALL {
            let attached = programs
                .socket(hook)
                .and_then(|program| attach(program, &hook.pin(&self.pin), &cgroup));
            failed.extend(attached.err().map(|error| failure(hook, error)));
        }
        failed
    }

    /// Bits of [`device_flags`] for the entry of the host, by which others know what is served.
    pub(super) fn device_flags(&self) -> u32 {
        match self.policy.mode {
            Mode::All => device_flags::POD_SOCKETS,
            Mode::Host | Mode::Off => 0,
        }
    }

    fn cgroup(&self) -> Result<PathBuf> {
        directory(self.policy.cgroup.as_deref())
    }
}

/// The directory of the cgroup that is asked for, or of the root, wherever that is mounted.
///
/// # Errors
/// There is none; says what to do.
pub(super) fn directory(asked: Option<&Path>) -> Result<PathBuf> {
    let Some(cgroup) = asked else {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
        return root(&mounts, &|mount| !mount.join("cgroup.type").exists());
    };
    let kind = nix::sys::statfs::statfs(cgroup).with_context(|| format!("cannot look at {}", cgroup.display()))?;
    if kind.filesystem_type() != CGROUP2_MAGIC {
        bail!(
            "{} is no cgroup of version 2: --cgroup takes a directory below a mount of type cgroup2",
            cgroup.display()
        );
    }
    Ok(cgroup.to_owned())
}

/// The mount point of the root of the cgroup2 hierarchy, in the text of /proc/self/mountinfo (proc(5)). A container often sees a
/// part of the hierarchy in its place, where only its own processes are: all cgroups but the root have a type
/// (Documentation/admin-guide/cgroup-v2.rst).
fn root(mounts: &str, is_root: &dyn Fn(&Path) -> bool) -> Result<PathBuf> {
    let parts: Vec<PathBuf> = mounts.lines().filter_map(mount_of_cgroup2).collect();
    if let Some(root) = parts.iter().find(|mount| is_root(mount)) {
        return Ok(root.clone());
    }
    if parts.is_empty() {
        bail!(
            "there is no cgroup2 hierarchy here: mount it with `mount -t cgroup2 cgroup2 /sys/fs/cgroup` (or anywhere else), in \
             a container the host's"
        );
    }
    let parts: Vec<_> = parts.iter().map(|mount| mount.display().to_string()).collect();
    bail!(
        "there is only a part of the cgroup2 hierarchy here, which not all processes of the host are in (at {}): mount the \
         host's root of it into the container, as a hostPath of /sys/fs/cgroup, and name it with --cgroup",
        parts.join(", ")
    )
}

/// The mount point in a line of /proc/self/mountinfo, if it is of cgroup2.
fn mount_of_cgroup2(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let is_cgroup2 = kind.split(' ').next() == Some("cgroup2");
    let point = mount.split(' ').nth(4).filter(|_| is_cgroup2)?;
    // How the kernel writes what would end the field or the line (`show_mountinfo`, fs/proc_namespace.c).
    let point = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |point, (escape, character)| {
            point.replace(escape, character)
        });
    Some(point.into())
}

/// Attaches a program to a cgroup, or replaces the one that the pinned link has.
fn attach(program: &mut CgroupSockAddr, path: &Path, cgroup: &Path) -> Result<()> {
    let opened = fs::File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
    if let Some(link) = open(path)? {
        let info = raw::cgroup_link_info(link.as_fd()).with_context(|| format!("{} is no link", path.display()))?;
        if info.cgroup() == opened.metadata()?.ino() {
            if info.program != program.info()?.id() {
                raw::link_update(link.as_fd(), program.fd()?.as_fd())
                    .with_context(|| format!("cannot replace the program of {}", path.display()))?;
            }
            return Ok(());
        }
        // It is attached elsewhere, or the cgroup is gone.
        tcx::detach(path)?;
    }
    let id = program
        .attach(opened, CgroupAttachMode::Single)
        .with_context(|| format!("cannot attach to the cgroup {}", cgroup.display()))?;
    let link = FdLink::try_from(program.take_link(id)?)?;
    drop(
        link.pin(path)
            .with_context(|| format!("cannot pin the link at {}", path.display()))?,
    );
    Ok(())
}

fn open(path: &Path) -> Result<Option<std::os::fd::OwnedFd>> {
    match raw::object_get(path) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open the link pinned at {}", path.display())),
    }
}

/// The id of the cgroup that a hook's program is attached to, which is the inode number of its directory, if it is attached to
/// one.
///
/// # Errors
/// If the pin can't be read.
pub(super) fn attached(pin: &PinDirectory, hook: SocketHook) -> Result<Option<u64>> {
    let path = hook.pin(pin);
    let Some(link) = open(&path)? else {
        return Ok(None);
    };
    let info = raw::cgroup_link_info(link.as_fd()).with_context(|| format!("{} is no link", path.display()))?;
    Ok(Some(info.cgroup()).filter(|&cgroup| cgroup != 0))
}

/// The directory of a cgroup, by its id, if it is mounted here; else the id.
pub(super) fn describe(id: u64) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let is_it = |path: &PathBuf| fs::metadata(path).is_ok_and(|metadata| metadata.ino() == id);
    let mut found = mounts.lines().filter_map(mount_of_cgroup2).filter(is_it);
    found
        .next()
        .map_or_else(|| format!("cgroup {id}"), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";
    const CONTAINER: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,relatime - cgroup2 cgroup rw
50 23 0:26 /../../.. /host/sys\\040fs/cgroup rw,relatime - cgroup2 cgroup2 rw
";

    fn found(mounts: &str, roots: &[&str]) -> Result<PathBuf> {
        root(mounts, &|mount| roots.iter().any(|root| mount == Path::new(root)))
    }

    #[test]
    fn the_hierarchy_is_found_wherever_it_is_mounted() {
        let path = found(HYBRID, &["/sys/fs/cgroup/unified"]).expect("a root");
        assert_eq!(path, Path::new("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_container_takes_the_root_and_not_its_own_part() {
        let path = found(CONTAINER, &["/host/sys fs/cgroup"]).expect("a root");
        assert_eq!(path, Path::new("/host/sys fs/cgroup"));
        let error = found(CONTAINER, &[]).expect_err("no root").to_string();
        assert!(
            error.contains("/sys/fs/cgroup, /host/sys fs/cgroup") && error.contains("--cgroup"),
            "{error}"
        );
    }

    #[test]
    fn without_a_hierarchy_it_says_what_to_mount() {
        let error = found("", &[]).expect_err("no root").to_string();
        assert!(error.contains("mount -t cgroup2"), "{error}");
    }
}
