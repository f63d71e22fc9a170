//! SCTP packets of one chunk: enough to open an association, as seen by whoever is between its ends (RFC 9260, 3 and 5.1).

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use etherparse::{IpNumber, NetSlice, SlicedPacket};
use proxy_common::packet::crc32c::crc32c;

use super::between;

/// Where the checksum is, in the header.
const CHECKSUM: std::ops::Range<usize> = 8..12;
/// Common header and chunk header.
const HEADERS: usize = 16;

/// Type of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Data of an association
    Data,
    /// Opens an association
    Init,
    /// Answers it
    InitAck,
}

impl Chunk {
    const fn number(self) -> u8 {
        match self {
            Self::Data => 0,
            Self::Init => 1,
            Self::InitAck => 2,
        }
    }
}

/// A packet with a right checksum; `tag` is its verification tag (0 in the first one, RFC 9260, 8.5.1).
///
/// # Panics
/// The addresses are of two families.
pub fn sctp(from: SocketAddr, to: SocketAddr, chunk: Chunk, tag: u32) -> Result<Vec<u8>> {
    // Initiate tag, receiver window, numbers of streams, first TSN; as data, these mean nothing.
    const BODY: [u8; 16] = [0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1];
    const LENGTH: u8 = 4 + 16;
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(tag.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([chunk.number(), 0, 0, LENGTH]);
    segment.extend(BODY);
    let sum = crc32c(&segment);
    segment[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
    let mut packet = Vec::new();
    between(from, to).write(&mut packet, IpNumber::SCTP, &segment)?;
    Ok(packet)
}

/// What is of interest in an SCTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sctp {
    /// Where it comes from
    pub from: SocketAddr,
    /// Where it goes to
    pub to: SocketAddr,
    /// Its verification tag
    pub tag: u32,
    /// Whether its checksum is right
    pub intact: bool,
}

impl Sctp {
    /// Reads an IP packet; `None` if it is none of SCTP.
    pub fn read(packet: &SlicedPacket<'_>) -> Option<Self> {
        let (from, to): (IpAddr, IpAddr) = match packet.net.as_ref()? {
            NetSlice::Ipv4(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
            NetSlice::Arp(_) => return None,
        };
        let payload = packet.net.as_ref()?.ip_payload_ref()?;
        if payload.ip_number != IpNumber::SCTP || payload.payload.len() < HEADERS {
            return None;
        }
        let mut segment = payload.payload.to_vec();
        let half = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
        let (source, destination) = (half(0), half(2));
        let tag = u32::from(half(4)) << 16 | u32::from(half(6));
        let sum = u32::from_le_bytes([segment[8], segment[9], segment[10], segment[11]]);
        segment[CHECKSUM].fill(0);
        Some(Self {
            from: SocketAddr::new(from, source),
            to: SocketAddr::new(to, destination),
            tag,
            intact: crc32c(&segment) == sum,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (from, to) = (([10, 0, 0, 1], 4000).into(), ([10, 0, 0, 2], 7).into());
        let mut packet = sctp(from, to, Chunk::InitAck, 0x1234_5678).expect("a packet");
        let read = |packet: &[u8]| Sctp::read(&SlicedPacket::from_ip(packet).expect("IP"));
        let expected = Sctp {
            from,
            to,
            tag: 0x1234_5678,
            intact: true,
        };
        assert_eq!(read(&packet), Some(expected));
        *packet.last_mut().expect("a byte") ^= 1;
        let broken = Sctp {
            intact: false,
            ..expected
        };
        assert_eq!(read(&packet), Some(broken));
    }
}
