//! All `unsafe` of the agent: table types as bytes for aya, and the bpf(2) commands that aya does not have.
#![expect(unsafe_code, reason = "the one file where bytes cross into the kernel")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use aya_log::EbpfLogger;
use proxy_common::layout::Plain;
use tokio::io::unix::AsyncFd;

/// A table type as aya takes it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Raw<T: Plain>(pub(super) T);

// SAFETY: `Plain` is sealed to types without padding of which any bit pattern is a value, and `Raw` is transparent.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

/// Commands of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `union bpf_attr` for `BPF_OBJ_GET`.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
#[derive(Default)]
struct GetInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `union bpf_attr` for `BPF_LINK_UPDATE`.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// `union bpf_attr` for `BPF_LINK_DETACH`.
#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

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

/// Beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MapInfo {
    kind: u32,
    /// Id of the map
    pub(super) id: u32,
    /// Size of a key in bytes
    pub(super) key_size: u32,
    /// Size of a value in bytes
    pub(super) value_size: u32,
    /// How many entries it has room for
    pub(super) max_entries: u32,
    map_flags: u32,
    name: [u8; 16],
}

impl MapInfo {
    /// The name that the map was made with, cut to 15 characters.
    pub(super) fn name(&self) -> &[u8] {
        self.name.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// Beginning of `struct bpf_link_info` for a tcx link; one of XDP has the same fields but for the last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TcxLinkInfo {
    kind: u32,
    /// Id of the link
    pub(super) id: u32,
    /// Id of the program
    pub(super) program: u32,
    reserved: u32,
    /// Interface it is attached to; 0 when that is gone
    pub(super) ifindex: u32,
    attach_type: u32,
}

/// Beginning of `struct bpf_link_info` for a link to a cgroup. The id of the cgroup is 64 bits in the kernel's alignment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CgroupLinkInfo {
    kind: u32,
    id: u32,
    /// Id of the program
    pub(super) program: u32,
    reserved: u32,
    cgroup: u64,
    attach_type: u32,
    end: u32,
}

impl CgroupLinkInfo {
    /// `BPF_LINK_TYPE_CGROUP` (include/uapi/linux/bpf.h).
    const KIND: u32 = 3;

    /// Id of the cgroup, the inode number of its directory; 0 when that is gone.
    pub(super) const fn cgroup(&self) -> u64 {
        if self.kind == Self::KIND { self.cgroup } else { 0 }
    }
}

/// Calls bpf(2).
///
/// # Safety
/// `A` must be a prefix of `union bpf_attr` for `command`, and pointers in it valid for what the kernel reads and writes.
unsafe fn bpf<A>(command: libc::c_int, attributes: &mut A) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads and writes at most the given size of `attributes`; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(libc::c_int::try_from(result).expect("bpf(2) returns an int"))
    }
}

fn address<T: ?Sized>(pointer: *mut T) -> u64 {
    pointer.cast::<u8>().addr() as u64
}

fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("structures of the kernel are small")
}

/// Has the allocator of glibc keep little that is free: what is large gets pages of its own, which go back with it, and threads
/// share one heap. Others have their own ways.
pub(super) fn keep_little_memory() {
    #[cfg(target_env = "gnu")]
    {
        /// Bytes; without a word glibc raises it with what is freed, up to 32 MiB.
        const LARGE: libc::c_int = 128 * 1024;
        // SAFETY: mallopt(3) takes any two integers.
        unsafe {
            libc::mallopt(libc::M_ARENA_MAX, 1);
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        }
    }
}

/// Gives back to the kernel what is free in the allocator of glibc.
pub(super) fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The map, program or link pinned at a path.
pub(super) fn object_get(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = ObjGet {
        pathname: address(path.as_ptr().cast_mut()),
        ..ObjGet::default()
    };
    // SAFETY: `pathname` points to a string with its terminating zero that outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attributes)? };
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, program or link at a path.
pub(super) fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = ObjGet {
        pathname: address(path.as_ptr().cast_mut()),
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        ..ObjGet::default()
    };
    // SAFETY: as in `object_get`.
    unsafe { bpf(BPF_OBJ_PIN, &mut attributes)? };
    Ok(())
}

