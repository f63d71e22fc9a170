//! Whether a pinned map is what its name says: reopening a pin is unchecked in aya 0.14, and a map of another shape
//! would be misread or, with larger values, written past our buffers.

use std::{fmt, io, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapError, MapInfo, MapType};
use proxy_common::layout::{TableKind, TableSpec};

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h).
const BPF_F_NO_PREALLOC: u32 = 1;

/// What must agree between a table and a pinned map. The number of entries may differ: a flag chooses it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    kind: MapType,
    key_size: u32,
    value_size: u32,
    flags: u32,
}

impl Shape {
    fn of(spec: &TableSpec) -> Self {
        let (kind, flags) = match spec.kind {
            TableKind::Hash => (MapType::Hash, 0),
            TableKind::SparseHash => (MapType::Hash, BPF_F_NO_PREALLOC),
            TableKind::Array => (MapType::Array, 0),
            TableKind::PerCpuArray => (MapType::PerCpuArray, 0),
            TableKind::LruHash => (MapType::LruHash, 0),
            TableKind::ArrayOfRings => (MapType::ArrayOfMaps, 0),
            TableKind::LpmTrie => (MapType::LpmTrie, BPF_F_NO_PREALLOC),
        };
        Self {
            kind,
            key_size: spec.key_size,
            value_size: spec.value_size,
            flags,
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "type {:?}, key {} bytes, value {} bytes, flags {:#x}",
            self.kind, self.key_size, self.value_size, self.flags
        )
    }
}

/// Compares the map pinned at `path` with its table; gives its number of entries, `None` if nothing is pinned there.
///
/// # Errors
/// If the shapes differ or the pin can't be opened.
pub(super) fn check(path: &Path, spec: &TableSpec) -> Result<Option<u32>> {
    let info = match MapInfo::from_pin(path) {
        Ok(info) => info,
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot open the map pinned at {}", path.display())),
    };
    let found = Shape {
        kind: info
            .map_type()
            .with_context(|| format!("map pinned at {}", path.display()))?,
        key_size: info.key_size(),
        value_size: info.value_size(),
        flags: info.map_flags(),
    };
    let wanted = Shape::of(spec);
    if found != wanted {
        bail!(
            "the map pinned at {} is not the table {} of this agent: it has {found}; needed is {wanted}. \
             Remove it with `proxy-agent cleanup`",
            path.display(),
            spec.name
        );
    }
    if info.max_entries() != spec.max_entries {
        tracing::debug!(
            table = spec.name,
            entries = info.max_entries(),
            "the pinned table keeps the size it was made with"
        );
    }
    Ok(Some(info.max_entries()))
}
