//! IPv4 and IPv6 behind one trait: the pipeline exists once.

use super::{Addresses, Packet, Side, Skip, TCP, Transport, UDP, View as _, ViewMut as _, checksum};
use crate::layout::{AddressBytes, Device, MAX_SERVICE_RANGES, Range, ServiceRanges};

/// An address family.
pub trait Family: Copy + 'static {
    /// Its addresses
    type Address: AddressBytes;
    /// Whether the transport checksum's pseudo header is that of IPv6
    const IPV6: bool;

    /// The addresses alone: enough to tell most packets from ours. `None` if the packet is no such packet.
    fn addresses<P: Packet>(packet: &P) -> Option<Addresses<Self::Address>>;

    /// Checks the network header and finds and reads the transport header.
    fn transport<P: Packet>(packet: &P) -> Result<Transport, Skip>;

    /// Writes an address, which changes the sum of the header by `difference`. `None` when the packet ends before.
    fn set_address<P: Packet>(packet: &mut P, side: Side, address: &Self::Address, difference: u16) -> Option<()>;

    /// What an address adds to checksums in place of another.
    fn difference(old: &Self::Address, new: &Self::Address) -> u16;

    /// The masquerade address of this family on a device, if there is one.
    fn masquerade_address(device: &Device) -> Option<Self::Address>;

    /// The ranges of this family that cluster addresses are from.
    fn service_ranges(ranges: &ServiceRanges) -> &[Range<Self::Address>; MAX_SERVICE_RANGES];
}

/// IPv4 (RFC 791).
#[derive(Clone, Copy, Debug)]
pub struct V4;

impl Family for V4 {
    type Address = [u8; 4];
    const IPV6: bool = false;

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<Addresses<[u8; 4]>> {
        let header = packet.view::<20>(0)?;
        Some(Addresses {
            source: header.load::<4>(12),
            destination: header.load::<4>(16),
        })
    }

    #[inline(always)]
    fn transport<P: Packet>(packet: &P) -> Result<Transport, Skip> {
        let header = packet.view::<20>(0).ok_or(Skip::Malformed)?;
        let [version_and_length, _] = header.load(0);
        let length = usize::from(version_and_length & 0x0f) * 4;
        let total = u32::from(u16::from_be_bytes(header.load::<2>(2)));
        // A total length of 0 is that of a GSO packet beyond 64 KiB (BIG TCP, include/linux/ip.h).
        if version_and_length >> 4 != 4
            || length < 20
            || total > packet.length()
            || (total != 0 && (total as usize) < length)
        {
            return Err(Skip::Malformed);
        }
        // More fragments, or an offset: bits below "don't fragment".
        if u16::from_be_bytes(header.load::<2>(6)) & 0x3fff != 0 {
            return Err(Skip::Fragment);
        }
        let [_, protocol] = header.load(8);
        Transport::read(packet, protocol, length)
    }

    #[inline(always)]
    fn set_address<P: Packet>(packet: &mut P, side: Side, address: &[u8; 4], difference: u16) -> Option<()> {
        let sum = u16::from_ne_bytes(packet.view::<20>(0)?.load(10));
        let mut header = packet.view_mut::<20>(0)?;
        header.store(10, checksum::update(sum, difference).to_ne_bytes());
        match side {
            Side::Source => header.store(12, *address),
            Side::Destination => header.store(16, *address),
        }
        Some(())
    }

    #[inline(always)]
    fn difference(old: &[u8; 4], new: &[u8; 4]) -> u16 {
        checksum::difference(old, new)
    }

    fn masquerade_address(device: &Device) -> Option<[u8; 4]> {
        (device.masquerade_v4 != [0; 4]).then_some(device.masquerade_v4)
    }

    #[inline(always)]
    fn service_ranges(ranges: &ServiceRanges) -> &[Range<[u8; 4]>; MAX_SERVICE_RANGES] {
        &ranges.v4
    }
}

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug)]
pub struct V6;

impl Family for V6 {
    type Address = [u8; 16];
    const IPV6: bool = true;

    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<Addresses<[u8; 16]>> {
        let header = packet.view::<40>(0)?;
        Some(Addresses {
            source: header.load::<16>(8),
            destination: header.load::<16>(24),
        })
    }

    #[inline(always)]
    fn transport<P: Packet>(packet: &P) -> Result<Transport, Skip> {
        let header = packet.view::<40>(0).ok_or(Skip::Malformed)?;
        let [version, _] = header.load(0);
        let [length_high, length_low, first, _] = header.load(4);
        let payload = u32::from(u16::from_be_bytes([length_high, length_low]));
        // A payload length of 0 is that of a jumbogram or of a GSO packet beyond 64 KiB (RFC 2675; BIG TCP).
        if version >> 4 != 6 || payload + 40 > packet.length() {
            return Err(Skip::Malformed);
        }
        let (protocol, transport) = match first {
            TCP | UDP => (first, 40),
            _ => skip_extensions(packet, first)?,
        };
        Transport::read(packet, protocol, transport)
    }

    #[inline(always)]
    fn set_address<P: Packet>(packet: &mut P, side: Side, address: &[u8; 16], _difference: u16) -> Option<()> {
        let mut header = packet.view_mut::<40>(0)?;
        match side {
            Side::Source => header.store(8, *address),
            Side::Destination => header.store(24, *address),
        }
        Some(())
    }

    #[inline(always)]
    fn difference(old: &[u8; 16], new: &[u8; 16]) -> u16 {
        checksum::difference(old, new)
    }

    fn masquerade_address(device: &Device) -> Option<[u8; 16]> {
        (device.masquerade_v6 != [0; 16]).then_some(device.masquerade_v6)
    }

    #[inline(always)]
    fn service_ranges(ranges: &ServiceRanges) -> &[Range<[u8; 16]>; MAX_SERVICE_RANGES] {
        &ranges.v6
    }
}

/// Extension headers (RFC 8200, 4) that a packet may have before its transport header; more than that is no traffic
/// that a Service gets.
const MAX_EXTENSIONS: usize = 6;

/// Finds the transport header behind the extension headers: its protocol and offset. Off the usual path, so not inlined.
#[inline(never)]
fn skip_extensions<P: Packet>(packet: &P, first: u8) -> Result<(u8, usize), Skip> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION_OPTIONS: u8 = 60;

    let mut next = first;
    let mut offset = 40;
    for _ in 0..MAX_EXTENSIONS {
        if matches!(next, TCP | UDP) {
            return Ok((next, offset));
        }
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        ) {
            return Err(Skip::OtherProtocol);
        }
        let header: [u8; 8] = packet.view::<8>(offset).ok_or(Skip::Malformed)?.load(0);
        offset += match next {
            // The final destination, which the checksum covers, stands elsewhere while segments are left.
            ROUTING if header[3] != 0 => return Err(Skip::OtherProtocol),
            // An atomic fragment is a whole packet (RFC 6946).
            FRAGMENT if u16::from_be_bytes([header[2], header[3]]) & 0xfff9 == 0 => 8,
            FRAGMENT => return Err(Skip::Fragment),
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        next = header[0];
    }
    if matches!(next, TCP | UDP) {
        Ok((next, offset))
    } else {
        Err(Skip::OtherProtocol)
    }
}
