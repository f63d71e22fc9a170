//! A socket at a cgroup hook as the datapath's socket.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use proxy_common::{
    datapath::{
        Reason, Verdict,
        socket::{self, Socket, SocketTables},
    },
    packet::{Family, TCP, UDP, V4, V6},
};

use crate::{environment::Kernel, settings, tables::Maps};

/// Go on with the system call.
const ALLOW: i32 = 1;
/// End it with an error: `EPERM`, unless the program says which.
const DENY: i32 = 0;
/// `ECONNREFUSED` (include/uapi/asm-generic/errno.h)
const REFUSED: i32 = -111;

/// The last 32 bits of the prefix of IPv4 addresses among those of IPv6 (RFC 4291, 2.5.5.2).
const MAPPED_PREFIX: u32 = 0xffff_u32.to_be();

/// What a process does with its socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Connect,
    Send,
    Receive,
    PeerName,
}

/// A socket at a hook of IPv4. With `SENDING` its source may be one that was given with the datagram.
struct Socket4<const SENDING: bool> {
    context: *mut bpf_sock_addr,
    is_host: bool,
}

/// A socket at a hook of IPv6, likewise.
struct Socket6<const SENDING: bool> {
    context: *mut bpf_sock_addr,
    is_host: bool,
}

/// A socket at a hook of IPv6 whose address is one of IPv4 (`::ffff:a.b.c.d`). Sending, it would be at the hook of IPv4.
struct MappedSocket {
    context: *mut bpf_sock_addr,
    is_host: bool,
}

/// A field of the program's context, or of its socket: read as it stands, for the verifier allows no other width.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {
        // SAFETY: a field of the program's own context, or of the socket in it, which is never null.
        unsafe { core::ptr::read_volatile(&raw const (*$pointer).$($field)+) }
    };
}

/// Writes a field of the program's context.
macro_rules! set_field {
    ($pointer:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: a field of the program's own context.
        unsafe { core::ptr::write_volatile(&raw mut (*$pointer).$($field)+, $value) }
    };
}

/// An IPv6 address from the words of a field.
macro_rules! address6 {
    ($pointer:expr, $field:ident) => {
        joined([
            field!($pointer, $field[0]),
            field!($pointer, $field[1]),
            field!($pointer, $field[2]),
            field!($pointer, $field[3]),
        ])
    };
}

#[inline(always)]
fn joined(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[inline(always)]
fn word(bytes: &[u8; 16], number: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[number * 4..number * 4 + 4]);
    u32::from_ne_bytes(word)
}

/// The part of [`Socket`] that is the same for all.
macro_rules! common {
    () => {
        #[inline(always)]
        fn cookie(&self) -> u64 {
            // SAFETY: a helper call on the program's own context.
            unsafe { bpf_get_socket_cookie(self.context.cast()) }
        }

        #[inline(always)]
        fn protocol(&self) -> u8 {
            field!(self.context, protocol) as u8
        }

        #[inline(always)]
        fn is_host(&self) -> bool {
            self.is_host
        }
    };
}

#[inline(always)]
fn port(context: *mut bpf_sock_addr) -> u16 {
    u16::from_be(field!(context, user_port) as u16)
}

#[inline(always)]
fn set_port(context: *mut bpf_sock_addr, port: u16) {
    set_field!(context, u32::from(port.to_be()), user_port);
}

impl<const SENDING: bool> Socket<[u8; 4]> for Socket4<SENDING> {
    common!();

    #[inline(always)]
    fn source(&self) -> [u8; 4] {
        let source = if SENDING {
            field!(self.context, msg_src_ip4)
        } else {
            bound4(self.context)
        };
        source.to_ne_bytes()
    }

    #[inline(always)]
    fn remote(&self) -> ([u8; 4], u16) {
        (field!(self.context, user_ip4).to_ne_bytes(), port(self.context))
    }

    #[inline(always)]
    fn set_remote(&mut self, remote: ([u8; 4], u16)) {
        set_field!(self.context, u32::from_ne_bytes(remote.0), user_ip4);
        set_port(self.context, remote.1);
    }
}

impl<const SENDING: bool> Socket<[u8; 16]> for Socket6<SENDING> {
    common!();

    #[inline(always)]
    fn source(&self) -> [u8; 16] {
        if SENDING {
            address6!(self.context, msg_src_ip6)
        } else {
            let socket = field!(self.context, __bindgen_anon_1.sk);
            address6!(socket, src_ip6)
        }
    }

