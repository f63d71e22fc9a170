//! Objects from a directory of manifests: the embedded default, no cluster needed.
//!
//! Read are the files `*.yaml`, `*.yml` and `*.json` at the top level of the directory, as `kubectl apply -f DIR` does;
//! hidden files and subdirectories are not (one that is called like a file is a mistake, and named), so that a mounted ConfigMap (whose files are links into a hidden
//! subdirectory) is read once. A file may hold several documents, and lists. Services, EndpointSlices, Nodes and
//! ServiceCIDRs count, all else is passed over.
//!
//! Invariant: bad input takes nothing away. While a file, or a document in it, can't be read, the objects that the file
//! held before stay as they are; while the directory can't be read, all do. What a file held before this process began is
//! not known: the first listing says that it may leave something out.

mod directory;
mod document;
mod fields;
mod watch;

use std::{io, path::Path};

use directory::Directory;
pub use watch::watch;

use super::Event;

/// Reads a directory once, for the node of this name; the events list all there is.
///
/// # Errors
/// The directory can't be read. A file that can't be read is a [`Event::Problems`].
pub fn read(directory: &Path, node_name: &str) -> io::Result<Vec<Event>> {
    Directory::new(directory.to_owned(), node_name.to_owned()).scan()
}
