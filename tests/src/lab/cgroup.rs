//! A cgroup for each node, in which its processes and those of its pods are, so that each agent serves the sockets of its own
//! node, as on a machine of its own.
//!
//! The test process plays all of them, with a thread each: a threaded cgroup takes single threads of a process
//! (Documentation/admin-guide/cgroup-v2.rst, "Threads"), which must be below one that the whole process is in. What is started
//! by a thread is born in the thread's cgroup.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::wait_until;

/// Names of the cgroups of test processes start so; the process id follows.
const PREFIX: &str = "lab-";

/// How many labs of this process stand, and where it was before the first.
static RESIDENCE: Mutex<Option<Residence>> = Mutex::new(None);

struct Residence {
    labs: u32,
    made: u32,
    home: PathBuf,
    here: PathBuf,
}

/// The cgroups of one lab; removed when dropped.
#[derive(Debug)]
pub(super) struct Cgroups {
    here: PathBuf,
    number: u32,
    made: Vec<PathBuf>,
}

impl Cgroups {
    /// Moves this process to a cgroup of its own, unless another lab has; `None` where there is no cgroup2 hierarchy to do so in.
    pub(super) fn found() -> Option<Self> {
        let mut residence = RESIDENCE.lock().unwrap_or_else(PoisonError::into_inner);
        if residence.is_none() {
            let home = home()?;
            sweep(&home);
            *residence = Some(Residence::take(home).ok()?);
        }
        let residence = residence.as_mut()?;
        residence.labs += 1;
        residence.made += 1;
        Some(Self {
            here: residence.here.clone(),
            number: residence.made,
            made: Vec::new(),
        })
    }

    /// Makes the cgroup of a node.
    pub(super) fn make(&mut self, node: &str) -> Result<PathBuf> {
        let path = self.here.join(format!("{}-{node}", self.number));
        fs::create_dir(&path).with_context(|| format!("making cgroup {}", path.display()))?;
        self.made.push(path.clone());
        fs::write(path.join("cgroup.type"), "threaded").with_context(|| format!("cgroup {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        let mut residence = RESIDENCE.lock().unwrap_or_else(PoisonError::into_inner);
        for path in &self.made {
            remove(path);
        }
        if let Some(standing) = residence.as_mut() {
            standing.labs -= 1;
            if standing.labs == 0 {
                *residence = None;
            }
        }
    }
}

impl Residence {
    fn take(home: PathBuf) -> io::Result<Self> {
        let here = home.join(format!("{PREFIX}{}", process::id()));
        fs::create_dir(&here)?;
        let residence = Self {
            labs: 0,
            made: 0,
            home,
            here,
        };
        fs::write(residence.here.join("cgroup.procs"), process::id().to_string())?;
        Ok(residence)
    }
}

impl Drop for Residence {
    fn drop(&mut self) {
        // Where this process may not go back to, it stays.
        if fs::write(self.home.join("cgroup.procs"), process::id().to_string()).is_ok() {
            remove(&self.here);
        }
    }
}

/// The cgroup that the calling thread is in, on the first cgroup2 hierarchy that is mounted.
fn home() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let root = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then(|| mount.split(' ').nth(4))?
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(root).join(own))
}

/// Removes all cgroups of this process, which ends without dropping anything; what it started must have ended.
pub(super) fn abandon() {
    let mut residence = RESIDENCE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(standing) = residence.take() {
        // All threads go back with it. What fails here fails again when it is dropped, and is told then.
        let _ = fs::write(standing.home.join("cgroup.procs"), process::id().to_string());
        parts(&standing.here).for_each(|part| remove(&part));
    }
}

/// Removes the cgroups of processes that were killed.
fn sweep(home: &Path) {
    let entries = fs::read_dir(home).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let is_gone = process.is_some_and(|process| !Path::new("/proc").join(process).exists());
        if is_gone {
            for part in parts(&entry.path()) {
                let _ = fs::remove_dir(part);
            }
            // Another process may be sweeping the same one.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The cgroups of nodes.
fn parts(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir())
}

/// Removes a cgroup, once the threads in it have ended: they do so a moment after they are joined.
fn remove(path: &Path) {
    let removed = wait_until("a cgroup is empty", Duration::from_secs(5), || {
        fs::remove_dir(path)
            .map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
            .then_some(())
    });
    if let Err(error) = removed {
        eprintln!("lab: removing cgroup {}: {error:#}", path.display());
    }
}
