//! Which backend stands in for the frontend that a process wants.

use super::{Socket, SocketTables};
use crate::{
    datapath::{Environment, Reason, frontend, select},
    layout::{
        AFFINITY_NONE, AddressBytes, FlowKey, FlowValue, HOST_DEVICE, INGRESS, ServiceValue, address_flags,
        service_flags,
    },
};

/// What makes it matter who the client is. A pod's address is not known before it has sent something, so such frontends are
/// left to its packets.
const CLIENT_MATTERS: u32 = service_flags::RESTRICTED
    | service_flags::SHORT_CIRCUIT
    | service_flags::MASQUERADE
    | service_flags::MASQUERADE_HOST;

/// Chooses a backend for a frontend at `remote`: sets address, port and service of `value`.
///
/// # Errors
/// Why there is none; the service is set if there is a frontend. [`Reason::NoFrontend`] is also what is left to the packets.
#[inline(never)]
pub(super) fn choose<A: AddressBytes, S: Socket<A>, T: SocketTables<A>, E: Environment>(
    socket: &S,
    tables: &T,
    environment: &E,
    remote: (A, u16),
    value: &mut FlowValue<A>,
) -> Result<(), Reason> {
    let mut service = ServiceValue::default();
    let mut choice = select::Choice::default();
    let mut key = FlowKey::new(INGRESS, socket.protocol(), (A::default(), 0), remote);
    if socket.is_host() {
        frontend::find_for_process(tables, &key, &mut service)?;
        key.source = source(socket, tables, &remote.0);
    } else {
        frontend::find(tables, &key, &mut service)?;
        if service.flags & CLIENT_MATTERS != 0 || service.affinity_timeout != AFFINITY_NONE {
            return Err(Reason::NoFrontend);
        }
    }
    value.service = service.service;
    select::decide(tables, environment, &key, &service, &mut choice)?;
    select::draw(tables, environment, &key, &service, &choice, value)
}

/// The source that a packet to `destination` would have: what the socket is bound to, else what the kernel would take. That is
/// the destination itself if the node has it, else the node's usual address.
#[inline(always)]
fn source<A: AddressBytes, S: Socket<A>, T: SocketTables<A>>(socket: &S, tables: &T, destination: &A) -> A {
    let bound = socket.source();
    if bound != A::default() {
        bound
    } else if tables.address_flags(destination) & address_flags::LOCAL != 0 {
        *destination
    } else {
        tables.masquerade_address(HOST_DEVICE).unwrap_or_default()
    }
}
