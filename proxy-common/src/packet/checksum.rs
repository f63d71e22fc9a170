//! The internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! Sums are taken over 16-bit words in memory order; the sum's byte order is that of the words (RFC 1071, 2.B), so
//! nothing is swapped as long as a checksum is read and written as it stands in the packet.

/// Folds a sum of 16-bit words to 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "folded twice: at most 16 bits are left")]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Folds a sum of up to 2^32 32-bit words to one of 16-bit words.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the two halves, then at most 17 bits")]
pub const fn fold_words(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
    fold(sum as u32)
}

/// The checksum after its data changed by `difference`: RFC 1624, equation 3.
#[inline(always)]
pub const fn update(checksum: u16, difference: u16) -> u16 {
    !fold((!checksum) as u32 + difference as u32)
}

/// One's complement sum of words, not folded: of an address, or of a header. Of at most 128 KiB.
#[inline(always)]
pub fn sum(words: &[u8]) -> u32 {
    words
        .chunks_exact(2)
        .fold(0, |sum, word| sum + u32::from(u16::from_ne_bytes([word[0], word[1]])))
}

/// What `new` adds to a checksum's data in place of `old`; 0 if they sum up alike.
#[inline(always)]
pub fn difference<const N: usize>(old: &[u8; N], new: &[u8; N]) -> u16 {
    difference_of_sums(fold(sum(old)), fold(sum(new)))
}

/// [`difference`] of already folded sums.
#[inline(always)]
const fn difference_of_sums(old: u16, new: u16) -> u16 {
    match fold(new as u32 + (!old) as u32) {
        // Minus zero and zero are the same number; only one of them may say "no change".
        0xffff => 0,
        difference => difference,
    }
}

/// The difference of the way back.
#[inline(always)]
pub const fn negate(difference: u16) -> u16 {
    if difference == 0 { 0 } else { !difference }
}

/// [`difference`] for a pair of ports, host byte order.
#[inline(always)]
pub fn port_difference(old: (u16, u16), new: (u16, u16)) -> u16 {
    let sum = |ports: (u16, u16)| fold(u32::from(ports.0.to_be()) + u32::from(ports.1.to_be()));
    difference_of_sums(sum(old), sum(new))
}

/// The whole checksum of `data`, to be stored as it is: the reference that updates are tested against.
pub fn checksum(data: &[u8]) -> u16 {
    !fold(fold_long(data))
}

/// Sum of any length of data, folded so that it fits.
fn fold_long(data: &[u8]) -> u32 {
    let mut words = data.chunks_exact(2);
    let mut total = words.by_ref().fold(0u32, |total, word| {
        u32::from(fold(total + u32::from(u16::from_ne_bytes([word[0], word[1]]))))
    });
    if let [last] = words.remainder() {
        total += u32::from(u16::from_ne_bytes([*last, 0]));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071, section 3: the sum of its example is ddf2 in network order.
    #[test]
    fn example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!((!checksum(&data)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        /// Words of either size sum up alike.
        #[test]
        fn long_words_sum_up_as_short_ones(data in prop::collection::vec(any::<[u8; 4]>(), 0..64)) {
            let words = data.iter().map(|word| u64::from(u32::from_ne_bytes(*word))).sum();
            prop_assert_eq!(!fold_words(words), checksum(&data.concat()));
        }

        /// Updating equals computing anew, for any change of any word.
        #[test]
        fn update_equals_recomputation(mut data in prop::collection::vec(any::<u8>(), 40), new: [u8; 16]) {
            let before = checksum(&data);
            let old: [u8; 16] = data[8..24].try_into().unwrap();
            data[8..24].copy_from_slice(&new);
            let updated = update(before, difference(&old, &new));
            let expected = checksum(&data);
            // 0 and 0xffff are the same number in one's complement.
            prop_assert!(updated == expected || (updated.is_multiple_of(0xffff) && expected.is_multiple_of(0xffff)));
        }

        #[test]
        fn no_change_is_zero(old: [u8; 4], ports: (u16, u16)) {
            prop_assert_eq!(difference(&old, &old), 0);
            prop_assert_eq!(port_difference(ports, ports), 0);
        }
    }
}
