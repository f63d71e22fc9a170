//! From a backend to a process: who a datagram is from, and who a socket is connected to.

use super::{Socket, SocketTables, key};
use crate::{
    datapath::{Environment, Reason},
    layout::{AddressBytes, SocketValue, TO_FRONTEND, socket_flags},
};

/// A datagram was received: shows the frontend in place of the backend that it is from.
#[inline(always)]
pub fn receive<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &mut S,
    tables: &T,
    environment: &E,
) -> Reason {
    let key = key(socket, TO_FRONTEND, socket.remote());
    let mut value = SocketValue::default();
    if !tables.socket(&key, &mut value) {
        return Reason::Unrelated;
    }
    let (now, answered) = (environment.now(), value.flags | socket_flags::ANSWERED);
    if (value.last_seen, value.flags) != (now, answered) {
        (value.last_seen, value.flags) = (now, answered);
        tables.set_socket(&key, &value);
    }
    socket.set_remote((value.address, value.port));
    Reason::Established
}

/// A process asks who its socket is connected to: shows the frontend in place of the backend.
#[inline(always)]
pub fn peer_name<A: AddressBytes, S: Socket<A>, T: SocketTables<A>>(socket: &mut S, tables: &T) -> Reason {
    let mut value = SocketValue::default();
    if !tables.socket(&key(socket, TO_FRONTEND, socket.remote()), &mut value) {
        return Reason::Unrelated;
    }
    socket.set_remote((value.address, value.port));
    Reason::Established
}
