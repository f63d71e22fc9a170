//! What a directory's files hold, and how it changes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, hash_map},
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::document::{Contents, Key, Object, ObjectKind};
use crate::{
    model::{ObjectName, Problem},
    source::{Change, Event},
};

/// The files of a directory, and the objects they hold.
///
/// Objects themselves are not kept, only their names: the model has them.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    node_name: String,
    files: BTreeMap<Arc<Path>, File>,
    /// The file that an object is served from
    owners: HashMap<Key, Arc<Path>>,
    was_listed: bool,
}

#[derive(Debug, Default)]
struct File {
    /// Hash of the text that was read last
    digest: Option<u64>,
    /// Objects that are served from this file
    owned: BTreeSet<Key>,
    /// Objects in this file that are served from another one
    shadowed: BTreeSet<Key>,
    has_problems: bool,
}

/// What a look at some files changed.
#[derive(Debug, Default)]
struct Difference {
    applied: Vec<Object>,
    released: BTreeSet<Key>,
    problems: Vec<Event>,
}

impl Directory {
    /// Knows no file yet.
    pub(super) fn new(path: PathBuf, node_name: String) -> Self {
        Self {
            path,
            node_name,
            files: BTreeMap::new(),
            owners: HashMap::new(),
            was_listed: false,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Looks at all files. The events tell what changed; those of the first look list everything.
    ///
    /// # Errors
    /// Those of reading the directory; nothing changes then.
    pub(super) fn scan(&mut self) -> io::Result<Vec<Event>> {
        let mut paths: BTreeSet<Arc<Path>> = self.files.keys().cloned().collect();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if is_manifest(&self.path, &path) {
                paths.insert(path.into());
            }
        }
        let difference = self.look(paths);
        Ok(if self.was_listed {
            difference.into_changes(&self.node_name)
        } else {
            self.was_listed = true;
            difference.into_listing(&self.node_name)
        })
    }

    /// Looks at some files only, when the directory has been scanned before.
    ///
    /// # Errors
    /// The directory is gone; nothing changes then.
    pub(super) fn rescan(&mut self, paths: BTreeSet<Arc<Path>>) -> io::Result<Vec<Event>> {
        fs::metadata(&self.path)?;
        Ok(self.look(paths).into_changes(&self.node_name))
    }

    fn look(&mut self, mut paths: BTreeSet<Arc<Path>>) -> Difference {
        let mut difference = Difference::default();
        while let Some(path) = paths.pop_first() {
            let released = self.read(&path, &mut difference);
            if released.is_empty() {
                continue;
            }
            // A file that holds a released object as well takes it over.
            for (path, file) in &mut self.files {
                if !file.shadowed.is_disjoint(&released) {
                    file.digest = None;
                    paths.insert(Arc::clone(path));
                }
            }
            difference.released.extend(released);
        }
        difference.released.retain(|key| !self.owners.contains_key(key));
        difference
    }

    /// Reads a file; returns the objects that it no longer holds.
    fn read(&mut self, path: &Arc<Path>, difference: &mut Difference) -> BTreeSet<Key> {
        let contents = match read_text(path) {
            Ok(text) => {
                let mut hasher = DefaultHasher::new();
                text.hash(&mut hasher);
                let digest = Some(hasher.finish());
                let file = self.files.entry(Arc::clone(path)).or_default();
                if file.digest == digest {
                    return BTreeSet::new();
                }
                file.digest = digest;
                Contents::parse(path, &text)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
                let gone = self.files.remove(path).unwrap_or_default();
                if gone.has_problems {
                    difference.problems.push(problems_of(path, Vec::new(), false));
                }
                for key in &gone.owned {
                    self.owners.remove(key);
                }
                return gone.owned;
            }
            Err(error) => {
                self.files.entry(Arc::clone(path)).or_default().digest = None;
                Contents {
                    problems: vec![problem(path, format!("can't be read: {error}"))],
                    has_unread: true,
                    ..Contents::default()
                }
            }
        };
        self.take_over(path, contents, difference)
    }

    fn take_over(&mut self, path: &Arc<Path>, contents: Contents, difference: &mut Difference) -> BTreeSet<Key> {
        let mut problems = contents.problems;
        let mut owned = BTreeSet::new();
        let mut shadowed = BTreeSet::new();
        for object in contents.objects {
            let key = object.key();
            let owner = match self.owners.entry(key.clone()) {
                hash_map::Entry::Vacant(vacant) => Arc::clone(vacant.insert(Arc::clone(path))),
                hash_map::Entry::Occupied(occupied) => Arc::clone(occupied.get()),
            };
            if owner != *path {
                problems.push(problem(
                    path,
                    format!("{key} is in {} already: it is served from there", owner.display()),
                ));
                shadowed.insert(key);
            } else if owned.insert(key.clone()) {
                difference.applied.push(object);
            } else {
                problems.push(problem(
                    path,
                    format!("{key} is in this file twice: the first one is served"),
                ));
            }
        }
        let file = self.files.entry(Arc::clone(path)).or_default();
        let mut released: BTreeSet<Key> = file.owned.difference(&owned).cloned().collect();
        if contents.has_unread {
            // They may be among what could not be read: they stay as they are.
            owned.append(&mut released);
        }
        file.owned = owned;
        file.shadowed = shadowed;
        if file.has_problems || !problems.is_empty() {
            file.has_problems = !problems.is_empty();
            difference
                .problems
                .push(problems_of(path, problems, contents.has_unread));
        }
        for key in &released {
            self.owners.remove(key);
        }
        released
    }
}

impl Difference {
    /// Lists everything; the Node comes first, so that the Services are planned only once. What could not be read is
    /// said before, so that the listing isn't taken for complete.
    fn into_listing(self, node_name: &str) -> Vec<Event> {
        let (mut nodes, mut ranges, mut services, mut slices) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for object in self.applied {
            match object {
                Object::Node(object) => nodes.push(*object),
                Object::ServiceCIDR(object) => ranges.push(*object),
                Object::Service(object) => services.push(*object),
                Object::EndpointSlice(object) => slices.push(*object),
            }
        }
        let mut events = self.problems;
        events.push(Event::Node(Change::Replace(nodes).read(node_name)));
        events.push(Event::ServiceCIDR(Change::Replace(ranges).read(node_name)));
        events.push(Event::EndpointSlice(Change::Replace(slices).read(node_name)));
        events.push(Event::Service(Change::Replace(services).read(node_name)));
        events
    }

