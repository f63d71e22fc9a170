//! The network namespaces of the machine, other than the agent's own: those of processes, and those with a name.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

/// Where `ip netns` and container runtimes keep names of namespaces.
const NAMES: &str = "/run/netns";

/// Calls `each` within every other network namespace, on a thread of its own, until it gives `false`. Namespaces that are
/// gone meanwhile, or that can't be entered, are left out.
pub(super) fn visit_others(each: impl FnMut() -> bool + Send) {
    let own = identity(Path::new("/proc/thread-self/ns/net"));
    let mut seen: HashSet<_> = own.into_iter().collect();
    let mut others = Vec::new();
    for path in candidates() {
        if identity(&path).is_some_and(|identity| seen.insert(identity)) {
            // Held open: a process may end before its namespace's turn.
            others.extend(File::open(path).ok());
        }
    }
    visit(&others, each);
}

/// Calls `each` within these namespaces until it gives `false`. The thread ends with that, so nothing else is moved.
fn visit(namespaces: &[File], mut each: impl FnMut() -> bool + Send) {
    thread::scope(|scope| {
        let visit = move || {
            let entered = |namespace: &&File| match setns(namespace, CloneFlags::CLONE_NEWNET) {
                Ok(()) => true,
                Err(error) => {
                    tracing::debug!(%error, "a network namespace can't be entered");
                    false
                }
            };
            namespaces.iter().filter(entered).all(|_| each())
        };
        scope.spawn(visit);
    });
}

/// What tells namespaces apart.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let namespace = fs::metadata(path).ok()?;
    Some((namespace.dev(), namespace.ino()))
}

/// Paths to network namespaces, some to the same.
fn candidates() -> impl Iterator<Item = PathBuf> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten();
    let is_process = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let processes = entries("/proc").filter(move |entry| is_process(&entry.file_name()));
    let of_processes = processes.map(|process| process.path().join("ns/net"));
    of_processes.chain(entries(NAMES).map(|name| name.path()))
}
