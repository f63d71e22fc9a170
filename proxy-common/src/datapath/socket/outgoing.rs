//! From a process to a backend: connecting, and sending without.

use super::{Socket, SocketTables, choose::choose, key};
use crate::{
    datapath::{Environment, Reason, Verdict, tell},
    layout::{AddressBytes, EndpointKey, FlowValue, NO_SERVICE, SocketValue, TO_BACKEND, TO_FRONTEND, socket_flags},
    packet::UDP,
};

/// A socket is being connected: puts a backend in place of a frontend.
#[inline(always)]
pub fn connect<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &mut S,
    tables: &T,
    environment: &E,
) -> Reason {
    let remote = socket.remote();
    if !tables.may_be_frontend(&remote.0) {
        return direct(socket, tables, remote, true);
    }
    replace(socket, tables, environment, remote, true)
}

/// A datagram is being sent by a socket that is not connected, or elsewhere than it is: puts a backend in place of a
/// frontend, the same one as before unless the socket has fallen silent (behaviour.md 2.11: as with a flow).
#[inline(always)]
pub fn send<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &mut S,
    tables: &T,
    environment: &E,
) -> Reason {
    let remote = socket.remote();
    if !tables.may_be_frontend(&remote.0) {
        return direct(socket, tables, remote, false);
    }
    if send_on(socket, tables, environment, remote) {
        return Reason::Established;
    }
    replace(socket, tables, environment, remote, false)
}

/// Sends to the backend of the last datagrams, if that is not too long ago.
#[inline(never)]
fn send_on<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &mut S,
    tables: &T,
    environment: &E,
    frontend: (A, u16),
) -> bool {
    let to_backend = key(socket, TO_BACKEND, frontend);
    let (mut there, mut back) = (SocketValue::default(), SocketValue::default());
    if !tables.socket(&to_backend, &mut there) {
        return false;
    }
    let backend = (there.address, there.port);
    let to_frontend = key(socket, TO_FRONTEND, backend);
    // Without an entry it counts as not answered; of another frontend's it says nothing of this one.
    let known = tables.socket(&to_frontend, &mut back) && (back.address, back.port) == frontend;
    let (now, timeouts) = (environment.now(), environment.timeouts());
    let (last_seen, timeout) = if known && back.flags & socket_flags::ANSWERED != 0 {
        (there.last_seen.max(back.last_seen), timeouts.udp_established)
    } else {
        (there.last_seen, timeouts.udp_opening)
    };
    if now.saturating_sub(last_seen) > timeout {
        return false;
    }
    if there.last_seen != now {
        there.last_seen = now;
        tables.set_socket(&to_backend, &there);
    }
    if !known {
        // Of two frontends with the same backend, or of that used directly, the latest use wins: an answer tells not which.
        (there.address, there.port) = frontend;
        tables.set_socket(&to_frontend, &there);
    }
    socket.set_remote(backend);
    true
}

/// Puts a newly chosen backend in place of a frontend, and remembers it.
#[inline(never)]
fn replace<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &mut S,
    tables: &T,
    environment: &E,
    frontend: (A, u16),
    connects: bool,
) -> Reason {
    let mut chosen = FlowValue {
        service: NO_SERVICE,
        ..FlowValue::default()
    };
    // An entry that is replaced while it is read may look half old, half new: then its endpoint is missing, once.
    let result = match choose(socket, tables, environment, frontend, &mut chosen) {
        Err(Reason::EndpointMissing) => choose(socket, tables, environment, frontend, &mut chosen),
        result => result,
    };
    match result {
        Ok(()) => {}
        // An address of the node may be a backend's: of a process in the host's network.
        Err(Reason::NoFrontend) => return direct(socket, tables, frontend, connects),
        Err(reason) => {
            if reason.verdict() == Verdict::Reject {
                refuse(tables, &chosen, reason);
                tell::socket(socket, tables, environment, &chosen, reason);
            } else if connects && reason == Reason::NoLocalEndpoints && socket.protocol() == UDP {
                // No endpoint's: so the socket is told when the endpoints change, and may connect to one then.
                (chosen.address, chosen.port) = frontend;
                remember(socket, tables, environment, frontend, &chosen, connects);
            }
            return reason;
        }
    }
    remember(socket, tables, environment, frontend, &chosen, connects);
    count(tables, &chosen);
    tell::socket(socket, tables, environment, &chosen, Reason::NewFlow);
    socket.set_remote((chosen.address, chosen.port));
    Reason::NewFlow
}

/// Remembers the backend that was chosen for a frontend. (A function of its own, as frames on the kernel's stack add up.)
#[inline(never)]
fn remember<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &S,
    tables: &T,
    environment: &E,
    frontend: (A, u16),
    chosen: &FlowValue<A>,
    connects: bool,
) {
    let backend = (chosen.address, chosen.port);
    let mut value = value(backend, chosen.service, environment.now(), connects);
    if !connects {
        tables.set_socket(&key(socket, TO_BACKEND, frontend), &value);
    }
    (value.address, value.port) = frontend;
    tables.set_socket(&key(socket, TO_FRONTEND, backend), &value);
}

/// Counts a connection. (As [`remember`].)
#[inline(never)]
fn count<A: AddressBytes, T: SocketTables<A>>(tables: &T, chosen: &FlowValue<A>) {
    tables.count_connection(chosen.service);
    if tables.counts_endpoints() {
        let endpoint = EndpointKey::new(chosen.service, &chosen.address, chosen.port);
        tables.count_endpoint(&endpoint, 1, 0, 0);
    }
}

/// Counts what a socket is refused. (As [`remember`].)
#[inline(never)]
fn refuse<A: AddressBytes, T: SocketTables<A>>(tables: &T, chosen: &FlowValue<A>, reason: Reason) {
    tables.count_refused(reason);
    if reason.is_refusal_of_service() {
        tables.count_refusal(chosen.service, reason, 0);
    }
}

/// What a socket that connects or sends now remembers.
#[inline(always)]
const fn value<A: Copy>(stands_in: (A, u16), service: u32, now: u32, connects: bool) -> SocketValue<A> {
    SocketValue {
        address: stands_in.0,
        port: stands_in.1,
        flags: if connects { socket_flags::CONNECTED } else { 0 },
        service,
        last_seen: now,
    }
}

/// A process uses an address that is no frontend: if it is a backend's, it is no longer known by a frontend's. Unless the socket
/// is connected to it: datagrams of an IPv6 socket that is connected to an IPv4 address come here each (`udpv6_sendmsg`).
#[inline(always)]
fn direct<A: AddressBytes, S: Socket<A>, T: SocketTables<A>>(
    socket: &S,
    tables: &T,
    remote: (A, u16),
    connects: bool,
) -> Reason {
    if tables.may_be_backend(&remote.0) {
        forget(socket, tables, remote, connects);
    }
    Reason::Unrelated
}

/// Forgets which frontend a backend stood in for. (As [`remember`].)
#[inline(never)]
fn forget<A: AddressBytes, S: Socket<A>, T: SocketTables<A>>(
    socket: &S,
    tables: &T,
    backend: (A, u16),
    connects: bool,
) {
    let key = key(socket, TO_FRONTEND, backend);
    let mut value = SocketValue::default();
    if tables.socket(&key, &mut value) && (connects || value.flags & socket_flags::CONNECTED == 0) {
        tables.remove_socket(&key);
    }
}
