//! The two halves of a flow, and its state.

use super::Environment;
use crate::layout::{AddressBytes, EGRESS, FlowKey, FlowValue, INGRESS, Timeouts, flow_flags, history};
use crate::packet::{TCP, UDP, checksum};

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

/// The value of the other half, not seen yet.
#[inline(always)]
pub fn twin_value<A: AddressBytes>(key: &FlowKey<A>, value: &FlowValue<A>) -> FlowValue<A> {
    let ((address, port), other_port) = if key.direction == INGRESS {
        ((key.destination, key.destination_port), key.source_port)
    } else {
        ((key.source, key.source_port), key.destination_port)
    };
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
    let ((address, port), other_port) = if key.direction == INGRESS {
        ((key.destination, key.destination_port), key.source_port)
    } else {
        ((key.source, key.source_port), key.destination_port)
    };
    FlowValue {
        address,
        port,
        other_port,
        #[cfg(feature = "other-layout")]
        added: 0,
        service,
        last_seen,
        address_difference: 0,
        history: history::SEEN,
        flags: flow_flags::CONNTRACK | flags,
    }
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

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Not answered yet
    Opening,
    /// Packets were seen both ways
    Established,
    /// TCP and SCTP: reset, or closed by both sides
    Closing,
}

impl State {
    /// The state of a flow of an IP protocol by either of its halves and its twin.
    #[inline(always)]
    pub fn of<A: AddressBytes>(protocol: u8, half: &FlowValue<A>, twin: Option<&FlowValue<A>>) -> Self {
        let twin_history = twin.map_or(0, |twin| twin.history);
        let reply_history = if half.flags & flow_flags::REPLY == 0 {
            twin_history
        } else {
            half.history
        };
        let reset = (half.history | twin_history) & history::RST != 0;
        let closed = half.history & twin_history & history::FIN != 0;
        if protocol != UDP && (reset || closed) {
            Self::Closing
        } else if reply_history & history::SEEN == 0 {
            Self::Opening
        } else {
            Self::Established
        }
    }

    /// How long a flow in this state is kept without packets, in ticks.
    #[inline(always)]
    pub const fn timeout(self, protocol: u8, timeouts: &Timeouts) -> u32 {
        match (self, protocol) {
            (Self::Opening, TCP) => timeouts.tcp_opening,
            (Self::Established, TCP) => timeouts.tcp_established,
            (Self::Closing, TCP) => timeouts.tcp_closing,
            (Self::Opening, UDP) => timeouts.udp_opening,
            (Self::Established | Self::Closing, UDP) => timeouts.udp_established,
            (Self::Opening, _) => timeouts.sctp_opening,
            (Self::Established, _) => timeouts.sctp_established,
            (Self::Closing, _) => timeouts.sctp_closing,
        }
    }
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
    let last_seen = twin.map_or(half.last_seen, |twin| half.last_seen.max(twin.last_seen));
    // Another CPU may already have written a later tick.
    now.saturating_sub(last_seen) > State::of(protocol, half, twin).timeout(protocol, timeouts)
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
        || is_expired(protocol, half, twin, environment.now(), &environment.timeouts())
}
