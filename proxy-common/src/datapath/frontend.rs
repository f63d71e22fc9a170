//! Which frontend a packet is for (behaviour.md 3.4): an address of a Service, else a nodePort on an address of the node,
//! else no port that anybody serves.

use super::{Reason, Tables};
use crate::layout::{AddressBytes, FlowKey, ServiceKey, ServiceValue, address_flags};

/// [`FlowKey::protocol`] of packets without ports.
pub const NO_PORTS: u8 = 0;

/// Finds the frontend that `key` at ingress is for.
///
/// # Errors
/// The reason in place of one: [`Reason::NoPort`] for a cluster address (behaviour.md 4.6), [`Reason::Unallocated`] for
/// what no Service has (4.7), [`Reason::NoFrontend`] for all that is none of ours (3.8, 4.9).
#[inline(never)]
pub fn find<A: AddressBytes, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &mut ServiceValue,
) -> Result<(), Reason> {
    find_at(tables, key, address_flags::NODE_PORTS, service)
}

/// Finds the frontend that a process of the host means by the destination of `key`: to it, loopback addresses are the node's
/// as well (behaviour.md 3.7), which no packet at an edge is to.
///
/// # Errors
/// As [`find`].
#[inline(never)]
pub fn find_for_process<A: AddressBytes, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    service: &mut ServiceValue,
) -> Result<(), Reason> {
    let served = address_flags::NODE_PORTS | address_flags::LOOPBACK_NODE_PORTS;
    find_at(tables, key, served, service)
}

/// [`find`], with nodePorts on addresses that have one of the flags `served`.
#[inline(always)]
fn find_at<A: AddressBytes, T: Tables<A>>(
    tables: &T,
    key: &FlowKey<A>,
    served: u32,
    service: &mut ServiceValue,
) -> Result<(), Reason> {
    if key.protocol != NO_PORTS {
        let exact = ServiceKey::new(key.destination, key.destination_port, key.protocol);
        if tables.service(&exact, service) {
            return Ok(());
        }
        let own = tables.address_flags(&key.destination);
        if own & served != 0 {
            let node_port = ServiceKey::new(A::default(), key.destination_port, key.protocol);
            if tables.service(&node_port, service) {
                return Ok(());
            }
        }
        if own != 0 {
            // The node's own traffic, which is to cost little.
            return Err(Reason::NoFrontend);
        }
    }
    let wildcard = ServiceKey::wildcard(key.destination);
    Err(if tables.service(&wildcard, service) {
        Reason::NoPort
    } else if tables.is_service_address(&key.destination) {
        Reason::Unallocated
    } else {
        Reason::NoFrontend
    })
}
