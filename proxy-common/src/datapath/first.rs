//! The first packet of a flow: choosing an endpoint and writing the flow's entries.

use super::{Environment, InsertMode, Reason, Tables, flow, masquerade, reserve::reserve_twin};
use crate::{
    layout::{AddressBytes, FlowKey, FlowValue, ServiceKey, SlotKey, flow_flags, history, service_flags},
    packet::Family,
};

/// Maps a uniform `random` to `0..count`, uniformly to within `count / 2^32` and without a division.
#[inline(always)]
pub const fn scale(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// Opens a flow for a packet to a frontend and puts into `value` how to rewrite it.
#[inline(never)]
pub(super) fn first_packet<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<F::Address>,
    value: &mut FlowValue<F::Address>,
) -> Result<(), Reason> {
    // An entry that is replaced while it is read may look half old, half new: then its endpoint is missing, once.
    match choose(tables, environment, key, value) {
        Err(Reason::EndpointMissing) => choose(tables, environment, key, value)?,
        chosen => chosen?,
    }
    // behaviour.md 5.2: a client that gets itself must be answered by way of the node.
    let masqueraded = value.address == key.source;
    value.other_port = key.source_port;
    value.last_seen = environment.now();
    value.address_difference = F::difference(&key.destination, &value.address);
    value.history = history::SEEN;
    value.flags = if masqueraded { flow_flags::MASQUERADED } else { 0 };
    reserve_twin(tables, environment, key, value)?;
    let written = tables.insert_flow(key, value, InsertMode::Any).is_ok()
        && (!masqueraded || masquerade::request(tables, key, value, InsertMode::Any).is_ok());
    if !written {
        tables.remove_flow(key);
        tables.remove_flow(&flow::twin_key(key, value));
        return Err(Reason::FlowTableFull);
    }
    Ok(())
}

/// Picks an endpoint of the frontend that `key` is for, uniformly (behaviour.md 2.11): sets address, port and service.
#[inline(never)]
fn choose<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
    value: &mut FlowValue<A>,
) -> Result<(), Reason> {
    let frontend = ServiceKey::new(key.destination, key.destination_port, key.protocol);
    let service = tables.service(&frontend).ok_or(Reason::NoFrontend)?;
    if service.cluster_count == 0 {
        let anywhere = service.flags & service_flags::HAS_ENDPOINTS != 0;
        return Err(if anywhere {
            Reason::NoLocalEndpoints
        } else {
            Reason::NoEndpoints
        });
    }
    let index = scale(environment.random(), service.cluster_count);
    let slot = SlotKey {
        set: service.cluster_set,
        index,
    };
    let backend = tables.slot(&slot).ok_or(Reason::EndpointMissing)?;
    value.address = backend.address;
    value.port = backend.port;
    value.service = service.service;
    Ok(())
}
