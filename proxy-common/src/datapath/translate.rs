//! Rewriting one side of a packet.

use crate::{
    layout::FlowValue,
    packet::{ChecksumChange, Family, Packet, Side, Transport, UDP, ViewMut as _, checksum},
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
