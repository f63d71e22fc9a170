//! Tables `sources_*`: ranges of client addresses, matched by longest prefix.

use super::{AddressBytes, plain};

/// A range of source addresses: key of a `BPF_MAP_TYPE_LPM_TRIE`.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey<A> {
    /// Bits of `source` that count
    pub prefix_length: u32,
    /// What they are compared with
    pub source: Source<A>,
}

/// Who lets an address in, and the address.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source<A> {
    /// Id of the service port that lets the range in (behaviour.md 3.10), or [`LOCAL_PODS`]
    pub service: u32,
    /// First address of the range, network byte order
    pub address: A,
}

/// [`Source::service`]: the range holds the cluster's pods (behaviour.md 5.8). No service port has this id.
pub const LOCAL_PODS: u32 = 0;

impl<A: AddressBytes> SourceKey<A> {
    /// Key of the range of the first `prefix` bits of `address`.
    #[inline(always)]
    pub const fn new(service: u32, address: A, prefix: u8) -> Self {
        Self {
            prefix_length: u32::BITS + prefix as u32,
            source: Source { service, address },
        }
    }

    /// Key to look one address up.
    #[inline(always)]
    pub const fn exactly(service: u32, address: A) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "4 or 16 bytes")]
        let bits = size_of::<A>() as u8 * 8;
        Self::new(service, address, bits)
    }
}

plain! {
    Source<[u8; 4]> = 8;
    Source<[u8; 16]> = 20;
    SourceKey<[u8; 4]> = 12;
    SourceKey<[u8; 16]> = 24;
}
