//! What the datapath reads of a packet's headers.

use super::{Packet, View as _};
use crate::layout::{AddressBytes, FlowKey};

/// IP protocol number of ICMP (IANA).
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6 (IANA).
pub const ICMPV6: u8 = 58;
/// IP protocol number of TCP (IANA).
pub const TCP: u8 = 6;
/// IP protocol number of UDP (IANA).
pub const UDP: u8 = 17;

/// IP protocol number of SCTP (IANA).
pub const SCTP: u8 = 132;

/// Whether packets of an IP protocol have ports that we know.
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// TCP control bits (RFC 9293, 3.1).
pub mod tcp_flags {
    /// No more data from the sender
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers
    pub const SYN: u8 = 2;
    /// Reset the connection
    pub const RST: u8 = 4;
    /// The acknowledgment field is significant
    pub const ACK: u8 = 16;
}

/// Whether these [`tcp_flags`] open a connection: SYN without ACK.
#[inline(always)]
pub const fn opens_connection(flags: u8) -> bool {
    flags & (tcp_flags::SYN | tcp_flags::ACK) == tcp_flags::SYN
}

/// What the first chunk of an SCTP packet, by its type (RFC 9260, 3.2), means for its association, as [`tcp_flags`]. The
/// chunks that matter here stand alone in their packets, or first (RFC 9260, 6.10).
#[inline(always)]
const fn flags_of_chunk(chunk: u8) -> u8 {
    const INIT: u8 = 1;
    const INIT_ACK: u8 = 2;
    const ABORT: u8 = 6;
    const SHUTDOWN_COMPLETE: u8 = 14;
    match chunk {
        INIT => tcp_flags::SYN,
        INIT_ACK => tcp_flags::SYN | tcp_flags::ACK,
        // Either ends it for both sides.
        ABORT | SHUTDOWN_COMPLETE => tcp_flags::RST,
        _ => tcp_flags::ACK,
    }
}

/// Why a packet's headers are not for the datapath: it passes untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Shorter than its headers say, or with headers that cannot be
    Malformed,
    /// A fragment: what part it is, `Family::fragment` tells
    Fragment,
    /// No protocol with ports that we know
    OtherProtocol,
}

/// Source and destination address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses<A> {
    /// Source address
    pub source: A,
    /// Destination address
    pub destination: A,
}

/// What part of which packet a fragment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification of the packet; 16 bits in IPv4
    pub identification: u32,
    /// Where it stands in the packet, in units of 8 bytes; 0 for the first
    pub place: u16,
    /// IP protocol number of the packet, or the first extension header behind the fragment header
    pub protocol: u8,
    /// Offset of what was fragmented: in a first fragment, of the transport header or of extension headers
    pub offset: usize,
}

/// The transport header of a packet that can be translated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Offset of the header
    pub offset: usize,
    /// Source port, host byte order
    pub source_port: u16,
    /// Destination port, host byte order
    pub destination_port: u16,
    /// [`TCP`], [`UDP`] or [`SCTP`]
    pub protocol: u8,
    /// Bits of [`tcp_flags`]; 0 for UDP. What SCTP's first chunk does is told in TCP's terms
    pub tcp_flags: u8,
}

impl Transport {
    /// Reads the transport header at `offset`.
    #[inline(always)]
    pub fn read<P: Packet>(packet: &P, protocol: u8, offset: usize) -> Result<Self, Skip> {
        let (ports, tcp_flags) = match protocol {
            TCP => {
                let header = packet.view::<20>(offset).ok_or(Skip::Malformed)?;
                // The data offset counts 32-bit words; the header has at least five.
                let [data_offset, flags] = header.load(12);
                if data_offset < 5 << 4 {
                    return Err(Skip::Malformed);
                }
                (header.load::<4>(0), flags)
            }
            UDP => (packet.view::<8>(offset).ok_or(Skip::Malformed)?.load::<4>(0), 0),
            SCTP => {
                // Common header and that of the first chunk (RFC 9260, 3).
                let header = packet.view::<16>(offset).ok_or(Skip::Malformed)?;
                let [chunk, _] = header.load(12);
                (header.load::<4>(0), flags_of_chunk(chunk))
            }
            _ => return Err(Skip::OtherProtocol),
        };
        let ports = u32::from_be_bytes(ports);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        let (source_port, destination_port) = ((ports >> 16) as u16, ports as u16);
        Ok(Self {
            offset,
            source_port,
            destination_port,
            protocol,
            tcp_flags,
        })
    }

    /// The key of this packet at a hook.
    #[inline(always)]
    pub const fn key<A: AddressBytes>(&self, direction: u8, addresses: Addresses<A>) -> FlowKey<A> {
        FlowKey::new(
            direction,
            self.protocol,
            (addresses.source, self.source_port),
            (addresses.destination, self.destination_port),
        )
    }

    /// Offset of the checksum of TCP or UDP; SCTP's is another ([`super::crc32c`]).
    #[inline(always)]
    pub const fn checksum_offset(&self) -> usize {
        self.offset + if self.protocol == TCP { 16 } else { 6 }
    }
}
