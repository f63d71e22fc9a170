//! Both hooks of a packet in one go, where it enters an uplink and leaves by one: the ingress stage, the route, the egress
//! stage, and away, before the node's stack sees it.
//!
//! The stages decide first and nothing is written to the packet until both have: what can't be finished here goes up
//! untouched, and the hooks of [`super::edge`] decide again, by the same entries. So refusals are left to them, too, and
//! counted there.
//!
//! A flow goes this way in both directions or in neither, for the kernel's conntrack would see half of it otherwise. The
//! choice is made when the flow is opened and stands in all its halves ([`flow_flags::EXPRESS`]). Only what is masqueraded
//! can be sure to have its replies come back through an uplink of this node.

use super::{
    Environment, FlowHandle as _, Reason, Scratch, Tables,
    edge::{reason_of, rewrite},
    first, flow,
    own::may_collide as may_open,
    tell, upkeep,
};
use crate::{
    layout::{AddressBytes, EGRESS, FlowKey, INGRESS, device_flags, express, flow_flags},
    packet::{Hops, Packet, Side, Transport},
};

/// Where a packet goes next, on an Ethernet device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// Interface index of the device that it leaves by; 0 while that is unknown
    pub device: u32,
    /// Ethernet address of the next hop
    pub destination: [u8; 6],
    /// Ethernet address of the device
    pub source: [u8; 6],
}

/// An environment that knows routes and neighbours.
pub trait Routes: Environment + Sized {
    /// The same environment at another device.
    #[must_use]
    fn at(&self, device: u32) -> Self;

    /// Looks up where packets of `length` bytes with the addresses and ports of `journey` go; `class` is
    /// [`Hops::class`]. `false` if the packet can't be sent from here: the stack is to tell why. Its device is then set if it
    /// is only the neighbour that is missing.
    fn route<A: AddressBytes>(&self, journey: &FlowKey<A>, class: u32, length: u32, hop: &mut Hop) -> bool;
}

/// What is worked on while a packet crosses the node.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Crossing<A: AddressBytes> {
    /// The ingress stage
    pub entering: Scratch<A>,
    /// The egress stage
    pub leaving: Scratch<A>,
    /// The next hop
    pub hop: Hop,
    /// [`Hops::class`] of the packet
    class: u32,
    /// Bytes from the network header on
    length: u32,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    /// It goes to the stack, untouched
    PassUp,
    /// It is rewritten and leaves by the crossing's hop
    Transmit,
    /// It could not be written, and is half rewritten
    Drop,
    /// It is of a flow of the previous generation, and left to it
    Previous,
}

/// Forwards a packet that arrives at an uplink, if it is of a flow that goes this way.
#[inline(always)]
pub fn forward<F: Hops, P: Packet, T: Tables<F::Address>, E: Routes>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    crossing: &mut Crossing<F::Address>,
) -> Forwarding {
    let Some(addresses) = F::addresses(packet) else {
        return Forwarding::PassUp;
    };
    // Replies come to a masquerade address, which is one of the node's.
    if !tables.may_be_frontend(&addresses.destination) {
        return Forwarding::PassUp;
    }
    let (Some(transport), Some(class)) = (F::plain_transport(packet), F::class(packet)) else {
        return Forwarding::PassUp;
    };
    (crossing.entering.key, crossing.entering.transport) = (transport.key(INGRESS, addresses), transport);
    (crossing.class, crossing.length) = (class, packet.length());
    crossing.hop.device = 0;
    let entered = enter::<F, T, E>(tables, environment, crossing);
    if entered == Reason::Previous {
        return Forwarding::Previous;
    }
    if !is_settled(entered) || !leave::<F, T, E>(tables, environment, crossing) {
        return Forwarding::PassUp;
    }
    let Crossing { entering, leaving, .. } = crossing;
    if entered == Reason::NewFlow
        && let Some(handle) = tables.flow(&entering.key)
    {
        handle.touch(environment.now(), flow::seen(entering.transport.tcp_flags));
    }
    let (to, from) = (Side::Destination, Side::Source);
    let entered = rewrite::<F, P, T>(
        packet,
        tables,
        &entering.key,
        &entering.transport,
        to,
        &entering.value,
        entered,
    );
    let left = rewrite::<F, P, T>(
        packet,
        tables,
        &leaving.key,
        &leaving.transport,
        from,
        &leaving.value,
        Reason::Established,
    );
    tables.count(entered, packet.length());
    tables.count(left, packet.length());
    if tell::is_first_answer(&leaving.value) {
        tell::answered(tables, environment, leaving, packet.length());
    }
    if entered == Reason::NewFlow {
        tell::opened(tables, environment, entering, packet.length());
    }
    if is_settled(entered) && is_settled(left) && F::count_hop(packet).is_some() {
        Forwarding::Transmit
    } else {
        Forwarding::Drop
    }
}

/// Whether a stage has found how to rewrite the packet.
#[inline(always)]
const fn is_settled(reason: Reason) -> bool {
    matches!(reason, Reason::Established | Reason::NewFlow)
}