/// Replaces a link's program, in one step.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        ..LinkUpdate::default()
    };
    // SAFETY: `LinkUpdate` is the beginning of `union bpf_attr` for the command and holds no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes)? };
    Ok(())
}

/// The cookie of a socket's network namespace, by which programs know it (Linux 5.14).
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    /// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h).
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("it is 8");
    // SAFETY: `cookie` is valid for writes of `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

/// Detaches a link's program at once. Removing the link's pin does so only some time later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = LinkDetach {
        link_fd: link.as_raw_fd().cast_unsigned(),
    };
    // SAFETY: `LinkDetach` is the beginning of `union bpf_attr` for the command and holds no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut attributes)? };
    Ok(())
}

/// What the kernel says of a map or link.
///
/// # Safety
/// `I` must be the beginning of the kernel's information on that kind of object, and any bit pattern a value of it.
unsafe fn object_info<I: Default>(object: BorrowedFd<'_>) -> io::Result<I> {
    let mut info = I::default();
    let mut attributes = GetInfo {
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        info_len: size::<I>(),
        info: address(&raw mut info),
    };
    // SAFETY: `info` is valid for writes of `info_len` bytes; the rest is the caller's promise.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
}

/// The readiness of the ring buffer that the programs log to; needs a tokio runtime.
pub(super) fn readiness<L>(logger: EbpfLogger<L>) -> io::Result<AsyncFd<EbpfLogger<L>>> {
    // SAFETY: the logger owns its ring buffer and gives the descriptor of that, always the same, until it is dropped.
    unsafe { AsyncFd::register(logger) }.map_err(Into::into)
}

/// A new ring buffer of so many bytes, a power of two and a multiple of a page.
pub(super) fn ring(bytes: u32) -> io::Result<OwnedFd> {
    /// `BPF_MAP_TYPE_RINGBUF`
    const RING: u32 = 27;
    let mut attributes = MapCreate {
        map_type: RING,
        max_entries: bytes,
        ..MapCreate::default()
    };
    // SAFETY: `MapCreate` is the beginning of `union bpf_attr` for the command and holds no pointers.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes)? };
    // SAFETY: the kernel just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of a tcx link.
pub(super) fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<TcxLinkInfo> {
    // SAFETY: `TcxLinkInfo` is the beginning of `struct bpf_link_info` and holds integers only.
    unsafe { object_info(link) }
}

/// What the kernel says of a link to a cgroup.
pub(super) fn cgroup_link_info(link: BorrowedFd<'_>) -> io::Result<CgroupLinkInfo> {
    // SAFETY: `CgroupLinkInfo` is the beginning of `struct bpf_link_info` and holds integers only.
    unsafe { object_info(link) }
}

/// The kernel's place in a map between two batches: a bucket number for a hash, the last key for any other map.
type Place = [u64; 8];

/// Whether the kernel doesn't know `BPF_MAP_LOOKUP_AND_DELETE_ELEM` for a hash, which it does since Linux 5.14.
fn is_unknown(error: &io::Error) -> bool {
    /// `ENOTSUPP` (include/linux/errno.h)
    const NOT_SUPPORTED: i32 = 524;
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | NOT_SUPPORTED)
    )
}

