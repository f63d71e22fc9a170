//! Sockets of processes: what a process connects or sends to is translated before there is a packet, and back when it asks
//! who that was.
//!
//! Frontend, policies and choice are those of packets, by the same code. What differs: nothing is rewritten afterwards, so
//! nobody needs to be hidden (the kernel takes the source towards the backend) and no flow is kept, except by unconnected
//! UDP sockets, whose every datagram comes here. What is dropped is left as it is: the packet path drops it, so that it looks
//! like a timeout.

mod choose;
mod incoming;
mod outgoing;

pub use incoming::{peer_name, receive};
pub use outgoing::{connect, send};

use super::{Reason, Tables};
use crate::layout::{AddressBytes, SocketKey, SocketValue};

/// A socket at a hook.
pub trait Socket<A: AddressBytes> {
    /// What tells it from all others.
    fn cookie(&self) -> u64;
    /// IP protocol number.
    fn protocol(&self) -> u8;
    /// Whether it belongs to the host's network; otherwise to a pod's, whose packets pass an edge.
    fn is_host(&self) -> bool;
    /// The address it sends from; all zero if the kernel is yet to choose one.
    fn source(&self) -> A;
    /// Who is connected or sent to, or was received from; port in host byte order.
    fn remote(&self) -> (A, u16);
    /// Puts another in its place.
    fn set_remote(&mut self, remote: (A, u16));
}

/// What sockets need beside the tables of packets. Hooks of sockets run in processes, which packets interrupt.
pub trait SocketTables<A: AddressBytes>: Tables<A> {
    /// Looks up what stands in place of an address; `false` if nothing does.
    fn socket(&self, key: &SocketKey<A>, value: &mut SocketValue<A>) -> bool;
    /// Sets what stands in place of an address; without memory for it nothing is remembered.
    fn set_socket(&self, key: &SocketKey<A>, value: &SocketValue<A>);
    /// Forgets what stands in place of an address, if anything does.
    fn remove_socket(&self, key: &SocketKey<A>);
    /// Counts what is refused, of which there will be no packet.
    fn count_refused(&self, reason: Reason);
    /// Counts a new flow by service id.
    fn count_connection(&self, service: u32);
}

/// Key of a remote address of a socket.
#[inline(always)]
fn key<A: AddressBytes, S: Socket<A>>(socket: &S, direction: u8, remote: (A, u16)) -> SocketKey<A> {
    SocketKey::new(direction, socket.cookie(), socket.protocol(), remote)
}
