//! The two hooks of an edge: packets enter the node's stack through ingress and leave it through egress.
//!
//! The established path is here, inlined; whatever else a packet needs is a call away.

use super::{
    Environment, FlowHandle as _, Outcome, Reason, Scratch, Tables, Verdict, direct::direct, first, flow, fragment,
    frontend, own, tell, translate::translate, upkeep,
};
use crate::{
    layout::{AddressBytes, EGRESS, EndpointKey, FlowKey, FlowValue, INGRESS, ServiceValue, flow_flags, history},
    packet::{Addresses, Family, Packet, Side, Skip, Transport},
};

impl From<Skip> for Reason {
    #[inline(always)]
    fn from(skip: Skip) -> Self {
        match skip {
            Skip::Malformed => Self::Malformed,
            Skip::Fragment => Self::Fragment,
            Skip::OtherProtocol => Self::OtherProtocol,
        }
    }
}

/// A packet that enters the node's stack: rewrites its destination from frontend to backend, or from our masquerade
/// address to the client.
#[inline(always)]
pub fn ingress<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Outcome {
    ingress_fast::<F, P, T, E>(packet, tables, environment)
        .unwrap_or_else(|| ingress_slow::<F, P, T, E>(packet, tables, environment))
}

/// The fast path of [`ingress`]: most packets need no more than a look-up and the rewrite. `None` leaves the packet, which is in the
/// scratch memory then, to [`ingress_slow`]. (The kernel gives each a function of its own, for what one needs on the stack is not there
/// for the other.)
#[inline(always)]
pub fn ingress_fast<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Option<Outcome> {
    let length = packet.length();
    let reason = enter::<F, P, T, E>(packet, tables, environment)?;
    let outcome = settle::<F, P, T, E>(packet, tables, environment, (INGRESS, length), reason);
    Some(outcome)
}

/// The slow path of [`ingress`], for the packet in the scratch memory: its flow is new, or due for upkeep; or it is a fragment.
#[inline(always)]
pub fn ingress_slow<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Outcome {
    let length = packet.length();
    let reason = tables.with_scratch(|scratch| enter_slowly::<F, P, T, E>(packet, tables, environment, scratch));
    let reason = reason.unwrap_or(Reason::RewriteFailed);
    settle::<F, P, T, E>(packet, tables, environment, (INGRESS, length), reason)
}

/// The decision on a packet that enters, if it needs no more than a look; otherwise it is in the scratch memory.
#[inline(always)]
fn enter<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Option<Reason> {
    let Some(addresses) = F::addresses(packet) else {
        return Some(Reason::Malformed);
    };
    let frontend = tables.may_be_frontend(&addresses.destination);
    if !frontend && !tables.may_be_backend(&addresses.destination) {
        return Some(if tables.is_service_address(&addresses.destination) {
            Reason::Unallocated
        } else {
            Reason::Unrelated
        });
    }
    let whole = match F::transport(packet) {
        Ok(transport) => Some((transport.key(INGRESS, addresses), transport)),
        // Its ports, if it has them, are looked for where there is time.
        Err(Skip::Fragment) => None,
        Err(Skip::OtherProtocol) => {
            let icmp_error = environment.icmp_error::<F, P, T>(packet, tables, INGRESS);
            return icmp_error.or_else(|| {
                if !frontend {
                    return Some(Reason::OtherProtocol);
                }
                let (source, destination) = ((addresses.source, 0), (addresses.destination, 0));
                let key = FlowKey::new(INGRESS, frontend::NO_PORTS, source, destination);
                Some(without_ports(tables, &key))
            });
        }
        Err(skip) => return Some(skip.into()),
    };
    let mut known = true;
    if let Some((key, transport)) = &whole {
        if !frontend {
            return Some(direct(tables, key, transport.tcp_flags));
        }
        match established::<F, P, T, E>(packet, tables, environment, transport, key, Side::Destination) {
            Found::Rewritten(reason) => return Some(reason),
            Found::Due => {}
            Found::Nothing => known = false,
        }
    }
    tables.with_scratch(|scratch| scratch.set_packet(whole, known));
    None
}

/// A packet without ports to what may be a frontend: a cluster address refuses it (behaviour.md 4.6).
#[inline(never)]
pub(super) fn without_ports<A: AddressBytes, T: Tables<A>>(tables: &T, key: &FlowKey<A>) -> Reason {
    match frontend::find(tables, key, &mut ServiceValue::default()) {
        Err(reason @ (Reason::NoPort | Reason::Unallocated)) => reason,
        _ => Reason::OtherProtocol,
    }
}

/// A packet that leaves the node's stack: rewrites its source from backend to frontend, or from client to our masquerade
/// address. One of a process of the node may be refused: its answer is for the node's stack.
#[inline(always)]
pub fn egress<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Outcome {
    egress_fast::<F, P, T, E>(packet, tables, environment)
        .unwrap_or_else(|| egress_slow::<F, P, T, E>(packet, tables, environment))
}

