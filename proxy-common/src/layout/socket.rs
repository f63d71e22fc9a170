//! Tables `sockets_v4` and `sockets_v6`: what the sockets of processes that the cgroup hooks serve are connected to, or send
//! to.
//!
//! A socket says "from the socket to a frontend: this backend" ([`TO_BACKEND`], kept by unconnected UDP sockets only, whose
//! every datagram is translated) and "from a backend to the socket: show this frontend" ([`TO_FRONTEND`], kept by all).
//! Nothing tells when a socket is closed, or goes elsewhere: entries are left to the table, which forgets those that were
//! not used for long.

use super::{AddressBytes, plain};

/// [`SocketKey::direction`]: the address is a frontend's, the value is the backend that the socket's datagrams go to
pub const TO_BACKEND: u8 = 0;
/// [`SocketKey::direction`]: the address is a backend's, the value is the frontend that the process knows it by
pub const TO_FRONTEND: u8 = 1;

/// A socket, and an address that it sends to or receives from.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey<A> {
    /// The socket's cookie, low half first, as `inet_diag_sockid.idiag_cookie` has it (`include/uapi/linux/inet_diag.h`); no
    /// other socket of the machine, in any network namespace, ever has the same
    pub cookie: [u32; 2],
    /// Remote address, network byte order
    pub address: A,
    /// Remote port, host byte order
    pub port: u16,
    /// IP protocol number
    pub protocol: u8,
    /// [`TO_BACKEND`] or [`TO_FRONTEND`]
    pub direction: u8,
}

/// What stands in place of the key's address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SocketValue<A> {
    /// Address, network byte order
    pub address: A,
    /// Port, host byte order
    pub port: u16,
    /// Bits of [`socket_flags`]
    pub flags: u16,
    /// Id of the service port, key of `service_names`
    pub service: u32,
    /// Tick (see [`super::TICK_SHIFT`]) of the last datagram; of a connected socket, of its `connect`
    pub last_seen: u32,
}

/// Bits of [`SocketValue::flags`].
pub mod socket_flags {
    /// The socket was connected to the backend: its datagrams pass no hook, so it must be told when the backend serves no more
    pub const CONNECTED: u16 = 1;
    /// The backend has answered ([`super::TO_FRONTEND`] only)
    pub const ANSWERED: u16 = 2;
}

impl<A: AddressBytes> SocketKey<A> {
    /// Key of a socket and a remote address, by the socket's cookie as the kernel's helpers give it; port in host byte order.
    #[inline(always)]
    pub const fn new(direction: u8, cookie: u64, protocol: u8, remote: (A, u16)) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the low half")]
        let low = cookie as u32;
        Self {
            cookie: [low, (cookie >> 32) as u32],
            address: remote.0,
            port: remote.1,
            protocol,
            direction,
        }
    }
}

/// What the loader tells the hooks of sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketSettings {
    /// Cookie of the host's network namespace (`SO_NETNS_COOKIE`)
    pub host_netns: u64,
    /// 1 if sockets in other network namespaces are served, too
    pub pods: u32,
    /// 1 if the kernel has `bpf_set_retval` (Linux 5.18), so that what is refused fails with `ECONNREFUSED`; else `EPERM`
    pub set_error: u32,
}

impl SocketSettings {
    /// What programs run with when the loader says nothing: no network namespace has the cookie 0.
    pub const DEFAULT: Self = Self {
        host_netns: 0,
        pods: 0,
        set_error: 0,
    };
}

plain! {
    SocketSettings = 16;
    SocketKey<[u8; 4]> = 16;
    SocketKey<[u8; 16]> = 28;
    SocketValue<[u8; 4]> = 16;
    SocketValue<[u8; 16]> = 28;
}
