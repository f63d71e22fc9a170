//! Tables of fragments: `fragments_v4` and `fragments_v6` say what became of the first fragment of a packet, which alone
//! has ports, and so of the others; `held_fragments` keeps those that came before it.

use super::{AddressBytes, plain};

/// What the fragments of one packet have in common at a hook, before they are rewritten (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey<A> {
    /// Source address, network byte order
    pub source: A,
    /// Destination address, network byte order
    pub destination: A,
    /// Identification, host byte order; 16 bits in IPv4
    pub identification: u32,
    /// IP protocol number in IPv4, where each has identifications of its own; 0 in IPv6
    pub protocol: u8,
    /// [`super::INGRESS`] or [`super::EGRESS`]
    pub direction: u8,
    /// Always 0
    pub reserved: u16,
}

/// What becomes of the fragments of one packet.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct FragmentValue<A> {
    /// New destination (ingress) or source (egress) address, network byte order
    pub address: A,
    /// Id of the service port, key of `service_names`
    pub service: u32,
    /// Tick (see [`super::TICK_SHIFT`]) at which the entry was made
    pub since: u32,
    /// [`HeldKey::queue`] of fragments that wait
    pub queue: u32,
    /// One's complement 16-bit sum of the new address minus the old one, in packet word order
    pub address_difference: u16,
    /// One of [`fate`]
    pub fate: u16,
}

/// Values of [`FragmentValue::fate`].
pub mod fate {
    /// The first fragment has not come: others are held until it does
    pub const WAITING: u16 = 0;
    /// The first fragment passed untouched
    pub const PASSED: u16 = 1;
    /// The first fragment was rewritten
    pub const REWRITTEN: u16 = 2;
    /// The first fragment was rewritten by a masquerade, which only adds to a flow that is counted elsewhere
    pub const MASQUERADED: u16 = 3;
    /// The first fragment was refused
    pub const REFUSED: u16 = 4;
    /// The first fragment was left to the previous generation of programs
    pub const PREVIOUS: u16 = 5;
}

/// Bytes that are kept of a fragment, from its network header on: the largest MTU of usual networks (jumbo frames).
pub const HELD_BYTES: usize = 9216;

/// Which fragment is held.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct HeldKey {
    /// Of the packet that it is part of: [`FragmentValue::queue`], a random number
    pub queue: u32,
    /// About where it stands in that packet, in KiB
    pub place: u32,
}

/// A fragment that waits for the first one of its packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldFragment {
    /// How many of `bytes` are its own
    pub length: u32,
    /// The fragment, from its network header on; what follows has no meaning
    pub bytes: [u8; HELD_BYTES],
}

impl<A: AddressBytes> FragmentKey<A> {
    /// Key of the fragments of one packet at a hook.
    pub const fn new(direction: u8, protocol: u8, source: A, destination: A, identification: u32) -> Self {
        Self {
            source,
            destination,
            identification,
            protocol,
            direction,
            reserved: 0,
        }
    }
}

impl Default for HeldFragment {
    fn default() -> Self {
        Self {
            length: 0,
            bytes: [0; HELD_BYTES],
        }
    }
}

plain! {
    FragmentKey<[u8; 4]> = 16;
    FragmentKey<[u8; 16]> = 40;
    FragmentValue<[u8; 4]> = 20;
    FragmentValue<[u8; 16]> = 32;
    HeldKey = 8;
    HeldFragment = 9220;
}
