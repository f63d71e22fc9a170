//! Telling those who watch: of new flows and their first answers, and of packets that are refused. Never of other packets of known
//! flows.
//!
//! While nobody watches it costs one look at a table, where a flow is opened anyway or a packet comes to nothing.

use super::{Environment, FlowHandle as _, Reason, Scratch, Tables, frontend, socket::Socket};
use crate::layout::{
    ANSWERED, ANYBODY, AT_SOCKET, AddressBytes, Event, FlowKey, FlowValue, MAX_WATCHERS, NO_SERVICE, ServiceValue,
    Watcher, flow_flags, history,
};

/// Whether anybody watches.
#[inline(always)]
pub(super) fn is_watched<A: AddressBytes, T: Tables<A>, E: Environment>(tables: &T, environment: &E) -> bool {
    tables
        .watcher(ANYBODY)
        .is_some_and(|anybody| anybody.watches(environment.now()))
}

/// Tells everybody who wants to know. Of an event that a ring has no room for its watcher gets to know that there was one.
#[inline(always)]
pub fn tell<A: AddressBytes, T: Tables<A>>(tables: &T, now: u32, event: &Event) {
    for place in ANYBODY + 1..=MAX_WATCHERS {
        let wanted = |watcher: &Watcher| watcher.watches(now) && watcher.wants(event.reason);
        if tables.watcher(place).as_ref().is_some_and(wanted) && !tables.send_event(place, event) {
            tables.count_lost(place);
        }
    }
}

/// Tells that a packet of so many bytes has opened the flow in `scratch`.
#[inline(never)]
pub(super) fn opened<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &Scratch<A>,
    length: u32,
) {
    if is_watched(tables, environment) {
        let Scratch { key, value, .. } = scratch;
        let mut event = of_packet(environment, key, Reason::NewFlow, length);
        (event.backend, event.backend_port) = (value.address.mapped(), value.port);
        (event.service, event.flags) = (value.service, value.flags);
        environment.tell(tables, &event);
    }
}

/// Whether a half, as it was before a packet, makes that the first answer of its flow.
#[inline(always)]
pub(super) const fn is_first_answer<A>(value: &FlowValue<A>) -> bool {
    value.history & history::SEEN == 0
        && value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) == flow_flags::REPLY
}

/// Tells that the flow in `scratch`, which is its reply half, has been answered for the first time, by a packet of so many bytes.
#[inline(never)]
pub(super) fn answered<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &Scratch<A>,
    length: u32,
) {
    if is_watched(tables, environment) {
        let Scratch { key, value, .. } = scratch;
        let mut event = of_packet(environment, key, Reason::Established, length);
        (event.reason, event.outcome) = (ANSWERED, ANSWERED);
        (event.backend, event.backend_port) = (event.source, event.source_port);
        (event.source, event.source_port) = (event.destination, value.other_port);
        (event.destination, event.destination_port) = (value.address.mapped(), value.port);
        (event.service, event.flags) = (value.service, value.flags);
        environment.tell(tables, &event);
    }
}

/// What there is to tell of a refused packet.
pub(super) struct Refusal {
    /// Why it is refused
    pub(super) reason: Reason,
    /// The reason that it is counted by
    pub(super) outcome: Reason,
    /// Its bytes
    pub(super) length: u32,
    /// Id of the service port that it is for, see [`service_of`]
    pub(super) service: u32,
}

/// Tells that a packet is refused, by its key as far as it has one. (A function of its own, as frames on the kernel's stack add up.)
#[inline(never)]
pub(super) fn refused<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
    refusal: &Refusal,
) {
    let mut event = of_packet(environment, key, refusal.reason, refusal.length);
    (event.service, event.outcome) = (refusal.service, number(refusal.outcome));
    environment.tell(tables, &event);
}

/// Tells what became of a socket that a process connects to a frontend, or sends there by: it gets the backend that was `chosen`, or
/// is refused.
#[inline(never)]
pub(super) fn socket<A: AddressBytes, S: Socket<A>, T: Tables<A>, E: Environment>(
    socket: &S,
    tables: &T,
    environment: &E,
    chosen: &FlowValue<A>,
    reason: Reason,
) {
    if is_watched(tables, environment) {
        let (source, frontend) = (socket.source(), socket.remote());
        let mut event = event(environment, reason, socket.protocol(), &source, &frontend.0);
        if source == A::default() {
            event.source = [0; 16];
        }
        if reason == Reason::NewFlow {
            (event.backend, event.backend_port) = (chosen.address.mapped(), chosen.port);
        }
        (event.hook, event.destination_port, event.service) = (AT_SOCKET, frontend.1, chosen.service);
        environment.tell(tables, &event);
    }
}

/// An event of a packet.
#[inline(always)]
fn of_packet<A: AddressBytes, E: Environment>(environment: &E, key: &FlowKey<A>, reason: Reason, length: u32) -> Event {
    let mut event = event(environment, reason, key.protocol, &key.source, &key.destination);
    (event.source_port, event.destination_port) = (key.source_port, key.destination_port);
    (event.hook, event.device, event.length) = (key.direction, environment.device(), length);
    event
}

/// What is the same for all.
#[inline(always)]
fn event<A: AddressBytes, E: Environment>(
    environment: &E,
    reason: Reason,
    protocol: u8,
    source: &A,
    destination: &A,
) -> Event {
    Event {
        nanoseconds: environment.exact_nanoseconds(),
        source: source.mapped(),
        destination: destination.mapped(),
        protocol,
        service: NO_SERVICE,
        reason: number(reason),
        outcome: number(reason),
        ..Event::default()
    }
}

/// The service port that a packet is for, by its flow, or by the frontend that it goes to.
#[inline(never)]
pub(super) fn service_of<A: AddressBytes, T: Tables<A>>(tables: &T, key: &FlowKey<A>) -> u32 {
    if let Some(handle) = tables.flow(key) {
        return handle.value().service;
    }
    let mut service = ServiceValue::default();
    match frontend::find(tables, key, &mut service) {
        Ok(()) => service.service,
        Err(_) => NO_SERVICE,
    }
}

/// Number of a reason: all fit their table, which has 64 entries.
#[inline(always)]
const fn number(reason: Reason) -> u8 {
    reason as u8
}