    /// Endpoints come before the Service that they belong to, and go after it, so that it is never served without.
    /// Problems come last: a file is called readable only when its objects have been told.
    fn into_changes(mut self, node_name: &str) -> Vec<Event> {
        self.applied.sort_by_key(|object| Reverse(object.kind()));
        let applied = self.applied.into_iter().map(|object| match object {
            Object::Node(object) => Event::Node(Change::Apply(object).read(node_name)),
            Object::ServiceCIDR(object) => Event::ServiceCIDR(Change::Apply(object).read(node_name)),
            Object::Service(object) => Event::Service(Change::Apply(object).read(node_name)),
            Object::EndpointSlice(object) => Event::EndpointSlice(Change::Apply(object).read(node_name)),
        });
        let released = self.released.into_iter().map(|key| deletion(key.kind, key.name));
        applied.chain(released).chain(self.problems).collect()
    }
}

fn deletion(kind: ObjectKind, name: ObjectName) -> Event {
    match kind {
        ObjectKind::Node => Event::Node(Change::Delete(name)),
        ObjectKind::ServiceCIDR => Event::ServiceCIDR(Change::Delete(name)),
        ObjectKind::Service => Event::Service(Change::Delete(name)),
        ObjectKind::EndpointSlice => Event::EndpointSlice(Change::Delete(name)),
    }
}

/// Reads a file, or what a link points to (files of a mounted ConfigMap are links). What is no file, such as a pipe,
/// could hold up the reader for good.
fn read_text(path: &Path) -> io::Result<String> {
    let kind = fs::metadata(path)?;
    if kind.is_file() {
        fs::read_to_string(path)
    } else if kind.is_dir() {
        Err(io::Error::other("it is a directory: move its files up, or rename it"))
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

/// Whether a path is one of the files that are read: `*.yaml`, `*.yml` or `*.json` at the top level, not hidden.
pub(super) fn is_manifest(directory: &Path, path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    path.parent() == Some(directory) && !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// A problem with a whole file or directory.
pub(super) fn problem(path: &Path, reason: String) -> Problem {
    Problem {
        object: path.display().to_string(),
        field: String::new(),
        reason,
    }
}

/// What is wrong with a file or directory now.
pub(super) fn problems_of(path: &Path, problems: Vec<Problem>, has_unread: bool) -> Event {
    Event::Problems {
        origin: path.display().to_string(),
        problems,
        has_unread,
    }
}
