//! The node's own connections, which share its addresses with masqueraded ones.
//!
//! A masquerade takes no port that a socket of the node uses (see [`super::reserve`]); this is the other case: the node
//! opens a connection whose ports a masquerade to the same backend has. Then the node's connection gets another port by a
//! masquerade of its own, as the kernel's conntrack does it.

use super::{Environment, FlowHandle as _, InsertMode, Tables, masquerade};
use crate::{
    layout::{AddressBytes, FlowKey, INGRESS, flow_flags},
    packet::{TCP, Transport, opens_connection},
};

/// Whether the packet could be the first of a connection.
#[inline(always)]
pub(super) const fn may_collide(transport: &Transport) -> bool {
    transport.protocol != TCP || opens_connection(transport.tcp_flags)
}

/// Whether `key` at egress is the node's own and a masquerade has its ports; asks then for a masquerade of its own.
#[inline(never)]
pub(super) fn collides<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
) -> bool {
    if tables.masquerade_address(environment.device()) != Some(key.source) {
        return false;
    }
    let reply = FlowKey::new(
        INGRESS,
        key.protocol,
        (key.destination, key.destination_port),
        (key.source, key.source_port),
    );
    let service = match tables.flow(&reply).map(|handle| handle.value()) {
        // Conntrack masquerades by itself, and has chosen the port.
        Some(present) if present.flags & (flow_flags::MASQUERADE | flow_flags::CONNTRACK) == flow_flags::MASQUERADE => {
            present.service
        }
        None if tables.is_previous(&reply) => 0,
        _ => return false,
    };
    let unresolved = masquerade::unresolved(key, service, environment.now(), 0);
    tables.insert_flow(key, &unresolved, InsertMode::New).is_ok()
}
