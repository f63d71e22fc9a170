//! Follows a directory of manifests.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    panic,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::directory::{Directory, is_manifest, problem, problems_of};
use crate::{model::Problem, source::Event};

/// Changes that follow each other this closely are looked at together.
const QUIET: Duration = Duration::from_millis(20);

/// ... but never later than this after the first of them.
const LATEST: Duration = Duration::from_millis(200);

/// How often a directory is looked at that can't be read or watched.
const RETRY: Duration = Duration::from_secs(1);

/// How often a watched directory is looked at nevertheless: a link's target may be outside it, and a network file
/// system tells nothing of others' changes.
const RELOOK: Duration = Duration::from_mins(1);

/// What to look at.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    Everything,
    Files(BTreeSet<Arc<Path>>),
}

/// The kernel's watch on a directory, renewed at every look: the name may lead to another directory by now.
#[derive(Debug)]
struct Watch {
    watcher: Option<RecommendedWatcher>,
    looks: UnboundedSender<Look>,
}

/// Tells `events` what the directory holds for the node of this name, and then how it changes, until nobody listens any more.
///
/// The first look lists everything; it waits for a directory that isn't there or can't be read, and says so.
pub async fn watch(directory: PathBuf, node_name: String, events: mpsc::Sender<Event>) {
    // The kernel's watch names absolute paths.
    let path = std::path::absolute(&directory).unwrap_or(directory);
    let mut directory = Directory::new(path.clone(), node_name);
    let (sender, mut looks) = mpsc::unbounded_channel();
    let mut watch = Watch {
        watcher: None,
        looks: sender,
    };
    let mut look = Look::Everything;
    let mut had_problem = false;
    loop {
        let task = spawn_blocking(move || {
            let result = take(&mut directory, &mut watch, look);
            (directory, watch, result)
        });
        let result;
        (directory, watch, result) = match task.await {
            Ok(done) => done,
            Err(error) if error.is_panic() => panic::resume_unwind(error.into_panic()),
            Err(_) => return,
        };
        let (mut told, problem) = result;
        let patience = if problem.is_some() { RETRY } else { RELOOK };
        if problem.is_some() || had_problem {
            had_problem = problem.is_some();
            // A directory that can't be read is not listed at all: nothing is left out.
            told.insert(0, problems_of(&path, problem.into_iter().collect(), false));
        }
        for event in told {
            if events.send(event).await.is_err() {
                return;
            }
        }
        look = tokio::select! {
            look = next(&mut looks, patience) => look,
            () = events.closed() => return,
        };
    }
}

/// Takes a look: what changed, and what is wrong with the directory itself.
fn take(directory: &mut Directory, watch: &mut Watch, look: Look) -> (Vec<Event>, Option<Problem>) {
    let read = |result: io::Result<Vec<Event>>, path: &Path| match result {
        Ok(events) => (events, None),
        Err(error) => {
            let reason = format!("can't be read: {error}; what it held before stays served, and it is tried again");
            (Vec::new(), Some(problem(path, reason)))
        }
    };
    match look {
        Look::Files(paths) => {
            let result = directory.rescan(paths);
            read(result, directory.path())
        }
        Look::Everything => {
            // Watched before it is read, so that no change falls between.
            let watched = watch.renew(directory.path());
            let result = directory.scan();
            let (events, unreadable) = read(result, directory.path());
            let unwatched = watched.err().map(|error| {
                let reason = format!("can't be watched: {error}; it is looked at every {RETRY:?} instead");
                problem(directory.path(), reason)
            });
            (events, unreadable.or(unwatched))
        }
    }
}

impl Watch {
    fn renew(&mut self, directory: &Path) -> notify::Result<()> {
        let watcher = if let Some(watcher) = &mut self.watcher {
            watcher
        } else {
            let looks = self.looks.clone();
            let path = directory.to_owned();
            self.watcher.insert(notify::recommended_watcher(move |event| {
                if let Some(look) = look_after(&path, event) {
                    // Nobody listens any more when the watch ends.
                    let _ = looks.send(look);
                }
            })?)
        };
        watcher.watch(directory, RecursiveMode::NonRecursive)
    }
}

/// What to look at after an event of the kernel's watch.
fn look_after(directory: &Path, event: notify::Result<notify::Event>) -> Option<Look> {
    let Ok(event) = event else {
        return Some(Look::Everything);
    };
    if event.need_rescan() {
        return Some(Look::Everything);
    }
    let is_complete = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Create(CreateKind::Folder)
        | EventKind::Remove(_)
        | EventKind::Modify(ModifyKind::Name(_) | ModifyKind::Metadata(_)) => true,
        // A file that is being written is read when its writer closes it; a link is there at once.
        EventKind::Create(CreateKind::File) => event.paths.iter().any(|path| is_link(path)),
        _ => false,
    };
    if !is_complete {
        return None;
    }
    let mut files = BTreeSet::new();
    for path in event.paths {
        let name = path.file_name().unwrap_or_default();
        if is_manifest(directory, &path) {
            files.insert(path.into());
        } else if path == directory || name.as_encoded_bytes().starts_with(b"..") {
            // Files of a mounted ConfigMap are links through `..data`, which is replaced as a whole.
            return Some(Look::Everything);
        }
    }
    (!files.is_empty()).then_some(Look::Files(files))
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

/// Waits for something to look at, and for the changes around it to settle.
async fn next(looks: &mut UnboundedReceiver<Look>, patience: Duration) -> Look {
    let Ok(Some(mut look)) = timeout(patience, looks.recv()).await else {
        return Look::Everything;
    };
    let latest = Instant::now() + LATEST;
    while let Ok(Some(more)) = timeout_at(latest.min(Instant::now() + QUIET), looks.recv()).await {
        look = match (look, more) {
            (Look::Files(mut files), Look::Files(mut more)) => {
                files.append(&mut more);
                Look::Files(files)
            }
            _ => Look::Everything,
        };
    }
    look
}
