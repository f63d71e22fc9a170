//! Maps and their entries, as bytes and as table types.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use proxy_common::layout::Plain;

use super::{address, bpf, from_bytes, object_get, object_info, object_pin, to_bytes};

/// Commands of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

/// `union bpf_attr` for the batch commands; the first two are called `in_batch` and `out_batch` there.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `union bpf_attr` for the commands on one entry of a map.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Beginning of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// Whether a write has failed because the map has no room: the word of hash maps, and that of LPM tries.
pub(in crate::dataplane) fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}

/// Beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::dataplane) struct MapInfo {
    kind: u32,
    /// Id of the map
    pub(in crate::dataplane) id: u32,
    /// Size of a key in bytes
    pub(in crate::dataplane) key_size: u32,
    /// Size of a value in bytes
    pub(in crate::dataplane) value_size: u32,
    /// How many entries it has room for
    pub(in crate::dataplane) max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
}

impl MapInfo {
    /// What the kernel says of a map.
    fn of(map: BorrowedFd<'_>) -> io::Result<Self> {
        // SAFETY: `MapInfo` is the beginning of `struct bpf_map_info` and holds integers only.
        unsafe { object_info(map) }
    }

    /// The name that the map was made with, cut to 15 characters.
    pub(in crate::dataplane) fn name(&self) -> &[u8] {
        self.name.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// Whether an update may make an entry, or replace one: `BPF_ANY`, `BPF_NOEXIST`, `BPF_EXIST` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(in crate::dataplane) enum Update {
    /// Either
    Any = 0,
    /// Only make
    New = 1,
    /// Only replace
    Present = 2,
}

/// A new map.
fn create(mut attributes: MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: `MapCreate` is the beginning of `union bpf_attr` for the command and holds no pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes)? };
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new ring buffer of so many bytes, a power of two and a multiple of a page.
pub(in crate::dataplane) fn ring(bytes: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_RINGBUF`
    const RING: u32 = 27;
    create(MapCreate {
        map_type: RING,
        max_entries: bytes,
        ..MapCreate::default()
    })
}

/// Removes an entry of a hash and gives the value that it had in the end. (Before Linux 5.14, that it had just before.)
pub(in crate::dataplane) fn take<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    // SAFETY: whoever opened the map has compared the sizes of its keys and values with these types.
    let entries = unsafe { Entries::new(map, size_of::<K>(), size_of::<V>()) };
    Ok(entries.take(&to_bytes(key))?.and_then(|value| from_bytes(&value)))
}

/// Calls `each` with every entry of a hash, array or trie map, some thousand a system call. Entries that come or go meanwhile
/// may be seen or not; none is seen twice because of others (the kernel goes bucket by bucket).
///
/// # Errors
/// If the kernel refuses, or the map has keys or values of another size.
pub(in crate::dataplane) fn scan<K: Plain, V: Plain>(
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, V),
) -> io::Result<()> {
    let info = MapInfo::of(map)?;
    if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "map {} has keys of {} and values of {} bytes",
                info.id, info.key_size, info.value_size
            ),
        ));
    }
    // SAFETY: just compared.
    let entries = unsafe { Entries::new(map, size_of::<K>(), size_of::<V>()) };
    entries.scan(|key, value| {
        if let Some((key, value)) = from_bytes(key).zip(from_bytes(value)) {
            each(key, value);
        }
    })
}

/// The kernel's place in a map between two batches: a bucket number for a hash, the last key for any other map.
type Place = [u64; 8];

/// The entries of a map as bytes: what the kernel reads and writes of each.
#[derive(Clone, Copy)]
struct Entries<'a> {
    map: BorrowedFd<'a>,
    /// Bytes of a key
    key: usize,
    /// Bytes of what is under one key: of a per-CPU map the values of all CPUs
    cell: usize,
}

impl<'a> Entries<'a> {
    /// Those of a map.
    ///
    /// # Safety
    /// The map must have keys and cells of these sizes: the kernel trusts in there being room for them.
    const unsafe fn new(map: BorrowedFd<'a>, key: usize, cell: usize) -> Self {
        Self { map, key, cell }
    }

    /// Runs a command on one entry; `false` if there is none.
    fn element(self, command: libc::c_int, key: &[u8], value: Option<&mut [u8]>, flags: Update) -> io::Result<bool> {
        assert!(
            key.len() == self.key && value.as_ref().is_none_or(|value| value.len() == self.cell),
            "keys and values have the map's sizes"
        );
        let mut attributes = Element {
            map_fd: self.map.as_raw_fd().cast_unsigned(),
            key: address(key.as_ptr().cast_mut()),
            // Of a command that has none the kernel wants to see none.
            value: value.map_or(0, |value| address(value.as_mut_ptr())),
            flags: flags as u64,
            ..Element::default()
        };
        // SAFETY: the key has the map's size, and so has the value, which callers leave out only with the command that has none.
        match unsafe { bpf(command, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The value of a key.
    fn get(self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
    }

    /// The value of a key, by a command that reads it.
    fn read(self, command: libc::c_int, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.cell];
        let found = self.element(command, key, Some(&mut value), Update::Any)?;
        Ok(found.then_some(value))
    }

    /// Removes a key and says whether it was there.
    fn remove(self, key: &[u8]) -> io::Result<bool> {
        self.element(BPF_MAP_DELETE_ELEM, key, None, Update::Any)
    }

    /// Removes a key and gives the value that it had in the end.
    fn take(self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        match self.read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key) {
            Err(error) if is_unknown(&error) => {
                let value = self.get(key)?;
                Ok(if self.remove(key)? { value } else { None })
            }
            taken => taken,
        }
    }

    /// Calls `each` with every entry, some thousand a system call; see [`scan`].
    fn scan(self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        if self.key > size_of::<Place>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a key is longer than any of ours",
            ));
        }
        // About a MiB, whatever the size of an entry.
        let mut capacity = ((1 << 20) / (self.key + self.cell)).clamp(1, 4096);
        let (mut from, mut to): (Option<Place>, Place) = (None, Place::default());
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(capacity * self.key, 0_u8);
            values.resize(capacity * self.cell, 0_u8);
            let mut attributes = Batch {
                from: from.as_mut().map_or(0, |from| address(from)),
                to: address(&raw mut to),
                keys: address(keys.as_mut_ptr()),
                values: address(values.as_mut_ptr()),
                count: u32::try_from(capacity).unwrap_or(u32::MAX),
                map_fd: self.map.as_raw_fd().cast_unsigned(),
                ..Batch::default()
            };
            // SAFETY: `keys` and `values` have room for `count` keys and values of the map, and the places for a key.
            let last = match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
                Ok(_) => false,
                // The end of the map; `count` entries came along.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A bucket with more entries than `count`: nothing was copied.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    capacity *= 2;
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let entries = keys.chunks_exact(self.key).zip(values.chunks_exact(self.cell));
            for (key, value) in entries.take(attributes.count as usize) {
                each(key, value);
            }
            if last {
                return Ok(());
            }
            from = Some(to);
        }
    }
}

/// Whether the kernel doesn't know `BPF_MAP_LOOKUP_AND_DELETE_ELEM` for a hash, which it does since Linux 5.14.
fn is_unknown(error: &io::Error) -> bool {
    /// `ENOTSUPP` (include/linux/errno.h)
    const NOT_SUPPORTED: i32 = 524;
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED)
    )
}

/// A map whose types are known at run time only: keys and values are bytes.
pub(in crate::dataplane) struct BytesMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of what is read and written under one key: of a per-CPU map the values of all CPUs
    cell: usize,
}

impl BytesMap {
    /// The map pinned at a path.
    pub(in crate::dataplane) fn open(path: &Path) -> io::Result<Self> {
        Self::new(object_get(path)?)
    }

    /// A map by its descriptor.
    pub(in crate::dataplane) fn new(fd: OwnedFd) -> io::Result<Self> {
        /// `BPF_MAP_TYPE_PERCPU_ARRAY`
        const PER_CPU_ARRAY: u32 = 6;
        let info = MapInfo::of(fd.as_fd())?;
        let value = info.value_size as usize;
        let cell = if info.kind == PER_CPU_ARRAY {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            value.next_multiple_of(8) * cpus
        } else {
            value
        };
        Ok(Self { fd, info, cell })
    }

    /// A new array of one value.
    pub(in crate::dataplane) fn of_one_value(value_size: u32) -> io::Result<Self> {
        /// `BPF_MAP_TYPE_ARRAY`
        const ARRAY: u32 = 2;
        Self::new(create(MapCreate {
            map_type: ARRAY,
            key_size: 4,
            value_size,
            max_entries: 1,
            map_flags: 0,
        })?)
    }

    /// Its descriptor.
    pub(in crate::dataplane) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Pins it at a path.
    pub(in crate::dataplane) fn pin(&self, path: &Path) -> io::Result<()> {
        object_pin(self.fd.as_fd(), path)
    }

    /// What the kernel says of it.
    pub(in crate::dataplane) const fn info(&self) -> &MapInfo {
        &self.info
    }

    fn entries(&self) -> Entries<'_> {
        // SAFETY: the sizes are the kernel's.
        unsafe { Entries::new(self.fd.as_fd(), self.info.key_size as usize, self.cell) }
    }

    /// The value of a key.
    pub(in crate::dataplane) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.entries().get(key)
    }

    /// Sets the value of a key. `false` if that is not allowed: there is an entry, or none.
    pub(in crate::dataplane) fn set(&self, key: &[u8], value: &[u8], update: Update) -> io::Result<bool> {
        let set = self
            .entries()
            .element(BPF_MAP_UPDATE_ELEM, key, Some(&mut value.to_vec()), update);
        match set {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            set => set,
        }
    }

    /// Removes a key and says whether it was there.
    pub(in crate::dataplane) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        self.entries().remove(key)
    }

    /// Removes a key and gives the value that it had in the end. (Before Linux 5.14, that it had just before.)
    pub(in crate::dataplane) fn take(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.entries().take(key)
    }

    /// Calls `each` with every entry, some thousand a system call; see [`scan`].
    pub(in crate::dataplane) fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        self.entries().scan(each)
    }
}

#[cfg(test)]
mod tests;