    #[inline(always)]
    fn remote(&self) -> ([u8; 16], u16) {
        (address6!(self.context, user_ip6), port(self.context))
    }

    #[inline(always)]
    fn set_remote(&mut self, remote: ([u8; 16], u16)) {
        set_field!(self.context, word(&remote.0, 0), user_ip6[0]);
        set_field!(self.context, word(&remote.0, 1), user_ip6[1]);
        set_field!(self.context, word(&remote.0, 2), user_ip6[2]);
        set_field!(self.context, word(&remote.0, 3), user_ip6[3]);
        set_port(self.context, remote.1);
    }
}

impl Socket<[u8; 4]> for MappedSocket {
    common!();

    #[inline(always)]
    fn source(&self) -> [u8; 4] {
        bound4(self.context).to_ne_bytes()
    }

    #[inline(always)]
    fn remote(&self) -> ([u8; 4], u16) {
        (field!(self.context, user_ip6[3]).to_ne_bytes(), port(self.context))
    }

    #[inline(always)]
    fn set_remote(&mut self, remote: ([u8; 4], u16)) {
        set_field!(self.context, u32::from_ne_bytes(remote.0), user_ip6[3]);
        set_port(self.context, remote.1);
    }
}

/// The IPv4 address that a socket is bound to, also one of IPv6.
#[inline(always)]
fn bound4(context: *mut bpf_sock_addr) -> u32 {
    let socket = field!(context, __bindgen_anon_1.sk);
    field!(socket, src_ip4)
}

/// A hook of IPv4.
#[inline(always)]
pub fn hook4(context: *mut bpf_sock_addr, call: Call) -> i32 {
    let Some(is_host) = scope(context) else {
        return ALLOW;
    };
    if call == Call::Send {
        let mut socket = Socket4::<true> { context, is_host };
        return verdict(socket::send(&mut socket, &Maps(V4), &environment(context)));
    }
    run::<V4, _>(V4, Socket4::<false> { context, is_host }, context, call)
}

/// A hook of IPv6.
#[inline(always)]
pub fn hook6(context: *mut bpf_sock_addr, call: Call) -> i32 {
    let Some(is_host) = scope(context) else {
        return ALLOW;
    };
    if call == Call::Send {
        let mut socket = Socket6::<true> { context, is_host };
        return verdict(socket::send(&mut socket, &Maps(V6), &environment(context)));
    }
    let prefix = field!(context, user_ip6[0]) | field!(context, user_ip6[1]);
    if prefix == 0 && field!(context, user_ip6[2]) == MAPPED_PREFIX {
        run::<V4, _>(V4, MappedSocket { context, is_host }, context, call)
    } else {
        run::<V6, _>(V6, Socket6::<false> { context, is_host }, context, call)
    }
}

/// What isn't sending.
#[inline(always)]
fn run<F: Family, S: Socket<F::Address>>(family: F, mut socket: S, context: *mut bpf_sock_addr, call: Call) -> i32
where
    Maps<F>: SocketTables<F::Address>,
{
    let (tables, environment) = (Maps(family), environment(context));
    match call {
        Call::Connect => return verdict(socket::connect(&mut socket, &tables, &environment)),
        Call::Receive => socket::receive(&mut socket, &tables, &environment),
        Call::Send | Call::PeerName => socket::peer_name(&mut socket, &tables),
    };
    // Neither of these may refuse.
    ALLOW
}

#[inline(always)]
fn environment(context: *mut bpf_sock_addr) -> Kernel {
    Kernel {
        device: proxy_common::layout::HOST_DEVICE,
        context: context.cast(),
    }
}

/// Whether the socket is the host's; `None` if it is none of ours.
#[inline(always)]
fn scope(context: *mut bpf_sock_addr) -> Option<bool> {
    if !matches!(field!(context, protocol) as u8, TCP | UDP) {
        return None;
    }
    let settings = settings::sockets();
    // SAFETY: a helper call on the program's own context.
    let is_host = unsafe { bpf_get_netns_cookie(context.cast()) } == settings.host_netns;
    (is_host || settings.pods != 0).then_some(is_host)
}

/// What the kernel is told.
#[inline(always)]
fn verdict(reason: Reason) -> i32 {
    if reason.verdict() != Verdict::Reject {
        return ALLOW;
    }
    if settings::sockets().set_error != 0 {
        // SAFETY: a helper without pointers; kernels that lack it never see the call, as the setting is a constant.
        unsafe { bpf_set_retval(REFUSED) };
    }
    DENY
}
