//! The first packet of a flow: choosing an endpoint and writing the flow's entries.

use super::{
    Environment, InsertMode, Reason, Scratch, Tables, eviction, flow, frontend, masquerade,
    reserve::reserve_twin,
    select::{self, Choice},
};
use crate::{
    layout::{AddressBytes, FlowValue, Opening, ServiceValue, device_flags, flow_flags},
    packet::{Family, UDP, opens_connection},
};

/// Opens a flow for the packet in `scratch`, which is to a frontend, and puts into its value how to rewrite it.
#[inline(never)]
pub(super) fn first_packet<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Result<(), Reason> {
    choose_endpoint::<F, T, E>(tables, environment, scratch)?;
    open(tables, environment, scratch)
}

/// Chooses an endpoint for the packet in `scratch` and puts into its value how to rewrite it. Writes no flow.
#[inline(always)]
pub(super) fn choose_endpoint<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Result<(), Reason> {
    // An entry that is replaced while it is read may look half old, half new: then its endpoint is missing, once.
    match environment.choose(tables, scratch) {
        Err(Reason::EndpointMissing) => environment.choose(tables, scratch)?,
        chosen => chosen?,
    }
    let (key, value) = (&scratch.key, &mut scratch.value);
    value.history = flow::seen(scratch.transport.tcp_flags);
    value.other_port = key.source_port;
    value.last_seen = environment.now();
    value.address_difference = F::difference(&key.destination, &value.address);
    Ok(())
}

/// Writes the entries of the flow in `scratch`: all, or none.
#[inline(always)]
pub(super) fn open<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
) -> Result<(), Reason> {
    reserve_twin(tables, environment, scratch)?;
    let (key, value) = (&scratch.key, &scratch.value);
    let masqueraded = value.flags & flow_flags::MASQUERADED != 0;
    let written = tables.insert_flow(key, value, InsertMode::Any).is_ok()
        && (!masqueraded || masquerade::request(tables, key, value, InsertMode::Any).is_ok());
    if !written {
        tables.remove_flow(key);
        scratch.twin_key = flow::twin_key(key, value);
        tables.remove_flow(&scratch.twin_key);
        return Err(Reason::FlowTableFull);
    }
    tables.push_opening(&Opening::new(key, value.last_seen));
    Ok(())
}

/// How often room is made for a flow in a full table: in a flood other CPUs look for some, too, and take it.
const ATTEMPTS: u32 = 3;

/// What [`open`] has failed for; or what comes of other attempts, if the table was full and there is room now. (A function of its
/// own, as frames on the kernel's stack add up.)
#[inline(never)]
pub(super) fn open_again<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
    reason: Reason,
) -> Result<(), Reason> {
    let mut opened = Err(reason);
    for _ in 0..ATTEMPTS {
        if opened != Err(Reason::FlowTableFull) || !make_room(tables, environment, &scratch.value) {
            break;
        }
        opened = open(tables, environment, scratch);
    }
    opened
}

/// Makes room for a flow with this value.
#[inline(always)]
fn make_room<A: AddressBytes, T: Tables<A>, E: Environment>(tables: &T, environment: &E, value: &FlowValue<A>) -> bool {
    if value.flags & flow_flags::MASQUERADED != 0 {
        eviction::make_room_for_masquerade(tables, environment.now())
    } else {
        tables.make_room(environment.now())
    }
}

/// Chooses an endpoint for the key in `scratch`: sets address, port, service and flags of its value.
///
/// A packet from the midst of a connection gets one like any other: with a single endpoint, or affinity, it is the right one,
/// and another answers with RST, so that the client knows at once. (Conntrack's loose pick-up under kube-proxy does the same.)
/// Only while a node is taken over is it left to conntrack, which may know the connection.
///
/// # Errors
/// Why there is none; the service is set if there is a frontend.
#[inline(never)]
pub fn choose<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
) -> Result<(), Reason> {
    let Scratch {
        key, value, transport, ..
    } = scratch;
    let (mut service, mut choice) = (ServiceValue::default(), Choice::default());
    frontend::find(tables, key, &mut service)?;
    // Who counts what is refused asks whose it is.
    value.service = service.service;
    let opens = key.protocol == UDP || opens_connection(transport.tcp_flags);
    if !opens && tables.device_flags(environment.device()) & device_flags::TAKING_OVER != 0 {
        return Err(Reason::MidStream);
    }
    select::decide(tables, environment, key, &service, &mut choice)?;
    select::draw(tables, environment, key, &service, &choice, value)?;
    // behaviour.md 5.2: a client that gets itself must be answered by way of the node.
    let masqueraded = choice.masquerade || value.address == key.source;
    value.flags = if masqueraded { flow_flags::MASQUERADED } else { 0 };
    Ok(())
}
