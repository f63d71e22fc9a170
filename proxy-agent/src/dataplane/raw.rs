//! All `unsafe` of the agent: table types as bytes for aya, and the bpf(2) commands that aya does not have. Those on maps and
//! their entries are in a module of their own.
#![expect(unsafe_code, reason = "the one module where bytes cross into the kernel")]

mod map;

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
    thread,
    time::Duration,
};

use aya_log::EbpfLogger;
use proxy_common::layout::Plain;
use tokio::io::unix::AsyncFd;

pub(super) use map::{BytesMap, Update, is_full, ring, scan, take};

/// A table type as aya takes it.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(super) struct Raw<T: Plain>(pub(super) T);

// SAFETY: `Plain` is sealed to types without padding of which any bit pattern is a value, and `Raw` is transparent.
unsafe impl<T: Plain> aya::Pod for Raw<T> {}

/// Commands of `enum bpf_cmd` (include/uapi/linux/bpf.h).
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
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

/// Waits until every program that runs now has ended: they are readers of RCU, which `membarrier(2)` waits for
/// (`kernel/sched/membarrier.c`).
pub(super) fn wait_for_programs() {
    /// `enum membarrier_cmd` (include/uapi/linux/membarrier.h)
    const GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes no memory.
    let waited = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if waited != 0 {
        // Not offered where CPUs are without a tick (nohz_full): this is longer than any program runs.
        thread::sleep(Duration::from_millis(50));
    }
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