/// The fast path of [`egress`], as [`ingress_fast`] is that of [`ingress`].
#[inline(always)]
pub fn egress_fast<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Option<Outcome> {
    let length = packet.length();
    let reason = leave::<F, P, T, E>(packet, tables, environment)?;
    let reason = host_packet::<F, P, T, E>(packet, tables, environment, reason);
    let outcome = settle::<F, P, T, E>(packet, tables, environment, (EGRESS, length), reason);
    Some(outcome)
}

/// The slow path of [`egress`], for the packet in the scratch memory: its flow is due for upkeep; or it is a fragment.
#[inline(always)]
pub fn egress_slow<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Outcome {
    let length = packet.length();
    let reason = tables.with_scratch(|scratch| leave_slowly::<F, P, T, E>(packet, tables, environment, scratch));
    let reason = reason.unwrap_or(Reason::RewriteFailed);
    let reason = host_packet::<F, P, T, E>(packet, tables, environment, reason);
    settle::<F, P, T, E>(packet, tables, environment, (EGRESS, length), reason)
}

/// The reason of a packet that leaves the node: one that is of no flow, by this reason, may be one that a process of the node has sent
/// to a frontend.
#[inline(always)]
fn host_packet<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &P,
    tables: &T,
    environment: &E,
    reason: Reason,
) -> Reason {
    if !matches!(reason, Reason::Unrelated | Reason::OtherProtocol) {
        return reason;
    }
    let Some(Addresses { source, destination }) = F::addresses(packet) else {
        return Reason::Malformed;
    };
    // The filter knows the node's own addresses, too: this is all that a packet of somebody else costs.
    if !tables.may_be_frontend(&source)
        || !tables.may_be_frontend(&destination) && !tables.is_service_address(&destination)
    {
        return reason;
    }
    match environment.judge_host_packet::<F, P, T>(packet, tables) {
        Reason::Unrelated => reason,
        judged => judged,
    }
}

/// The decision on a packet that leaves, as [`enter`] makes it.
#[inline(always)]
fn leave<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
) -> Option<Reason> {
    let Some(addresses) = F::addresses(packet) else {
        return Some(Reason::Malformed);
    };
    if !tables.may_be_backend(&addresses.source) && !tables.may_be_backend(&addresses.destination) {
        // A router's error to a client has neither address: only the packet that it quotes tells whose it is.
        let icmp_error = F::is_icmp(packet).then(|| environment.icmp_error::<F, P, T>(packet, tables, EGRESS));
        return Some(icmp_error.flatten().unwrap_or(Reason::Unrelated));
    }
    let whole = match F::transport(packet) {
        Ok(transport) => Some((transport.key(EGRESS, addresses), transport)),
        Err(Skip::Fragment) => None,
        Err(Skip::OtherProtocol) => {
            let icmp_error = environment.icmp_error::<F, P, T>(packet, tables, EGRESS);
            return Some(icmp_error.unwrap_or(Reason::OtherProtocol));
        }
        Err(skip) => return Some(skip.into()),
    };
    if let Some((key, transport)) = &whole {
        match established::<F, P, T, E>(packet, tables, environment, transport, key, Side::Source) {
            Found::Rewritten(reason) => return Some(reason),
            Found::Due => {}
            Found::Nothing if tables.is_previous(key) => return Some(Reason::Previous),
            Found::Nothing if own::may_collide(transport) && own::collides(tables, environment, key) => {}
            Found::Nothing => return Some(Reason::Unrelated),
        }
    }
    tables.with_scratch(|scratch| scratch.set_packet(whole, true));
    None
}

/// What the flow table says of a packet.
enum Found {
    /// A flow, and the packet has been rewritten
    Rewritten(Reason),
    /// A flow that needs upkeep first
    Due,
    /// No flow
    Nothing,
}

/// The established path: one look-up, and the rewrite.
#[inline(always)]
fn established<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    transport: &Transport,
    key: &FlowKey<F::Address>,
    side: Side,
) -> Found {
    let Some(handle) = tables.flow(key) else {
        return Found::Nothing;
    };
    let value = handle.value();
    if upkeep::is_due(&value, transport.tcp_flags, environment.now()) {
        return Found::Due;
    }
    Found::Rewritten(rewrite::<F, P, T>(
        packet,
        tables,
        key,
        transport,
        side,
        &value,
        Reason::Established,
    ))
}

/// The decision on the packet in the scratch memory that enters.
#[inline(always)]
fn enter_slowly<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Reason {
    if scratch.is_fragment != 0 {
        match fragment::arrive::<F, P, T, E>(packet, tables, environment, scratch, INGRESS) {
            Ok(true) => {}
            Ok(false) => return fragment::depart::<F, P, T, E>(packet, tables, environment, scratch),
            Err(reason) => return reason,
        }
    }
    let kept = if scratch.is_known != 0 {
        upkeep::keep::<F, T, E>(tables, environment, scratch)
    } else {
        Ok(false)
    };
    let reason = match kept {
        Ok(true) => reason_of(&scratch.value),
        Ok(false) if tables.is_previous(&scratch.key) => Reason::Previous,
        Ok(false) => match first::first_packet::<F, T, E>(tables, environment, scratch)
            .or_else(|reason| first::open_again(tables, environment, scratch, reason))
        {
            Ok(()) => Reason::NewFlow,
            // An address of the node may be a backend's: of a process in the host's network.
            Err(Reason::NoFrontend) if tables.may_be_backend(&scratch.key.destination) => {
                match direct(tables, &scratch.key, scratch.transport.tcp_flags) {
                    reason @ (Reason::FlowRetired | Reason::Previous) => reason,
                    _ => Reason::NoFrontend,
                }
            }
            Err(reason) => reason,
        },
        Err(reason) => reason,
    };
    finish::<F, P, T, E>(packet, tables, environment, scratch, Side::Destination, reason)
}

