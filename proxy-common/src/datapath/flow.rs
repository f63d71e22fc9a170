//! The two halves of a flow, and its state.

use super::Environment;
use crate::layout::{AddressBytes, EGRESS, FlowKey, FlowValue, INGRESS, Timeouts, flow_flags, history};
use crate::packet::{TCP, UDP, checksum, opens_connection, tcp_flags};

/// The key of the other half.
///
/// One formula serves DNAT and masquerade, both ways. A half at ingress says "from S to D: write R over D"; its twin at
/// egress says "from R to S: write D over R" - and the reverse.
#[inline(always)]
pub fn twin_key<A: AddressBytes>(key: &FlowKey<A>, value: &FlowValue<A>) -> FlowKey<A> {
    let rewritten = (value.address, value.port);
    if key.direction == INGRESS {
        FlowKey::new(EGRESS, key.protocol, rewritten, (key.source, value.other_port))
    } else {
        FlowKey::new(INGRESS, key.protocol, (key.destination, value.other_port), rewritten)
    }
}

/// Address and port of the side that a hook rewrites, as they are before, and the other side's port.
#[inline(always)]
const fn before<A: AddressBytes>(key: &FlowKey<A>) -> (A, u16, u16) {
    if key.direction == INGRESS {
        (key.destination, key.destination_port, key.source_port)
    } else {
        (key.source, key.source_port, key.destination_port)
    }
}

/// The value of the other half, not seen yet.
#[inline(always)]
pub fn twin_value<A: AddressBytes>(key: &FlowKey<A>, value: &FlowValue<A>) -> FlowValue<A> {
    let (address, port, other_port) = before(key);
    FlowValue {
        address,
        port,
        other_port,
        #[cfg(feature = "other-layout")]
        added: 0,
        service: value.service,
        last_seen: value.last_seen,
        address_difference: checksum::negate(value.address_difference),
        history: 0,
        flags: (value.flags & (flow_flags::MASQUERADE | flow_flags::EXPRESS | flow_flags::CONNTRACK))
            | (!value.flags & flow_flags::REPLY),
    }
}

/// The value of a half that the kernel's conntrack translates (see [`flow_flags::CONNTRACK`]): it writes what is there. Packets
/// were seen both ways before the node was taken over; `flags` are further bits.
pub fn left_to_conntrack<A: AddressBytes>(key: &FlowKey<A>, service: u32, last_seen: u32, flags: u8) -> FlowValue<A> {
    let (address, port, other_port) = before(key);
    FlowValue {
        address,
        port,
        other_port,
        #[cfg(feature = "other-layout")]
        added: 0,
        service,
        last_seen,
        address_difference: 0,
        history: history::SEEN | history::CONFIRMED | history::LASTING,
        flags: flow_flags::CONNTRACK | flags,
    }
}

/// The key of the client's half of the masquerade of a flow, by the client's half of the flow: what the backend's edge sees
/// of the client's packets.
#[inline(always)]
pub const fn masquerade_key<A: AddressBytes>(key: &FlowKey<A>, value: &FlowValue<A>) -> FlowKey<A> {
    FlowKey::new(
        EGRESS,
        key.protocol,
        (key.source, value.other_port),
        (value.address, value.port),
    )
}

/// The endpoint that a flow is to, by either half and by either half of its masquerade.
pub fn backend<A: AddressBytes>(key: &FlowKey<A>, value: &FlowValue<A>) -> (A, u16) {
    let is_reply = value.flags & flow_flags::REPLY != 0;
    match (is_reply, value.flags & flow_flags::MASQUERADE != 0) {
        (false, false) => (value.address, value.port),
        (false, true) => (key.destination, key.destination_port),
        (true, _) => (key.source, key.source_port),
    }
}

/// Whether two values under one key rewrite alike: then they are halves of one flow.
#[inline(always)]
pub fn same_rewrite<A: AddressBytes>(one: &FlowValue<A>, other: &FlowValue<A>) -> bool {
    one.address == other.address && one.port == other.port && one.other_port == other.other_port
}

/// What a packet with these [`tcp_flags`] adds to the history of its half.
#[inline(always)]
pub const fn seen(flags: u8) -> u8 {
    let mut seen = history::SEEN;
    if !opens_connection(flags) {
        seen |= history::CONFIRMED;
    }
    if flags & tcp_flags::FIN != 0 {
        seen |= history::FIN;
    }
    if flags & tcp_flags::RST != 0 {
        seen |= history::RST;
    }
    seen
}

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Not answered yet
    Opening,
    /// Answered, but that may be all there is to it: the client has not confirmed the handshake, or (UDP) it was over
    /// within a tick. Who floods with false sources comes this far
    Answered,
    /// Packets were seen both ways, and more than one
    Established,
    /// TCP and SCTP: closed by one side
    HalfClosed,
    /// TCP and SCTP: reset, or closed by both sides
    Closing,
}

