//! Tables `frontend_filter` and `backend_filter`: one bit for each address hash, so that packets of no service cost no
//! hash lookup. A clear bit means "certainly not"; a set one means "look it up".

use super::AddressBytes;

/// Number of 64-bit words in a filter: 2^20 bits, 128 KiB.
pub const FILTER_WORDS: u32 = 1 << 14;

/// Word index and bit mask of an address (4 or 16 bytes, network order) in a filter.
///
/// Multiplicative hashing (Knuth, TAOCP 3, 6.4): the top bits depend on all bits of the address.
#[inline(always)]
pub fn filter_bit<A: AddressBytes>(address: &A) -> (u32, u64) {
    let hash = (address.fold().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44) as u32;
    (hash >> 6, 1 << (hash & 63))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Neighbouring addresses, as clusters hand them out, must not share bits more than chance would have it.
    #[test]
    fn neighbours_spread() {
        let mut set = std::collections::HashSet::new();
        for host in 0..10_000u32 {
            set.insert(filter_bit(&(0x0a60_0000 + host).to_be_bytes()));
        }
        assert!(
            set.len() > 9_800,
            "{} of 10000 IPv4 addresses have a bit of their own",
            set.len()
        );
        set.clear();
        for host in 0..10_000u128 {
            set.insert(filter_bit(
                &(0xfd00_0010_0096_0000_0000_0000_0000_0000 + host).to_be_bytes(),
            ));
        }
        assert!(
            set.len() > 9_800,
            "{} of 10000 IPv6 addresses have a bit of their own",
            set.len()
        );
    }

    #[test]
    fn words_are_in_range() {
        for address in [[0; 4], [255; 4], [10, 96, 0, 1]] {
            assert!(filter_bit(&address).0 < FILTER_WORDS);
        }
    }
}
