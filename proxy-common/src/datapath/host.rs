//! Packets of the node's own processes that leave the node for a frontend: no socket hook has served them.
//!
//! They are of raw sockets, ICMP, sockets that were there before the hooks, or all, where the hooks are off; and of sockets
//! whose address a hook left alone, because what the frontend has for them must look like a dropped packet. Here they are
//! routed already, with a source chosen for a place where nobody answers: none can be served any more. But what is to be
//! refused is refused here, as any client's packet is at ingress (behaviour.md 3.10, 4), and the rest is counted.

use super::{Choice, Environment, NO_PORTS, Reason, Tables, find_frontend, select};
use crate::{
    layout::{FlowKey, INGRESS, ServiceValue, address_flags},
    packet::{Family, Packet, Skip, UDP, opens_connection},
};

/// Judges a packet that is of no flow and leaves the node: [`Reason::Unrelated`] if it is not one of the node's own that
/// opens a connection to a frontend. Later ones are left alone (behaviour.md 4.4), and so are fragments.
#[inline(never)]
pub fn judge_host_packet<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &P,
    tables: &T,
    environment: &E,
) -> Reason {
    let Some(addresses) = F::addresses(packet) else {
        return Reason::Unrelated;
    };
    if tables.address_flags(&addresses.source) & address_flags::LOCAL == 0 {
        return Reason::Unrelated;
    }
    let key = match F::transport(packet) {
        Ok(transport) if transport.protocol == UDP || opens_connection(transport.tcp_flags) => {
            transport.key(INGRESS, addresses)
        }
        Err(Skip::OtherProtocol) => {
            let (source, destination) = ((addresses.source, 0), (addresses.destination, 0));
            FlowKey::new(INGRESS, NO_PORTS, source, destination)
        }
        _ => return Reason::Unrelated,
    };
    let (mut service, mut choice) = (ServiceValue::default(), Choice::default());
    let found = find_frontend(tables, &key, &mut service)
        .and_then(|()| select::decide(tables, environment, &key, &service, &mut choice));
    match found {
        Ok(()) => Reason::HostUnserved,
        Err(Reason::NoFrontend) => Reason::Unrelated,
        Err(reason) => {
            if reason.is_refusal_of_service() {
                tables.count_refusal(service.service, reason, packet.length());
            }
            reason
        }
    }
}