/// Removes an entry of a hash and gives the value that it had in the end. (Before Linux 5.14, that it had just before.)
pub(super) fn take<K: Plain, V: Plain>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let (mut key, mut value) = (*key, std::mem::MaybeUninit::<V>::zeroed());
    let mut attributes = Element {
        map_fd: map.as_raw_fd().cast_unsigned(),
        key: address(&raw mut key),
        value: address(value.as_mut_ptr()),
        ..Element::default()
    };
    let mut run = |command| {
        if command == BPF_MAP_DELETE_ELEM {
            // The kernel insists.
            attributes.value = 0;
        }
        // SAFETY: whoever opened the map has compared the sizes of its keys and values with these types.
        match unsafe { bpf(command, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    };
    let taken = match run(BPF_MAP_LOOKUP_AND_DELETE_ELEM) {
        Err(error) if is_unknown(&error) => run(BPF_MAP_LOOKUP_ELEM)? && run(BPF_MAP_DELETE_ELEM)?,
        taken => taken?,
    };
    // SAFETY: any bit pattern is a value of a `Plain` type.
    Ok(taken.then(|| unsafe { value.assume_init() }))
}

/// Calls `each` with every entry of a hash, array or trie map, some thousand a system call. Entries that come or go meanwhile
/// may be seen or not; none is seen twice because of others (the kernel goes bucket by bucket).
pub(super) fn scan<K: Plain, V: Plain>(map: BorrowedFd<'_>, each: &mut dyn FnMut(K, V)) -> io::Result<()> {
    // SAFETY: `MapInfo` is the beginning of `struct bpf_map_info` and holds integers only.
    let info: MapInfo = unsafe { object_info(map)? };
    if (info.key_size, info.value_size) != (size::<K>(), size::<V>()) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "map {} has keys of {} and values of {} bytes",
                info.id, info.key_size, info.value_size
            ),
        ));
    }
    const { assert!(size_of::<K>() <= size_of::<Place>(), "the kernel writes a key there") };
    // SAFETY: any bit pattern is a value of a `Plain` type.
    let zero = || unsafe { std::mem::zeroed::<(K, V)>() };
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    // About a MiB, whatever the size of an entry.
    let mut capacity = ((1 << 20) / (size::<K>() + size::<V>())).clamp(1, 4096);
    let (mut from, mut to): (Option<Place>, Place) = (None, Place::default());
    loop {
        keys.resize(capacity as usize, zero().0);
        values.resize(capacity as usize, zero().1);
        let mut attributes = Batch {
            from: from.as_mut().map_or(0, |from| address(from)),
            to: address(&raw mut to),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: capacity,
            map_fd: map.as_raw_fd().cast_unsigned(),
            ..Batch::default()
        };
        // SAFETY: `keys` and `values` have room for `count` keys and values of the map, of the sizes compared above, and the
        // places for a key.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) };
        let last = match result {
            Ok(_) => false,
            // The end of the map; `count` entries came along.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // A bucket with more entries than `count`: nothing was copied.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                capacity = capacity.saturating_mul(2);
                continue;
            }
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(attributes.count as usize) {
            each(*key, *value);
        }
        if last {
            return Ok(());
        }
        from = Some(to);
    }
}

/// Whether an update may make an entry, or replace one: `BPF_ANY`, `BPF_NOEXIST`, `BPF_EXIST` (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Update {
    /// Either
    Any = 0,
    /// Only make
    New = 1,
    /// Only replace
    Present = 2,
}

/// A map whose types are known at run time only: keys and values are bytes.
pub(super) struct BytesMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes of what is read and written under one key: of a per-CPU map the values of all CPUs
    cell: usize,
}

