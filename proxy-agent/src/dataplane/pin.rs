//! The pin directory: where maps and links outlive the agent, and who may write there.
//!
//! `<pin-dir>/v<layout version>/maps/<table>` and `.../links/<ifindex>_<hook>`; another layout version never collides. What
//! comes before what is there now stands in `.../previous` ([`super::generation`]).

use std::{
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use proxy_common::layout;

use super::generation::Generation;

/// Where the agent pins unless a flag says otherwise.
pub const DEFAULT_PIN_DIRECTORY: &str = "/sys/fs/bpf/proxy-agent";

/// `BPF_FS_MAGIC` (include/uapi/linux/magic.h).
pub(crate) const BPF_FS_MAGIC: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0xcafe_4a11);

/// Paths below the pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDirectory {
    root: PathBuf,
}

impl From<&str> for PinDirectory {
    fn from(root: &str) -> Self {
        Self::new(root)
    }
}

impl PinDirectory {
    /// The pin directory at `root`; nothing is made or looked at yet.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of this layout version.
    pub fn version(&self) -> PathBuf {
        self.root.join(format!("v{}", layout::VERSION))
    }

    /// The generation in that directory.
    pub(super) fn generation(&self) -> Generation {
        Generation::new(self.version())
    }

    /// Pin of the table called `name`.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Directory of the tables.
    pub fn maps(&self) -> PathBuf {
        self.version().join("maps")
    }

    /// Directory of the tcx links.
    pub fn links(&self) -> PathBuf {
        self.version().join("links")
    }

    /// Directory that remembers the clsact filters made, where tcx is missing.
    pub fn filters(&self) -> PathBuf {
        self.version().join("filters")
    }

    /// Makes the directory, and locks it for this agent.
    ///
    /// # Errors
    /// If the place is no bpffs, may not be written, or another agent has it.
    pub fn claim(&self) -> Result<PinLock> {
        self.check_file_system()?;
        make_directory(&self.root)?;
        self.lock()
    }

    /// Locks an existing pin directory.
    ///
    /// # Errors
    /// If it can't be opened or another agent has it.
    pub fn lock(&self) -> Result<PinLock> {
        let directory =
            File::open(&self.root).with_context(|| format!("cannot open the pin directory {}", self.root.display()))?;
        match Flock::lock(OwnedFd::from(directory), FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(PinLock { _lock: lock }),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => match self.holder()? {
                Some(Holder { process: Some(process) }) => bail!(
                    "another agent (process {process}) uses {}: stop it or choose another --pin-dir",
                    self.root.display()
                ),
                _ => bail!(
                    "another agent uses {}: stop it or choose another --pin-dir",
                    self.root.display()
                ),
            },
            Err((_, error)) => {
                Err(io::Error::from(error)).with_context(|| format!("cannot lock {}", self.root.display()))
            }
        }
    }

    /// Who has locked the directory, by /proc/locks; looking does not disturb an agent that starts.
    ///
    /// # Errors
    /// If /proc/locks or the directory can't be read.
    pub fn holder(&self) -> Result<Option<Holder>> {
        let metadata = fs::metadata(&self.root).with_context(|| format!("cannot read {}", self.root.display()))?;
        let locks = fs::read_to_string("/proc/locks").context("cannot read /proc/locks")?;
        let (major, minor) = (
            nix::sys::stat::major(metadata.dev()),
            nix::sys::stat::minor(metadata.dev()),
        );
        Ok(holder_in(
            &locks,
            &format!("{major:02x}:{minor:02x}:{}", metadata.ino()),
        ))
    }

    /// Whether tables of this layout version are pinned.
    ///
    /// # Errors
    /// If nothing is pinned or it may not be looked at; says what to do.
    pub fn check_pinned(&self) -> Result<()> {
        let maps = self.maps();
        match fs::metadata(&maps) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(
                "nothing is pinned at {}: no agent has run with this --pin-dir (start one with `proxy-agent run`), \
                 or it was cleaned up, or this is another mount namespace than the agent's",
                maps.display()
            ),
            Err(error) => Err(error).with_context(|| format!("cannot look at {}: run as root", maps.display())),
        }
    }

    /// Whether it is on a BPF file system, or can be made on one.
    ///
    /// # Errors
    /// It isn't; says what to do.
    pub(super) fn check_file_system(&self) -> Result<()> {
        let existing = self
            .root
            .ancestors()
            .find(|path| path.exists())
            .with_context(|| format!("{} is no absolute path", self.root.display()))?;
        let kind = nix::sys::statfs::statfs(existing)
            .with_context(|| format!("cannot look at {}", existing.display()))?
            .filesystem_type();
        if kind == BPF_FS_MAGIC {
            return Ok(());
        }
        if self.root.starts_with("/sys/fs/bpf") {
            bail!("no BPF file system at /sys/fs/bpf: mount it with `mount -t bpf bpf /sys/fs/bpf`");
        }
        bail!(
            "{} is not on a BPF file system: mount one with `mount -t bpf bpf DIR` and give --pin-dir DIR/proxy-agent",
            self.root.display()
        );
    }
}

/// Makes a directory, and those above it.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the pin directory {}", path.display()))
}

/// What stands in a directory; nothing if there is none.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .with_context(|| format!("cannot read {}", directory.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", directory.display())),
    }
}

/// Removes a pin, if it is there.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the pin {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The interface index at the beginning of a file's name.
pub(super) fn index_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.split('_').next()?.parse().ok()
}

/// Whether there is a device with an interface index: it may go while it is being attached to, and its end will be told, too.
pub(super) fn device_exists(index: u32) -> bool {
    nix::net::if_::if_indextoname(index).is_ok()
}

/// Holds the pin directory for this process; released on drop and by the kernel when the process ends.
#[derive(Debug)]
pub struct PinLock {
    _lock: Flock<OwnedFd>,
}

/// Who holds a pin directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process id, unless it is in a process namespace that this one can't see
    pub process: Option<u32>,
}

/// The holder of `inode` (`major:minor:number`) in the text of /proc/locks (proc(5)).
fn holder_in(locks: &str, inode: &str) -> Option<Holder> {
    locks
        .lines()
        .map(|line| line.split_ascii_whitespace().skip(1).collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&"FLOCK") && fields.get(4) == Some(&inode))
        .map(|fields| Holder {
            process: fields[3].parse().ok().filter(|&process| process != 0),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_carry_the_layout_version() {
        let pin = PinDirectory::new("/sys/fs/bpf/proxy-agent");
        assert_eq!(
            pin.map("services_v4"),
            PathBuf::from(format!("/sys/fs/bpf/proxy-agent/v{}/maps/services_v4", layout::VERSION))
        );
    }

    #[test]
    fn holder_is_read_from_proc_locks() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:1f:44 0 EOF\n2: FLOCK  ADVISORY  WRITE 1234 00:1f:44 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 99 00:1f:44 0 EOF\n3: FLOCK  ADVISORY  WRITE 0 00:1f:45 0 EOF\n";
        assert_eq!(holder_in(locks, "00:1f:44"), Some(Holder { process: Some(1234) }));
        assert_eq!(holder_in(locks, "00:1f:45"), Some(Holder { process: None }));
        assert_eq!(holder_in(locks, "00:1f:46"), None);
    }

    #[test]
    fn a_place_without_bpffs_names_the_mount_command() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = PinDirectory::new(directory.path().join("pins"))
            .claim()
            .expect_err("no bpffs");
        assert!(error.to_string().contains("mount -t bpf bpf"), "{error}");
    }
}
