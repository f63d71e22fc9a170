//! Packets that a client sends to a backend directly, not through a frontend.
//!
//! The backend's replies look like those of a flow from the same client port through a frontend, which would be rewritten.
//! So a new direct connection (TCP, SCTP) ends that flow; of UDP packets the latest use wins.

use super::{FlowHandle as _, Reason, Tables, flow};
use crate::{
    layout::{AddressBytes, EGRESS, FlowKey, flow_flags},
    packet::{UDP, opens_connection},
};

/// Retires what a direct packet to a backend, with this key at ingress, collides with.
#[inline(always)]
pub(super) fn direct<A: AddressBytes, T: Tables<A>>(tables: &T, key: &FlowKey<A>, tcp_flags: u8) -> Reason {
    if key.protocol == UDP || opens_connection(tcp_flags) {
        retire(tables, key)
    } else {
        Reason::Unrelated
    }
}

/// Removes the reply half that the backend's answers would meet, and what goes with it.
#[inline(never)]
fn retire<A: AddressBytes, T: Tables<A>>(tables: &T, key: &FlowKey<A>) -> Reason {
    let reply = FlowKey::new(
        EGRESS,
        key.protocol,
        (key.destination, key.destination_port),
        (key.source, key.source_port),
    );
    let Some(handle) = tables.flow(&reply) else {
        return if tables.is_previous(&reply) {
            Reason::Previous
        } else {
            Reason::Unrelated
        };
    };
    let value = handle.value();
    if value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) != flow_flags::REPLY {
        return Reason::Unrelated;
    }
    tables.remove_flow(&reply);
    let forward = flow::twin_key(&reply, &value);
    if key.protocol != UDP {
        tables.remove_flow(&forward);
    } else if let Some(handle) = tables.flow(&forward) {
        handle.set_flags(handle.value().flags | flow_flags::TWIN_REMOVED);
    }
    Reason::FlowRetired
}
