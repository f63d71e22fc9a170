//! Extension headers of IPv6 (RFC 8200, 4).

use super::{Fragment, Packet, Skip, View as _, has_ports};

/// How many a packet may have before its transport header; more than that is no traffic
/// that a Service gets.
const MAX_EXTENSIONS: usize = 6;

/// Fields of a fragment header (RFC 8200, 4.5)
pub(super) const FRAGMENT_OFFSET: u16 = 0xfff8;
pub(super) const MORE_FRAGMENTS: u16 = 1;

/// Numbers of extension headers (IANA)
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// Finds the transport header behind the extension headers that begin at `offset`: its protocol and offset. A fragment
/// with any bit of `refused` in its header is not looked into.
///
/// # Errors
/// Why there is none that could be read.
#[inline(never)]
pub fn skip_extensions<P: Packet + ?Sized>(
    packet: &P,
    first: u8,
    mut offset: usize,
    refused: u16,
) -> Result<(u8, usize), Skip> {
    let mut next = first;
    for _ in 0..MAX_EXTENSIONS {
        if has_ports(next) {
            return Ok((next, offset));
        }
        if !is_extension(next) {
            return Err(Skip::OtherProtocol);
        }
        let header: [u8; 8] = packet.view::<8>(offset).ok_or(Skip::Malformed)?.load(0);
        match next {
            // The final destination, which the checksum covers, stands elsewhere while segments are left.
            ROUTING if header[3] != 0 => return Err(Skip::OtherProtocol),
            // An atomic fragment is a whole packet (RFC 6946).
            FRAGMENT if u16::from_be_bytes([header[2], header[3]]) & refused != 0 => return Err(Skip::Fragment),
            _ => offset += extension_length(next, &header),
        }
        next = header[0];
    }
    if has_ports(next) {
        Ok((next, offset))
    } else {
        Err(Skip::OtherProtocol)
    }
}

/// Finds and reads the fragment header among the extension headers.
#[inline(never)]
pub(super) fn find_fragment<P: Packet>(packet: &P, first: u8) -> Option<Fragment> {
    let (mut next, mut offset) = (first, 40);
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(next) {
            return None;
        }
        let header: [u8; 8] = packet.view::<8>(offset)?.load(0);
        offset += extension_length(next, &header);
        let place = u16::from_be_bytes([header[2], header[3]]);
        if next == FRAGMENT && place & (FRAGMENT_OFFSET | MORE_FRAGMENTS) != 0 {
            return Some(Fragment {
                identification: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
                place: place >> 3,
                protocol: header[0],
                offset,
            });
        }
        next = header[0];
    }
    None
}

/// Whether a header of this number is one that can be skipped.
#[inline(always)]
const fn is_extension(number: u8) -> bool {
    matches!(
        number,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

/// Length of an extension header of this number, by its first bytes.
#[inline(always)]
fn extension_length(number: u8, header: &[u8; 8]) -> usize {
    match number {
        FRAGMENT => 8,
        AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
        _ => (usize::from(header[1]) + 1) * 8,
    }
}
