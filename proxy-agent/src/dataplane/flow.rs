//! Stand-in for `proxy_common::datapath::flow` until that is on main: same signatures.

use proxy_common::layout::{AddressBytes, EGRESS, FlowKey, FlowValue, INGRESS, Timeouts, flow_flags, history};

/// The other half of a flow.
pub fn twin<A: AddressBytes>(key: &FlowKey<A>, value: &FlowValue<A>) -> (FlowKey<A>, FlowValue<A>) {
    let ((direction, source, destination), original) = if key.direction == INGRESS {
        let ends = (EGRESS, (value.address, value.port), (key.source, value.other_port));
        (ends, (key.destination, key.destination_port, key.source_port))
    } else {
        let ends = (
            INGRESS,
            (key.destination, value.other_port),
            (value.address, value.port),
        );
        (ends, (key.source, key.source_port, key.destination_port))
    };
    let twin = FlowValue {
        address: original.0,
        port: original.1,
        other_port: original.2,
        flags: value.flags ^ flow_flags::REPLY,
        address_difference: !value.address_difference,
        ..*value
    };
    (FlowKey::new(direction, key.protocol, source, destination), twin)
}

/// What a flow is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// TCP: not answered yet
    TcpOpening,
    /// TCP: answered
    TcpEstablished,
    /// TCP: reset or closed
    TcpClosing,
    /// UDP: not answered yet
    UdpOpening,
    /// UDP: packets both ways
    UdpEstablished,
}

impl State {
    /// How long such a flow is kept without packets, in ticks.
    pub const fn timeout(self, timeouts: &Timeouts) -> u32 {
        match self {
            Self::TcpOpening => timeouts.tcp_opening,
            Self::TcpEstablished => timeouts.tcp_established,
            Self::TcpClosing => timeouts.tcp_closing,
            Self::UdpOpening => timeouts.udp_opening,
            Self::UdpEstablished => timeouts.udp_established,
        }
    }
}

/// The state of a flow by its halves.
pub fn state<A>(protocol: u8, one: Option<&FlowValue<A>>, other: Option<&FlowValue<A>>) -> State {
    let (one, other) = (one.map_or(0, |half| half.history), other.map_or(0, |half| half.history));
    let seen = one & other & history::SEEN != 0;
    if protocol == 6 {
        if (one | other) & history::RST != 0 || one & other & history::FIN != 0 {
            State::TcpClosing
        } else if seen {
            State::TcpEstablished
        } else {
            State::TcpOpening
        }
    } else if seen {
        State::UdpEstablished
    } else {
        State::UdpOpening
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::TcpOpening | Self::UdpOpening => "opening",
            Self::TcpEstablished | Self::UdpEstablished => "established",
            Self::TcpClosing => "closing",
        })
    }
}
