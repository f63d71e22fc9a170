//! Rewriting one side of a packet.

use crate::{
    layout::FlowValue,
    packet::{ChecksumChange, Family, Packet, SCTP, Side, Transport, UDP, View as _, ViewMut as _, checksum},
};

/// Writes the flow's address and ports and corrects the checksums. `None` if the packet could not be written.
#[inline(always)]
pub(super) fn translate<F: Family, P: Packet>(
    packet: &mut P,
    transport: &Transport,
    side: Side,
    value: &FlowValue<F::Address>,
) -> Option<()> {
    let (source, destination) = match side {
        Side::Destination => (value.other_port, value.port),
        Side::Source => (value.port, value.other_port),
    };
    F::set_address(packet, side, &value.address, value.address_difference)?;
    let ports = u32::from(source) << 16 | u32::from(destination);
    packet.view_mut::<4>(transport.offset)?.store(0, ports.to_be_bytes());
    if transport.protocol == SCTP {
        let ports_before = u32::from(transport.source_port) << 16 | u32::from(transport.destination_port);
        return update_sctp_checksum::<F, P>(packet, transport.offset, (ports_before ^ ports).swap_bytes());
    }
    packet.update_transport_checksum(&ChecksumChange {
        offset: transport.checksum_offset(),
        addresses: value.address_difference,
        ports: checksum::port_difference(
            (transport.source_port, transport.destination_port),
            (source, destination),
        ),
        zero_is_none: transport.protocol == UDP,
        ipv6: F::IPV6,
    })
}

/// Corrects the checksum of the SCTP packet at `offset` after a change of its ports, as a little-endian number. There is no
/// pseudo header: addresses don't matter to it. `None` if the packet could not be written.
///
/// A checksum of 0 is one that the device will compute (`CHECKSUM_PARTIAL` with `csum_not_inet`): nothing else tells
/// programs of it, and one packet in 2^32 has it otherwise. `CHECKSUM_COMPLETE` needs no care, for SCTP does without.
#[inline(never)]
fn update_sctp_checksum<F: Family, P: Packet>(packet: &mut P, offset: usize, change: u32) -> Option<()> {
    const CHECKSUM: usize = 8;
    let before = u32::from_le_bytes(packet.view::<4>(offset + CHECKSUM)?.load(0));
    if change == 0 || before == 0 {
        return Some(());
    }
    let length = u16::try_from(F::length(packet)?.checked_sub(offset)?).ok()?;
    let after = before ^ packet.crc32c_difference(change, length);
    packet.view_mut::<4>(offset + CHECKSUM)?.store(0, after.to_le_bytes());
    Some(())
}