impl State {
    /// The state of a flow of an IP protocol by either of its halves and its twin.
    #[inline(always)]
    pub fn of<A: AddressBytes>(protocol: u8, half: &FlowValue<A>, twin: Option<&FlowValue<A>>) -> Self {
        // The client's half may be lost, but who is answered has asked.
        let twin_history = twin.map_or(history::CONFIRMED, |twin| twin.history);
        let (client, reply) = if half.flags & flow_flags::REPLY == 0 {
            (half.history, twin_history)
        } else {
            (twin_history, half.history)
        };
        let (either, both) = (client | reply, client & reply);
        let closes = protocol != UDP;
        let proof = if closes {
            client & history::CONFIRMED
        } else {
            either & history::LASTING
        };
        if closes && (either & history::RST != 0 || both & history::FIN != 0) {
            Self::Closing
        } else if reply & history::SEEN == 0 {
            Self::Opening
        } else if proof == 0 {
            Self::Answered
        } else if closes && either & history::FIN != 0 {
            Self::HalfClosed
        } else {
            Self::Established
        }
    }

    /// How long a flow in this state is kept without packets, in ticks.
    #[inline(always)]
    pub const fn timeout(self, protocol: u8, timeouts: &Timeouts) -> u32 {
        match (self, protocol) {
            (Self::Opening, TCP) => timeouts.tcp_opening,
            (Self::Answered, TCP) => timeouts.tcp_answered,
            (Self::Established, TCP) => timeouts.tcp_established,
            (Self::HalfClosed, TCP) => timeouts.tcp_half_closed,
            (Self::Closing, TCP) => timeouts.tcp_closing,
            (Self::Opening | Self::Answered, UDP) => timeouts.udp_opening,
            (_, UDP) => timeouts.udp_established,
            (Self::Opening | Self::Answered, _) => timeouts.sctp_opening,
            (Self::Established | Self::HalfClosed, _) => timeouts.sctp_established,
            (Self::Closing, _) => timeouts.sctp_closing,
        }
    }

    /// Whether a flow in this state may be given up for a new one when the table is full: it has not got anywhere, or it is
    /// over.
    #[inline(always)]
    pub const fn is_expendable(self) -> bool {
        matches!(self, Self::Opening | Self::Answered | Self::Closing)
    }
}

/// For how many ticks after its last packet a flow that did not get anywhere, or is closed, may be under way: a handshake takes less, and
/// so does what comes after a connection's end.
const YOUNG: u32 = 2;

/// For how many ticks a flow has been without packets, by a half and its twin; `now` in ticks.
#[inline(always)]
fn silence<A>(half: &FlowValue<A>, twin: Option<&FlowValue<A>>, now: u32) -> u32 {
    let last_seen = twin.map_or(half.last_seen, |twin| half.last_seen.max(twin.last_seen));
    // Another CPU may already have written a later tick.
    now.saturating_sub(last_seen)
}

/// Whether packets of a flow may be under way, by a half and its twin; `now` in ticks.
#[inline(always)]
pub fn is_young<A>(half: &FlowValue<A>, twin: Option<&FlowValue<A>>, now: u32) -> bool {
    silence(half, twin, now) < YOUNG
}

/// Whether a flow has been without packets for longer than its state allows; `now` in ticks.
#[inline(always)]
pub fn is_expired<A: AddressBytes>(
    protocol: u8,
    half: &FlowValue<A>,
    twin: Option<&FlowValue<A>>,
    now: u32,
    timeouts: &Timeouts,
) -> bool {
    silence(half, twin, now) > State::of(protocol, half, twin).timeout(protocol, timeouts)
}

/// Whether a flow is over: too long without packets, or closed and its place is `wanted` by another.
#[inline(always)]
pub(super) fn is_over<A: AddressBytes, E: Environment>(
    environment: &E,
    protocol: u8,
    half: &FlowValue<A>,
    twin: Option<&FlowValue<A>>,
    wanted: bool,
) -> bool {
    wanted && State::of(protocol, half, twin) == State::Closing
        || is_expired(protocol, half, twin, environment.now(), environment.timeouts())
}
