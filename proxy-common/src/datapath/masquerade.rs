//! Hiding the client from its backend: the source becomes an address of this node, at the backend's edge.
//!
//! The first packet's ingress asks for it with an unresolved entry, because only the egress hook knows the device, and
//! with it the address.

use super::{Environment, InsertError, InsertMode, Reason, Scratch, Tables, eviction, flow, reserve::reserve_twin};
use crate::{
    layout::{AddressBytes, FlowKey, FlowValue, flow_flags},
    packet::Family,
};

/// How often room is made for a masquerade in a full table: in a flood other CPUs look for some, too, and take it.
const ATTEMPTS: u32 = 3;

/// Asks for the masquerade of the flow of `key` and `value` (at ingress). With [`InsertMode::New`] one that is there
/// already is kept; with [`InsertMode::Any`] it is chosen anew, for it is an earlier flow's and may be over.
#[inline(never)]
pub(super) fn request<A: AddressBytes, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    value: &FlowValue<A>,
    mode: InsertMode,
) -> Result<(), InsertError> {
    let middle = flow::masquerade_key(key, value);
    // The previous generation has chosen one, or will.
    if mode == InsertMode::New && tables.is_previous(&middle) {
        return Ok(());
    }
    let unresolved = unresolved(
        &middle,
        value.service,
        value.last_seen,
        value.flags & flow_flags::EXPRESS,
    );
    match tables.insert_flow(&middle, &unresolved, mode) {
        Ok(()) | Err(InsertError::Exists) => Ok(()),
        Err(InsertError::Full) => Err(InsertError::Full),
    }
}

/// The value under `key` at egress that asks for a masquerade, with these further bits of [`flow_flags`].
#[inline(always)]
pub(super) const fn unresolved<A: AddressBytes>(
    key: &FlowKey<A>,
    service: u32,
    last_seen: u32,
    flags: u8,
) -> FlowValue<A> {
    FlowValue {
        address: key.source,
        port: key.source_port,
        other_port: key.destination_port,
        #[cfg(feature = "other-layout")]
        added: 0,
        service,
        last_seen,
        address_difference: 0,
        history: 0,
        flags: flow_flags::MASQUERADE | flow_flags::UNRESOLVED | flags,
    }
}

/// Chooses address and port for the unresolved entry in `scratch`, the client's own port if that is free.
#[inline(always)]
pub(super) fn resolve<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Result<(), Reason> {
    let address = tables
        .masquerade_address(environment.device())
        .ok_or(Reason::NoMasqueradeAddress)?;
    scratch.value.address = address;
    scratch.value.address_difference = F::difference(&scratch.key.source, &address);
    scratch.value.flags = flow_flags::MASQUERADE | scratch.value.flags & flow_flags::EXPRESS;
    let mut reserved = reserve_twin(tables, environment, scratch);
    for _ in 0..ATTEMPTS {
        // The flow may itself be what was given up.
        if reserved != Err(Reason::FlowTableFull)
            || !eviction::make_room_for_masquerade(tables, environment.now())
            || tables.flow(&scratch.key).is_none()
        {
            break;
        }
        reserved = reserve_twin(tables, environment, scratch);
    }
    reserved?;
    tables
        .insert_flow(&scratch.key, &scratch.value, InsertMode::Any)
        .map_err(|_| Reason::FlowTableFull)
}
