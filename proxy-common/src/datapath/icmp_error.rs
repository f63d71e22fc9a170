//! ICMP errors about translated packets: whoever gets one must find in it the packet that it sent.
//!
//! An error quotes a packet of a flow and goes the other way, so it is treated like a packet of the other direction with
//! the quoted packet's ports: the entry for that at this hook says what to rewrite. This serves errors of both ends and of
//! routers beyond either edge, and those that the node's own stack sends in the middle.
//!
//! All that changes in the packet sums up to zero, the corrected checksums included; so plain writes leave the sum that a
//! device took of it (`CHECKSUM_COMPLETE`) right.

use super::{FlowHandle as _, Reason, Tables};
use crate::{
    layout::{FlowKey, FlowValue, INGRESS, flow_flags},
    packet::{Addresses, Family, Packet, SCTP, Side, TCP, UDP, View as _, ViewMut as _, checksum, has_ports},
};

/// Length of the header of an ICMP error (RFC 792; RFC 4443, 2.1); the quote follows.
const HEADER: usize = 8;
/// Offset of the checksum in it.
const CHECKSUM: usize = 2;
/// What a quote holds of the transport header at least (RFC 792).
const QUOTED: usize = 8;
/// Bytes that are looked into. IPv4 with the longest headers takes 146; quoted extension headers may take the rest.
const LOOKED_INTO: u32 = 256;

/// Translates an ICMP error about a flow that is known at the hook of this direction. `None` if it is no such packet,
/// which is untouched then.
#[inline(never)]
pub fn icmp_error<F: Family, P: Packet, T: Tables<F::Address>>(
    packet: &mut P,
    tables: &T,
    direction: u8,
) -> Option<Reason> {
    packet.pull(LOOKED_INTO);
    let (message, end) = F::icmp_error(packet)?;
    let quote = message + HEADER;
    let (protocol, transport) = F::quoted_transport(packet, quote)?;
    if !has_ports(protocol) || transport + QUOTED > end {
        return None;
    }
    let quoted = F::addresses_at(packet, quote)?;
    let [source_high, source_low, destination_high, destination_low] = packet.view::<QUOTED>(transport)?.load(0);
    let key = FlowKey::new(
        direction,
        protocol,
        (
            quoted.destination,
            u16::from_be_bytes([destination_high, destination_low]),
        ),
        (quoted.source, u16::from_be_bytes([source_high, source_low])),
    );
    let Some(value) = tables.flow(&key).map(|handle| handle.value()) else {
        return tables.is_previous(&key).then_some(Reason::Previous);
    };
    if value.flags & flow_flags::UNRESOLVED != 0 {
        return None;
    }
    let error = Error {
        message,
        end,
        transport,
    };
    let rewritten = rewrite::<F, P>(packet, &error, &key, &value);
    Some(rewritten.map_or(Reason::RewriteFailed, |()| Reason::IcmpError))
}

/// Where the parts of an error are: offsets.
struct Error {
    /// The ICMP header
    message: usize,
    /// The end of the ICMP message
    end: usize,
    /// The quoted transport header
    transport: usize,
}

/// Rewrites quote and addresses as `value` tells to rewrite packets of `key`.
#[inline(always)]
fn rewrite<F: Family, P: Packet>(
    packet: &mut P,
    error: &Error,
    key: &FlowKey<F::Address>,
    value: &FlowValue<F::Address>,
) -> Option<()> {
    let Addresses { source, destination } = F::addresses(packet)?;
    // Whether the error is from, or for, the end that is translated: a router's address stays.
    let (side, quoted_side, is_end) = if key.direction == INGRESS {
        (Side::Destination, Side::Source, destination == key.destination)
    } else {
        (Side::Source, Side::Destination, source == key.source)
    };
    let mut sum = rewrite_transport(packet, error, key, value)?;
    let difference = value.address_difference;
    F::set_address_at(packet, error.message + HEADER, quoted_side, &value.address, difference)?;
    if is_end {
        F::set_address(packet, side, &value.address, difference)?;
    }
    if F::IPV6 {
        // No header checksum makes up for the quoted address; and the outer addresses are part of this checksum.
        sum += u32::from(difference) + if is_end { u32::from(difference) } else { 0 };
    }
    let checksum = u16::from_ne_bytes(packet.view::<2>(error.message + CHECKSUM)?.load(0));
    let checksum = checksum::update(checksum, checksum::fold(sum));
    packet
        .view_mut::<2>(error.message + CHECKSUM)?
        .store(0, checksum.to_ne_bytes());
    Some(())
}

/// Rewrites the ports, and the transport checksum if it is quoted; gives the sum of the differences of both.
#[inline(always)]
fn rewrite_transport<A, P: Packet>(
    packet: &mut P,
    error: &Error,
    key: &FlowKey<A>,
    value: &FlowValue<A>,
) -> Option<u32> {
    // The quoted packet goes the other way than packets of the key.
    let old = (key.destination_port, key.source_port);
    let new = if key.direction == INGRESS {
        (value.port, value.other_port)
    } else {
        (value.other_port, value.port)
    };
    let ports = u32::from(new.0) << 16 | u32::from(new.1);
    packet.view_mut::<4>(error.transport)?.store(0, ports.to_be_bytes());
    let ports = checksum::port_difference(old, new);
    let offset = error.transport + if key.protocol == TCP { 16 } else { 6 };
    // SCTP's checksum can't be corrected without all of the packet; who gets the error goes by ports and verification tag
    // (RFC 9260, 10).
    if offset + 2 > error.end || key.protocol == SCTP {
        return Some(ports.into());
    }
    let before: [u8; 2] = packet.view::<2>(offset)?.load(0);
    if key.protocol == UDP && before == [0, 0] {
        return Some(ports.into());
    }
    let change = checksum::fold(u32::from(value.address_difference) + u32::from(ports));
    let mut after = checksum::update(u16::from_ne_bytes(before), change);
    if key.protocol == UDP && after == 0 {
        after = 0xffff;
    }
    packet.view_mut::<2>(offset)?.store(0, after.to_ne_bytes());
    Some(u32::from(ports) + u32::from(checksum::difference(&before, &after.to_ne_bytes())))
}
