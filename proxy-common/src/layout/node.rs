//! Tables `addresses_*`, the node's own addresses, and `service_ranges`, the ranges that cluster addresses are from.

use super::{AddressBytes, plain};

/// Bits of the values of `addresses_*`.
pub mod address_flags {
    /// The address is local to the node (behaviour.md 5.6)
    pub const LOCAL: u32 = 1;
    /// nodePorts are served on it (behaviour.md 3.6)
    pub const NODE_PORTS: u32 = 2;
    /// nodePorts are served on it to processes of the host only: it is a loopback one (behaviour.md 3.7)
    pub const LOOPBACK_NODE_PORTS: u32 = 4;
}

/// How many ranges of a family `service_ranges` holds.
pub const MAX_SERVICE_RANGES: usize = 4;

/// A range of addresses; no range where the mask is zero, as in a table nobody has written yet.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Range<A> {
    /// First address, network byte order
    pub network: A,
    /// Ones where the addresses agree, network byte order
    pub mask: A,
}

/// ServiceCIDRs (behaviour.md 4.7); the one entry of its table.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ServiceRanges {
    /// IPv4
    pub v4: [Range<[u8; 4]>; MAX_SERVICE_RANGES],
    /// IPv6
    pub v6: [Range<[u8; 16]>; MAX_SERVICE_RANGES],
}

impl<A: AddressBytes> Range<A> {
    /// Whether the address is in one of the ranges, of which the used ones come first.
    #[inline(always)]
    pub fn any_contains(ranges: &[Self; MAX_SERVICE_RANGES], address: &A) -> bool {
        let mut used = ranges.iter().take_while(|range| range.mask != A::default());
        used.any(|range| address.is_in(&range.network, &range.mask))
    }
}

plain! {
    Range<[u8; 4]> = 8;
    Range<[u8; 16]> = 32;
    ServiceRanges = 160;
}
