//! All `unsafe` of the agent: table types as bytes for aya, and the bpf(2) commands that aya does not have.
#![expect(unsafe_code, reason = "the one file where bytes cross into the kernel")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
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
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
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

/// Beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
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

/// What the kernel says of a tcx link.
pub(super) fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<TcxLinkInfo> {
    // SAFETY: `TcxLinkInfo` is the beginning of `struct bpf_link_info` and holds integers only.
    unsafe { object_info(link) }
}

/// The kernel's place in a map between two batches: a bucket number for a hash, the last key for any other map.
type Place = [u64; 8];

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
