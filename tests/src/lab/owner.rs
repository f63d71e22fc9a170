//! What a lab owns on the machine: a directory under /run with a file system for pins, namespaces of one prefix, and
//! processes. Written down there, so that all can be found and removed after its owner was killed.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{namespace, wait_until};

/// Every lab's prefix starts so.
const PREFIX: &str = "lab-";
/// In the `owner` file of a lab that stands without a process (`proxy-lab up`).
const DETACHED: &str = "detached";

/// A process, told from a later one with the same number by its start time (proc(5), field 22 of stat, in clock ticks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ProcessId {
    pid: i32,
    start: u64,
}

impl ProcessId {
    fn running(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command in parentheses may hold blanks: fields are counted after it, from field 3 on.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        (state != "Z").then_some(Self { pid, start })
    }

    fn is_alive(self) -> bool {
        Self::running(self.pid) == Some(self)
    }

    fn parse(line: &str) -> Option<Self> {
        let (pid, start) = line.split_once(' ')?;
        Some(Self {
            pid: pid.parse().ok()?,
            start: start.parse().ok()?,
        })
    }

    fn line(self) -> String {
        format!("{} {}\n", self.pid, self.start)
    }
}

/// The directory and prefix of one lab.
#[derive(Clone, Debug)]
pub(super) struct Estate {
    prefix: String,
}

impl Estate {
    /// Takes a name nobody else has, for as long as this process lives.
    pub(super) fn for_this_process() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let this = ProcessId::running(process::id().cast_signed()).context("no /proc/PID/stat of this process")?;
        Self::create(format!("{PREFIX}{}-{number}", process::id()), &this.line())
    }

    /// Takes a name for a lab that outlives this process.
    ///
    /// # Errors
    /// A lab of that name stands already.
    pub(super) fn detached(name: &str) -> Result<Self> {
        Self::create(format!("{PREFIX}{name}"), DETACHED)
    }

    fn create(prefix: String, owner: &str) -> Result<Self> {
        let estate = Self { prefix };
        let directory = estate.directory();
        fs::create_dir(&directory).with_context(|| format!("lab directory {}", directory.display()))?;
        fs::write(directory.join("owner"), owner)?;
        for part in [estate.bpffs(), estate.manifests(), estate.logs()] {
            fs::create_dir(part)?;
        }
        mount(
            Some("bpf"),
            &estate.bpffs(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting a BPF file system on {}", estate.bpffs().display()))?;
        Ok(estate)
    }

    /// An estate that exists, by the name it was made detached with.
    pub(super) fn existing(name: &str) -> Option<Self> {
        let estate = Self {
            prefix: format!("{PREFIX}{name}"),
        };
        estate.directory().join("owner").exists().then_some(estate)
    }

    /// Names of namespaces start with it.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn directory(&self) -> PathBuf {
        Path::new("/run").join(&self.prefix)
    }

    pub(super) fn bpffs(&self) -> PathBuf {
        self.directory().join("bpf")
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.directory().join("manifests")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.directory().join("log")
    }

    /// Writes down a process that must end with the lab.
    pub(super) fn adopt(&self, pid: u32) -> Result<()> {
        // A process that is gone already need not be ended.
        let Some(process) = ProcessId::running(pid.cast_signed()) else {
            return Ok(());
        };
        let path = self.directory().join("processes");
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(process.line().as_bytes())?;
        Ok(())
    }

    /// Processes of the lab that run, by pid.
    pub(super) fn processes(&self) -> Vec<i32> {
        self.adopted()
            .into_iter()
            .filter(|process| process.is_alive())
            .map(|process| process.pid)
            .collect()
    }

    fn adopted(&self) -> Vec<ProcessId> {
        let text = fs::read_to_string(self.directory().join("processes")).unwrap_or_default();
        text.lines().filter_map(ProcessId::parse).collect()
    }

    /// Ends the processes and removes namespaces, pins and files. What is gone already is no error.
    pub(super) fn remove(&self) -> Result<()> {
        // An interrupt may ask for it while it is being done.
        static REMOVING: Mutex<()> = Mutex::new(());
        let _removing = REMOVING.lock().unwrap_or_else(PoisonError::into_inner);
        for process in self.adopted() {
            if process.is_alive() {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            wait_until("a killed process ends", Duration::from_secs(10), || {
                (!process.is_alive()).then_some(())
            })?;
        }
        namespace::remove_all(&format!("{}-", self.prefix))?;
        match umount2(&self.bpffs(), MntFlags::MNT_DETACH) {
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(error) => return Err(error).context("unmounting the BPF file system"),
        }
        match fs::remove_dir_all(self.directory()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn owner_is_dead(&self) -> bool {
        let owner = fs::read_to_string(self.directory().join("owner")).unwrap_or_default();
        owner
            .lines()
            .next()
            .and_then(ProcessId::parse)
            .is_some_and(|owner| !owner.is_alive())
    }
}

/// Names of the labs that stand, with the pids of their processes.
pub(super) fn standing() -> Vec<Estate> {
    let entries = fs::read_dir("/run").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found: Vec<Estate> = names
        .filter_map(|name| name.strip_prefix(PREFIX).and_then(Estate::existing))
        .collect();
    found.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    found
}

/// Removes labs whose owner was killed before it could do so itself.
pub(super) fn sweep() {
    for estate in standing().iter().filter(|estate| estate.owner_is_dead()) {
        // Another process may be sweeping the same one: whoever comes second finds less to do.
        if let Err(error) = estate.remove() {
            eprintln!("lab: removing what is left of {}: {error:#}", estate.prefix);
        }
    }
}
