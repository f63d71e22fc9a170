//! IPv4 and IPv6 behind one trait: the pipeline exists once.

use super::{
    Addresses, Fragment, ICMP, ICMPV6, Packet, SCTP, Side, Skip, TCP, Transport, UDP, View as _, ViewMut as _,
    checksum,
    extension::{FRAGMENT_OFFSET, MORE_FRAGMENTS, find_fragment},
};
use crate::layout::{AddressBytes, Device, MAX_SERVICE_RANGES, Range, ServiceRanges};

/// An address family.
pub trait Family: Copy + 'static {
    /// Its addresses
    type Address: AddressBytes;
    /// Whether the transport checksum's pseudo header is that of IPv6
    const IPV6: bool;
    /// Length of the headers before the quote of an ICMP error
    const ERROR_HEADERS: usize;

    /// The addresses alone: enough to tell most packets from ours. `None` if the packet is no such packet.
    #[inline(always)]
    fn addresses<P: Packet>(packet: &P) -> Option<Addresses<Self::Address>> {
        Self::addresses_at(packet, 0)
    }

    /// The addresses of the network header at `at`: that of the packet, or of one that it quotes.
    fn addresses_at<P: Packet>(packet: &P, at: usize) -> Option<Addresses<Self::Address>>;

    /// Checks the network header and finds and reads the transport header.
    fn transport<P: Packet>(packet: &P) -> Result<Transport, Skip>;

    /// What part of which packet a fragment is: for what [`Family::transport`] calls one. `None` if it is none.
    fn fragment<P: Packet>(packet: &P) -> Option<Fragment>;

    /// Reads the transport header of a first fragment.
    fn first_transport<P: Packet>(packet: &P, fragment: &Fragment) -> Result<Transport, Skip>;

    /// Writes an address, which changes the sum of the header by `difference`. `None` when the packet ends before.
    #[inline(always)]
    fn set_address<P: Packet>(packet: &mut P, side: Side, address: &Self::Address, difference: u16) -> Option<()> {
        Self::set_address_at(packet, 0, side, address, difference)
    }

    /// [`Family::set_address`] in the network header at `at`.
    fn set_address_at<P: Packet>(
        packet: &mut P,
        at: usize,
        side: Side,
        address: &Self::Address,
        difference: u16,
    ) -> Option<()>;

    /// Whether the packet is one of ICMP (ICMPv6), errors and others; looks at one byte.
    fn is_icmp<P: Packet>(packet: &P) -> bool;

    /// Offsets of the header and of the end of the ICMP message, if it is an error and the packet holds all of it.
    fn icmp_error<P: Packet>(packet: &P) -> Option<(usize, usize)>;

    /// Protocol and offset of the transport header in the packet that is quoted at `at`, unless that has none: later
    /// fragments.
    fn quoted_transport<P: Packet>(packet: &P, at: usize) -> Option<(u8, usize)>;

    /// Length of the packet as its header says. `None` if it is no such packet.
    fn length<P: Packet>(packet: &P) -> Option<usize>;

    /// Whether an address is one host's: of no group, not "everybody" and not "nobody".
    fn is_unicast(address: &Self::Address) -> bool;

    /// Writes the headers of an ICMP "port unreachable" before a quote of this length and sum. `None` when the packet ends
    /// before.
    fn write_port_unreachable<P: Packet>(
        packet: &mut P,
        addresses: &Addresses<Self::Address>,
        quote: usize,
        sum: u16,
    ) -> Option<()>;

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
    const ERROR_HEADERS: usize = 20 + 8;

    #[inline(always)]
    fn addresses_at<P: Packet>(packet: &P, at: usize) -> Option<Addresses<[u8; 4]>> {
        let header = packet.view::<20>(at)?;
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
    fn fragment<P: Packet>(packet: &P) -> Option<Fragment> {
        let header = packet.view::<20>(0)?;
        let [version_and_length, _] = header.load(0);
        let [_, protocol] = header.load(8);
        Some(Fragment {
            identification: u16::from_be_bytes(header.load::<2>(4)).into(),
            place: u16::from_be_bytes(header.load::<2>(6)) & 0x1fff,
            protocol,
            offset: usize::from(version_and_length & 0x0f) * 4,
        })
    }

    #[inline(always)]
    fn first_transport<P: Packet>(packet: &P, fragment: &Fragment) -> Result<Transport, Skip> {
        Transport::read(packet, fragment.protocol, fragment.offset)
    }

    #[inline(always)]
    fn set_address_at<P: Packet>(
        packet: &mut P,
        at: usize,
        side: Side,
        address: &[u8; 4],
        difference: u16,
    ) -> Option<()> {
        let sum = u16::from_ne_bytes(packet.view::<20>(at)?.load(10));
        let mut header = packet.view_mut::<20>(at)?;
        header.store(10, checksum::update(sum, difference).to_ne_bytes());
        match side {
            Side::Source => header.store(12, *address),
            Side::Destination => header.store(16, *address),
        }
        Some(())
    }

    #[inline(always)]
    fn is_icmp<P: Packet>(packet: &P) -> bool {
        packet.view::<20>(0).is_some_and(|header| header.load::<1>(9) == [ICMP])
    }

    #[inline(always)]
    fn icmp_error<P: Packet>(packet: &P) -> Option<(usize, usize)> {
        let header = packet.view::<20>(0)?;
        let [version_and_length, _] = header.load(0);
        let length = usize::from(version_and_length & 0x0f) * 4;
        let total = u16::from_be_bytes(header.load::<2>(2));
        let fragment = u16::from_be_bytes(header.load::<2>(6)) & 0x3fff;
        if version_and_length >> 4 != 4
            || length < 20
            || u32::from(total) > packet.length()
            || fragment != 0
            || header.load::<1>(9) != [ICMP]
        {
            return None;
        }
        // Destination unreachable, time exceeded, parameter problem (RFC 792); source quench is obsolete (RFC 6633).
        let [kind, _] = packet.view::<8>(length)?.load(0);
        matches!(kind, 3 | 11 | 12).then_some((length, usize::from(total)))
    }

    #[inline(always)]
    fn quoted_transport<P: Packet>(packet: &P, at: usize) -> Option<(u8, usize)> {
        let header = packet.view::<20>(at)?;
        let [version_and_length, _] = header.load(0);
        let length = usize::from(version_and_length & 0x0f) * 4;
        let offset = u16::from_be_bytes(header.load::<2>(6)) & 0x1fff;
        let [protocol] = header.load(9);
        (version_and_length >> 4 == 4 && length >= 20 && offset == 0).then_some((protocol, at + length))
    }

    #[inline(always)]
    fn length<P: Packet>(packet: &P) -> Option<usize> {
        match u16::from_be_bytes(packet.view::<20>(0)?.load::<2>(2)) {
            // Of a GSO packet, as above.
            0 => usize::try_from(packet.length()).ok(),
            total => Some(total.into()),
        }
    }

    /// RFC 1122, 3.2.1.3: not "this host", no group of class D, not of class E with the broadcast address.
    #[inline(always)]
    fn is_unicast(address: &[u8; 4]) -> bool {
        address[0] < 224 && *address != [0; 4]
    }

    #[inline(always)]
    fn write_port_unreachable<P: Packet>(
        packet: &mut P,
        addresses: &Addresses<[u8; 4]>,
        quote: usize,
        sum: u16,
    ) -> Option<()> {
        let Addresses { source, destination } = addresses;
        #[expect(clippy::cast_possible_truncation, reason = "a quote is short")]
        let [high, low] = ((Self::ERROR_HEADERS + quote) as u16).to_be_bytes();
        // Precedence "internetwork control" (RFC 1812, 4.3.2.5), not to be fragmented, so no identification (RFC 6864).
        let first = [0x45, 0xc0, high, low, 0, 0, 0x40, 0, HOPS, ICMP];
        let header = !checksum::fold(checksum::sum(&first) + checksum::sum(source) + checksum::sum(destination));
        let [header_sum, message_sum] = [header, error_checksum([3, 3], sum.into())].map(u16::to_ne_bytes);
        let mut headers = packet.view_mut::<28>(0)?;
        headers.store(0, [0x45, 0xc0, high, low]);
        headers.store(4, [0, 0, 0x40, 0]);
        headers.store(8, [HOPS, ICMP, header_sum[0], header_sum[1]]);
        headers.store(12, *source);
        headers.store(16, *destination);
        headers.store(20, [3, 3, message_sum[0], message_sum[1]]);
        headers.store(24, [0; 4]);
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
    const ERROR_HEADERS: usize = 40 + 8;

    #[inline(always)]
    fn addresses_at<P: Packet>(packet: &P, at: usize) -> Option<Addresses<[u8; 16]>> {
        let header = packet.view::<40>(at)?;
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
            TCP | UDP | SCTP => (first, 40),
            _ => packet.skip_extensions(first, 40, FRAGMENT_OFFSET | MORE_FRAGMENTS)?,
        };
        Transport::read(packet, protocol, transport)
    }

    #[inline(always)]
    fn fragment<P: Packet>(packet: &P) -> Option<Fragment> {
        let [first, _] = packet.view::<40>(0)?.load(6);
        find_fragment(packet, first)
    }

    #[inline(always)]
    fn first_transport<P: Packet>(packet: &P, fragment: &Fragment) -> Result<Transport, Skip> {
        let (protocol, offset) =
            packet.skip_extensions(fragment.protocol, fragment.offset, FRAGMENT_OFFSET | MORE_FRAGMENTS)?;
        Transport::read(packet, protocol, offset)
    }

    #[inline(always)]
    fn set_address_at<P: Packet>(
        packet: &mut P,
        at: usize,
        side: Side,
        address: &[u8; 16],
        _difference: u16,
    ) -> Option<()> {
        let mut header = packet.view_mut::<40>(at)?;
        match side {
            Side::Source => header.store(8, *address),
            Side::Destination => header.store(24, *address),
        }
        Some(())
    }

    #[inline(always)]
    fn is_icmp<P: Packet>(packet: &P) -> bool {
        packet
            .view::<40>(0)
            .is_some_and(|header| header.load::<1>(6) == [ICMPV6])
    }

    /// Errors behind extension headers, which nobody sends, are not looked for.
    #[inline(always)]
    fn icmp_error<P: Packet>(packet: &P) -> Option<(usize, usize)> {
        let header = packet.view::<40>(0)?;
        let [version, _] = header.load(0);
        let end = 40 + usize::from(u16::from_be_bytes(header.load::<2>(4)));
        if version >> 4 != 6 || end as u64 > u64::from(packet.length()) || header.load::<1>(6) != [ICMPV6] {
            return None;
        }
        // Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443, 3).
        let [kind, _] = packet.view::<8>(40)?.load(0);
        matches!(kind, 1..=4).then_some((40, end))
    }

    #[inline(always)]
    fn quoted_transport<P: Packet>(packet: &P, at: usize) -> Option<(u8, usize)> {
        let header = packet.view::<40>(at)?;
        let [version, _] = header.load(0);
        let [first] = header.load(6);
        if version >> 4 != 6 {
            return None;
        }
        match first {
            TCP | UDP | SCTP => Some((first, at + 40)),
            _ => packet.skip_extensions(first, at + 40, FRAGMENT_OFFSET).ok(),
        }
    }

    #[inline(always)]
    fn length<P: Packet>(packet: &P) -> Option<usize> {
        match u16::from_be_bytes(packet.view::<40>(0)?.load::<2>(4)) {
            // Of a GSO packet, as above.
            0 => usize::try_from(packet.length()).ok(),
            payload => Some(40 + usize::from(payload)),
        }
    }

    /// RFC 4291, 2.7 and 2.5.2: no group, not the unspecified address.
    #[inline(always)]
    fn is_unicast(address: &[u8; 16]) -> bool {
        address[0] != 0xff && *address != [0; 16]
    }

    #[inline(always)]
    fn write_port_unreachable<P: Packet>(
        packet: &mut P,
        addresses: &Addresses<[u8; 16]>,
        quote: usize,
        sum: u16,
    ) -> Option<()> {
        let Addresses { source, destination } = addresses;
        #[expect(clippy::cast_possible_truncation, reason = "a quote is short")]
        let [high, low] = (8 + quote as u16).to_be_bytes();
        // Of the pseudo header length and protocol beside the addresses.
        let pseudo = checksum::sum(source) + checksum::sum(destination) + checksum::sum(&[high, low, 0, ICMPV6]);
        let [sum_first, sum_second] = error_checksum([1, 4], pseudo + u32::from(sum)).to_ne_bytes();
        let mut headers = packet.view_mut::<48>(0)?;
        headers.store(0, [0x60, 0, 0, 0]);
        headers.store(4, [high, low, ICMPV6, HOPS]);
        headers.store(8, *source);
        headers.store(24, *destination);
        headers.store(40, [1, 4, sum_first, sum_second]);
        headers.store(44, [0; 4]);
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

/// Time to live, or hop limit, of packets of our own: the default of RFC 1700.
const HOPS: u8 = 64;

/// Checksum of an ICMP error of this type and code, with the sum of all else that it covers.
#[inline(always)]
fn error_checksum(type_and_code: [u8; 2], sum: u32) -> u16 {
    !checksum::fold(checksum::sum(&type_and_code) + sum)
}
