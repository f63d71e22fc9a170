//! Tables `flows_v4` and `flows_v6`: what to rewrite in a packet, by its 5-tuple as seen at a hook.

use super::{AddressBytes, added, plain};

/// [`FlowKey::direction`]: seen at the ingress hook of an edge, where the destination is rewritten
pub const INGRESS: u8 = 0;
/// [`FlowKey::direction`]: seen at the egress hook of an edge, where the source is rewritten
pub const EGRESS: u8 = 1;

/// A packet as the hook sees it, before it is rewritten.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey<A> {
    /// Source address, network byte order
    pub source: A,
    /// Destination address, network byte order
    pub destination: A,
    /// Source port, host byte order
    pub source_port: u16,
    /// Destination port, host byte order
    pub destination_port: u16,
    /// IP protocol number
    pub protocol: u8,
    /// [`INGRESS`] or [`EGRESS`]
    pub direction: u8,
    /// Always 0
    pub reserved: u16,
}

/// One half of a flow: how packets with its key are rewritten. The other half, its twin, undoes it for the way back;
/// each half's key and value follow from the other's (`datapath::flow::twin`).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FlowValue<A> {
    /// New destination (ingress) or source (egress) address, network byte order
    pub address: A,
    /// New port of that side, host byte order
    pub port: u16,
    /// New port of the other side, host byte order: differs from the key's only where two flows would collide
    pub other_port: u16,
    /// See [`super::added`]
    #[cfg(feature = "other-layout")]
    pub added: u32,
    /// Id of the service port, key of `service_names`
    pub service: u32,
    /// Tick (see [`super::TICK_SHIFT`]) of the last packet
    pub last_seen: u32,
    /// One's complement 16-bit sum of the new address minus the old one, in packet word order
    pub address_difference: u16,
    /// Bits of [`history`]: what this half has seen
    pub history: u8,
    /// Bits of [`flow_flags`]
    pub flags: u8,
}

/// Bits of [`FlowValue::history`].
pub mod history {
    /// At least one packet was rewritten by this half
    pub const SEEN: u8 = 1;
    /// TCP: a packet with FIN
    pub const FIN: u8 = 2;
    /// TCP: a packet with RST
    pub const RST: u8 = 4;
    /// A packet that doesn't open a connection: after an answer, the client has proved that it is there
    pub const CONFIRMED: u8 = 8;
    /// A packet in a later tick than the one before it
    pub const LASTING: u8 = 16;
}

/// Bits of [`FlowValue::flags`].
pub mod flow_flags {
    /// This half carries the server's packets, its twin the client's
    pub const REPLY: u8 = 1;
    /// This pair is a masquerade: it hides the client from the backend
    pub const MASQUERADE: u8 = 2;
    /// The masquerade address and port are not chosen yet: the first packet at egress does it
    pub const UNRESOLVED: u8 = 4;
    /// The twin was removed when the ports were used directly (UDP): restore it with the next packet
    pub const TWIN_REMOVED: u8 = 8;
    /// The flow needs a masquerade at its backend's edge
    pub const MASQUERADED: u8 = 16;
    /// XDP forwards the packets of this flow, both ways: the node's stack doesn't know it (`datapath::forward`)
    pub const EXPRESS: u8 = 32;
    /// The kernel's conntrack translates this flow, as it did before the node was taken over: rewrites nothing, and keeps
    /// its 5-tuples from others
    pub const CONNTRACK: u8 = 64;
}

impl<A: AddressBytes> FlowKey<A> {
    /// Key for a packet at a hook; ports in host byte order.
    pub const fn new(direction: u8, protocol: u8, source: (A, u16), destination: (A, u16)) -> Self {
        Self {
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            protocol,
            direction,
            reserved: 0,
        }
    }
}

plain! {
    FlowKey<[u8; 4]> = 16;
    FlowKey<[u8; 16]> = 40;
    FlowValue<[u8; 4]> = 20 + added(4);
    FlowValue<[u8; 16]> = 32 + added(4);
}