impl BytesMap {
    /// The map pinned at a path.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::new(object_get(path)?)
    }

    /// A map by its descriptor.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        /// `BPF_MAP_TYPE_PERCPU_ARRAY`
        const PER_CPU_ARRAY: u32 = 6;
        // SAFETY: `MapInfo` is the beginning of `struct bpf_map_info` and holds integers only.
        let info: MapInfo = unsafe { object_info(fd.as_fd())? };
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
    pub(super) fn of_one_value(value_size: u32) -> io::Result<Self> {
        /// `BPF_MAP_TYPE_ARRAY`
        const ARRAY: u32 = 2;
        let mut attributes = MapCreate {
            map_type: ARRAY,
            key_size: 4,
            value_size,
            max_entries: 1,
            map_flags: 0,
        };
        // SAFETY: `MapCreate` is the beginning of `union bpf_attr` for the command and holds no pointers.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attributes)? };
        // SAFETY: the kernel just made this descriptor for us alone.
        Self::new(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Its descriptor.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Pins it at a path.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        object_pin(self.fd.as_fd(), path)
    }

    /// What the kernel says of it.
    pub(super) const fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Runs a command on one entry; `None` if there is none.
    fn element(&self, command: libc::c_int, key: &[u8], value: &mut [u8], flags: Update) -> io::Result<Option<()>> {
        assert!(
            key.len() == self.info.key_size as usize && (value.is_empty() || value.len() == self.cell),
            "keys and values have the map's sizes"
        );
        let mut attributes = Element {
            map_fd: self.fd.as_raw_fd().cast_unsigned(),
            key: address(key.as_ptr().cast_mut()),
            // Of a command that has none the kernel wants to see none.
            value: if value.is_empty() {
                0
            } else {
                address(value.as_mut_ptr())
            },
            flags: flags as u64,
            ..Element::default()
        };
        // SAFETY: the key has the map's size, and so has the value, for which callers give an empty slice only with the command
        // that has none.
        match unsafe { bpf(command, &mut attributes) } {
            Ok(_) => Ok(Some(())),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.cell];
        let found = self.element(BPF_MAP_LOOKUP_ELEM, key, &mut value, Update::Any)?;
        Ok(found.map(|()| value))
    }

    /// Sets the value of a key. `false` if that is not allowed: there is an entry, or none.
    pub(super) fn set(&self, key: &[u8], value: &[u8], update: Update) -> io::Result<bool> {
        match self.element(BPF_MAP_UPDATE_ELEM, key, &mut value.to_vec(), update) {
            Ok(set) => Ok(set.is_some()),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a key and says whether it was there.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        let removed = self.element(BPF_MAP_DELETE_ELEM, key, &mut [], Update::Any)?;
        Ok(removed.is_some())
    }

    /// Removes a key and gives the value that it had in the end.
    pub(super) fn take(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.cell];
        match self.element(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key, &mut value, Update::Any) {
            Err(error) if is_unknown(&error) => {
                let value = self.get(key)?;
                self.remove(key)?;
                Ok(value)
            }
            taken => Ok(taken?.map(|()| value)),
        }
    }

    /// Calls `each` with every entry, some thousand a system call; see [`scan`].
    pub(super) fn scan(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let key_size = self.info.key_size as usize;
        if key_size > size_of::<Place>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a key is longer than any of ours",
            ));
        }
        let mut capacity = ((1 << 20) / (key_size + self.cell)).clamp(1, 4096);
        let (mut from, mut to): (Option<Place>, Place) = (None, Place::default());
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(capacity * key_size, 0_u8);
            values.resize(capacity * self.cell, 0_u8);
            let mut attributes = Batch {
                from: from.as_mut().map_or(0, |from| address(from)),
                to: address(&raw mut to),
                keys: address(keys.as_mut_ptr()),
                values: address(values.as_mut_ptr()),
                count: u32::try_from(capacity).unwrap_or(u32::MAX),
                map_fd: self.fd.as_raw_fd().cast_unsigned(),
                ..Batch::default()
            };
            // SAFETY: `keys` and `values` have room for `count` keys and values of the map, and the places for a key.
            let last = match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    capacity *= 2;
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) => return Err(error),
            };
            let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(self.cell));
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

/// The value that bytes are, if there are as many as it has.
pub(super) fn from_bytes<T: Plain>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the type has, and any bit pattern is a value of a `Plain` type.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// The bytes that a value is.
pub(super) fn to_bytes<T: Plain>(value: &T) -> Vec<u8> {
    // SAFETY: a `Plain` type has no padding, so all its bytes are initialized.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
}

#[cfg(test)]
mod tests;