/// The reason of a packet of a known flow, by its half as it was before: the first one of a flow that [`super::forward`]
/// opened and left to the hooks is new to them.
#[inline(always)]
pub(super) const fn reason_of<A>(value: &FlowValue<A>) -> Reason {
    let clients = value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) == 0;
    if clients && value.history & history::SEEN == 0 {
        Reason::NewFlow
    } else {
        Reason::Established
    }
}

/// The decision on the packet in the scratch memory that leaves.
#[inline(always)]
fn leave_slowly<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Reason {
    if scratch.is_fragment != 0 {
        match fragment::arrive::<F, P, T, E>(packet, tables, environment, scratch, EGRESS) {
            Ok(true) => {}
            Ok(false) => return fragment::depart::<F, P, T, E>(packet, tables, environment, scratch),
            Err(reason) => return reason,
        }
        if own::may_collide(&scratch.transport) && tables.flow(&scratch.key).is_none() {
            // Then there is a flow.
            let _ = own::collides(tables, environment, &scratch.key);
        }
    }
    let reason = match upkeep::keep::<F, T, E>(tables, environment, scratch) {
        Ok(true) => {
            if tell::is_first_answer(&scratch.value) {
                tell::answered(tables, environment, scratch, packet.length());
            }
            Reason::Established
        }
        Ok(false) if tables.is_previous(&scratch.key) => Reason::Previous,
        Ok(false) => Reason::Unrelated,
        Err(reason) => reason,
    };
    finish::<F, P, T, E>(packet, tables, environment, scratch, Side::Source, reason)
}

/// The end of the slow path: rewrites the packet if `reason` says so; a fragment is what others wait for.
#[inline(always)]
fn finish<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
    side: Side,
    reason: Reason,
) -> Reason {
    let reason = if reason.verdict() == Verdict::Rewrite {
        rewrite::<F, P, T>(
            packet,
            tables,
            &scratch.key,
            &scratch.transport,
            side,
            &scratch.value,
            reason,
        )
    } else {
        if reason.is_refusal_of_service() {
            tables.count_refusal(scratch.value.service, reason, packet.length());
        }
        reason
    };
    if reason == Reason::NewFlow {
        tell::opened(tables, environment, scratch, packet.length());
    }
    if scratch.is_fragment == 0 {
        return reason;
    }
    scratch.reason = reason;
    fragment::depart::<F, P, T, E>(packet, tables, environment, scratch)
}

/// Rewrites a packet, whose key at the hook is this, and counts it for its service port.
#[inline(always)]
pub(super) fn rewrite<F: Family, P: Packet, T: Tables<F::Address>>(
    packet: &mut P,
    tables: &T,
    key: &FlowKey<F::Address>,
    transport: &Transport,
    side: Side,
    value: &FlowValue<F::Address>,
    reason: Reason,
) -> Reason {
    // A masquerade only adds to a flow that its DNAT half has counted.
    if value.flags & flow_flags::MASQUERADE == 0 {
        let (connections, length) = (u32::from(reason == Reason::NewFlow), packet.length());
        tables.count_service(value.service, connections, length);
        if tables.counts_endpoints() {
            count_endpoint(tables, key, connections, length);
        }
    }
    translate::<F, P>(packet, transport, side, value).map_or(Reason::RewriteFailed, |()| reason)
}

/// Counts a packet for the endpoint of its flow. (It looks the flow up once more: to be given it would take room on the stack of all
/// packets, who counts by endpoint or not.)
#[inline(never)]
fn count_endpoint<A: AddressBytes, T: Tables<A>>(tables: &T, key: &FlowKey<A>, connections: u32, length: u32) {
    if let Some(handle) = tables.flow(key) {
        let value = handle.value();
        let (address, port) = flow::backend(key, &value);
        let endpoint = EndpointKey::new(value.service, &address, port);
        tables.count_endpoint(&endpoint, connections, 1, length);
    }
}

/// Does what there is to do about a packet that is refused, and counts it by the reason, with the length that it had, unless it is none
/// of ours.
#[inline(always)]
fn settle<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    (direction, length): (u8, u32),
    mut reason: Reason,
) -> Outcome {
    if matches!(reason.verdict(), Verdict::Reject | Verdict::Drop) {
        reason = environment.refuse::<F, P, T>(packet, tables, direction, reason);
    }
    if reason != Reason::Unrelated {
        tables.count(reason, length);
    }
    reason.into()
}
