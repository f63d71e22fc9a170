//! CRC32c (RFC 9260, appendix A), the checksum of SCTP, and its incremental update.
//!
//! A CRC is a remainder of polynomials over GF(2), so it is linear: a change of the data changes it by the CRC of the
//! change alone, which is the changed bits times `x` to the power of how far they are from the end. That distance is a sum
//! of powers of two, and multiplying by `x` to each of these is a look-up for every four bits.
//!
//! Polynomials are reflected: the highest bit is the coefficient of `x^0`.

/// The polynomial, without `x^32` (RFC 3385; 0x1EDC6F41 reflected).
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// What a byte shifts by: `x^8`.
const BYTE: u32 = 1 << (31 - 8);

/// By binary logarithm of a number of bytes, place of four bits, and these bits: their product with what so many bytes
/// shift by.
static SHIFTS: [[[u32; 16]; 8]; 16] = shifts();

const fn shifts() -> [[[u32; 16]; 8]; 16] {
    let mut shifts = [[[0; 16]; 8]; 16];
    let mut power = BYTE;
    let mut logarithm = 0;
    while logarithm < 16 {
        let mut place = 0;
        while place < 8 {
            let mut bits = 0;
            while bits < 16 {
                #[expect(clippy::cast_possible_truncation, reason = "less than 16")]
                let polynomial = (bits as u32) << (4 * place);
                shifts[logarithm][place][bits] = multiply(polynomial, power);
                bits += 1;
            }
            place += 1;
        }
        power = multiply(power, power);
        logarithm += 1;
    }
    shifts
}

/// The product of two polynomials, modulo [`POLYNOMIAL`].
const fn multiply(one: u32, other: u32) -> u32 {
    let (mut product, mut one, mut other) = (0, one, other);
    while one != 0 {
        if one >> 31 != 0 {
            product ^= other;
        }
        one <<= 1;
        other = other >> 1 ^ if other & 1 == 0 { 0 } else { POLYNOMIAL };
    }
    product
}

/// What a change of four bytes changes the CRC of the data by. `change` is the exclusive or of the bytes before and after,
/// little-endian; `length` counts the bytes from the first of them to the end.
#[inline(always)]
pub fn difference(change: u32, length: u16) -> u32 {
    let mut difference = change;
    for (logarithm, shift) in SHIFTS.iter().enumerate() {
        if length >> logarithm & 1 != 0 {
            let bits = |place: usize| (difference >> (4 * place)) as usize & 15;
            let products = shift.iter().enumerate().map(|(place, products)| products[bits(place)]);
            difference = products.fold(0, |sum, product| sum ^ product);
        }
    }
    difference
}

/// The whole CRC of `data`: the reference that updates are tested against.
pub fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 0 { 0 } else { POLYNOMIAL }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The usual check value of this CRC (RFC 3720, B.4, has others).
    #[test]
    fn known_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn the_longest_packet() {
        let mut data = vec![0x5a; 65_535];
        let before = crc32c(&data);
        data[..4].copy_from_slice(&[1, 2, 3, 4]);
        let change = u32::from_le_bytes([0x5a ^ 1, 0x5a ^ 2, 0x5a ^ 3, 0x5a ^ 4]);
        assert_eq!(before ^ difference(change, 65_535), crc32c(&data));
    }

    proptest! {
        /// Updating equals computing anew, for any change anywhere in any data.
        #[test]
        fn update_equals_recomputation(mut data in prop::collection::vec(any::<u8>(), 4..3000), at: prop::sample::Index, new: [u8; 4]) {
            let at = at.index(data.len() - 3);
            let before = crc32c(&data);
            let old: [u8; 4] = data[at..at + 4].try_into().unwrap();
            data[at..at + 4].copy_from_slice(&new);
            let change = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            let length = u16::try_from(data.len() - at).unwrap();
            prop_assert_eq!(before ^ difference(change, length), crc32c(&data));
        }
    }
}
