//! A packet in fragments, and what whoever gets them makes of them.

use super::segment::{Segment, TestFamily};
use crate::packet::checksum::checksum;

/// Number of the fragment header (IANA).
pub(super) const FRAGMENT: u8 = 44;

/// Splits a packet without options or extension headers.
pub(super) fn split<F: TestFamily>(segment: &Segment, size: usize, identification: u16) -> Vec<Vec<u8>> {
    let whole = segment.bytes::<F>();
    let (header, payload) = whole.split_at(if F::IPV6 { 40 } else { 20 });
    let chunks: Vec<_> = payload.chunks(size).collect();
    let part = |(index, chunk): (usize, &&[u8])| {
        let more = index + 1 < chunks.len();
        let place = u16::try_from(index * size / 8).expect("a place in a packet");
        let length = u16::try_from(chunk.len()).expect("a short packet");
        let mut bytes = header.to_vec();
        if F::IPV6 {
            bytes[4..6].copy_from_slice(&(length + 8).to_be_bytes());
            bytes[6] = FRAGMENT;
            bytes.extend([segment.protocol, 0]);
            bytes.extend((place << 3 | u16::from(more)).to_be_bytes());
            bytes.extend(u32::from(identification).to_be_bytes());
        } else {
            bytes[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            bytes[4..6].copy_from_slice(&identification.to_be_bytes());
            bytes[6..8].copy_from_slice(&(place | u16::from(more) << 13).to_be_bytes());
            bytes[10..12].copy_from_slice(&[0, 0]);
            let sum = checksum(&bytes);
            bytes[10..12].copy_from_slice(&sum.to_ne_bytes());
        }
        bytes.extend_from_slice(chunk);
        bytes
    };
    chunks.iter().enumerate().map(part).collect()
}

/// Place in units of 8 bytes, whether more follow, and header length of a fragment.
pub(super) fn place<F: TestFamily>(fragment: &[u8]) -> (usize, bool, usize) {
    let word = |at: usize| u16::from_be_bytes([fragment[at], fragment[at + 1]]);
    if F::IPV6 {
        assert_eq!(fragment[6], FRAGMENT);
        (usize::from(word(42) >> 3), word(42) & 1 != 0, 48)
    } else {
        assert_eq!(checksum(&fragment[..20]), 0, "checksum of the IPv4 header");
        (usize::from(word(6) & 0x1fff), word(6) & 0x2000 != 0, 20)
    }
}

/// What whoever gets these fragments makes of them: the packet, without fragment header.
pub(super) fn reassemble<F: TestFamily>(fragments: &[Vec<u8>]) -> Vec<u8> {
    let first = fragments.iter().find(|fragment| place::<F>(fragment).0 == 0);
    let first = first.expect("a first fragment");
    let mut payload = Vec::new();
    let mut end = None;
    loop {
        // Duplicates are the same.
        let next = fragments
            .iter()
            .find(|fragment| place::<F>(fragment).0 * 8 == payload.len());
        let Some(next) = next else { break };
        let (_, more, header) = place::<F>(next);
        payload.extend_from_slice(&next[header..]);
        if !more {
            end = Some(payload.len());
            break;
        }
    }
    assert_eq!(end, Some(payload.len()), "the packet is not complete");
    let length = u16::try_from(payload.len()).expect("a packet");
    let mut whole = first[..if F::IPV6 { 40 } else { 20 }].to_vec();
    if F::IPV6 {
        whole[4..6].copy_from_slice(&length.to_be_bytes());
        whole[6] = first[40];
    } else {
        whole[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        whole[6..8].copy_from_slice(&[0, 0]);
        whole[10..12].copy_from_slice(&[0, 0]);
        let sum = checksum(&whole);
        whole[10..12].copy_from_slice(&sum.to_ne_bytes());
    }
    whole.extend(payload);
    whole
}