/// The ingress stage: how to rewrite the destination. Any other reason than those of [`is_settled`] means that the packet
/// is to go up.
#[inline(always)]
fn enter<F: Hops, T: Tables<F::Address>, E: Routes>(
    tables: &T,
    environment: &E,
    crossing: &mut Crossing<F::Address>,
) -> Reason {
    let Scratch { key, transport, .. } = &crossing.entering;
    let Some(value) = tables.flow(key).map(|handle| handle.value()) else {
        return if tables.is_previous(key) {
            Reason::Previous
        } else if may_open(transport) {
            enter_slow::<F, T, E>(tables, environment, crossing, false)
        } else {
            Reason::Unrelated
        };
    };
    if value.flags & flow_flags::EXPRESS == 0 {
        return Reason::Unrelated;
    }
    if upkeep::is_due(&value, transport.tcp_flags, environment.now()) {
        return enter_slow::<F, T, E>(tables, environment, crossing, true);
    }
    crossing.entering.value = value;
    Reason::Established
}

/// The ingress stage of a packet whose flow is due for upkeep, or new.
#[inline(never)]
fn enter_slow<F: Hops, T: Tables<F::Address>, E: Routes>(
    tables: &T,
    environment: &E,
    crossing: &mut Crossing<F::Address>,
    known: bool,
) -> Reason {
    if known {
        match upkeep::keep::<F, T, E>(tables, environment, &mut crossing.entering) {
            Ok(true) => return reason_of(&crossing.entering.value),
            Ok(false) if may_open(&crossing.entering.transport) => {}
            _ => return Reason::Unrelated,
        }
    }
    open::<F, T, E>(tables, environment, crossing).map_or(Reason::Unrelated, |()| Reason::NewFlow)
}

/// Opens a flow. If that can't go this way its entries are written nevertheless, for the endpoint is chosen; the hooks
/// find them, and count the flow with the packet.
#[inline(always)]
fn open<F: Hops, T: Tables<F::Address>, E: Routes>(
    tables: &T,
    environment: &E,
    crossing: &mut Crossing<F::Address>,
) -> Result<(), Reason> {
    first::choose_endpoint::<F, T, E>(tables, environment, &mut crossing.entering)?;
    // The route goes by it, and it may be another one once the flow is reserved: no matter to devices.
    look_up_route(environment, crossing);
    let Crossing { entering, hop, .. } = crossing;
    entering.value.history = 0;
    let both_ways = entering.value.flags & flow_flags::MASQUERADED != 0 && goes_on(tables, environment.device(), hop);
    if both_ways {
        entering.value.flags |= flow_flags::EXPRESS;
    }
    first::open(tables, environment, entering)
        .or_else(|reason| first::open_again(tables, environment, entering, reason))?;
    // Its port as the backend sees it may have changed.
    hop.device = 0;
    if both_ways { Ok(()) } else { Err(Reason::Unrelated) }
}

/// Whether XDP hands packets from one device to the one of `hop`: it runs at both, in the same mode.
#[inline(always)]
fn goes_on<A: AddressBytes, T: Tables<A>>(tables: &T, from: u32, hop: &Hop) -> bool {
    let mode = |device| (tables.device_flags(device) & device_flags::EXPRESS_MASK) >> device_flags::EXPRESS_SHIFT;
    let there = mode(hop.device);
    matches!(there, express::NATIVE | express::GENERIC) && (hop.device == from || mode(from) == there)
}

/// Sets the key of the egress stage from what the ingress stage decided, and looks up the route of the packet in between.
#[inline(always)]
fn look_up_route<A: AddressBytes, E: Routes>(environment: &E, crossing: &mut Crossing<A>) -> bool {
    let Crossing {
        entering,
        leaving,
        hop,
        class,
        length,
    } = crossing;
    let Scratch { key, value, .. } = entering;
    leaving.key = FlowKey::new(
        EGRESS,
        key.protocol,
        (key.source, value.other_port),
        (value.address, value.port),
    );
    environment.route(&leaving.key, *class, *length, hop)
}

/// Route and egress stage: where the packet goes, and how to rewrite its source.
#[inline(always)]
fn leave<F: Hops, T: Tables<F::Address>, E: Routes>(
    tables: &T,
    environment: &E,
    crossing: &mut Crossing<F::Address>,
) -> bool {
    if !look_up_route(environment, crossing) {
        return false;
    }
    let device = crossing.hop.device;
    if device != environment.device() && !goes_on(tables, environment.device(), &crossing.hop) {
        return false;
    }
    let Crossing { entering, leaving, .. } = crossing;
    leaving.transport = Transport {
        source_port: entering.value.other_port,
        destination_port: entering.value.port,
        ..entering.transport
    };
    let Some(value) = tables.flow(&leaving.key).map(|handle| handle.value()) else {
        return false;
    };
    if value.flags & flow_flags::EXPRESS == 0 {
        return false;
    }
    if upkeep::is_due(&value, leaving.transport.tcp_flags, environment.now()) {
        let there = environment.at(device);
        return matches!(upkeep::keep::<F, T, E>(tables, &there, leaving), Ok(true));
    }
    leaving.value = value;
    true
}
