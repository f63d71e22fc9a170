//! The source address of masqueraded packets: that of the outgoing interface (behaviour.md 5.1).

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    EdgePolicy,
    link::{Link, LinkAddress, Network, OfFamily},
};

/// The address that masqueraded packets get which leave through a device: of the device, else of the bridge it belongs to,
/// else the node's, else an uplink's. Never a link-local one: who gets the packet must be able to answer.
pub(super) fn address<A: OfFamily>(
    network: &Network,
    policy: &EdgePolicy,
    uplinks: &BTreeSet<u32>,
    link: &Link,
) -> Option<A> {
    let of_device = |index: u32| of_device(network, policy, index);
    of_device(link.index)
        .or_else(|| link.master.and_then(of_device))
        .or_else(|| of_node(network, policy, uplinks))
}

/// The address that packets of the host's processes have: what the kernel takes, else as for a device without one.
pub(super) fn host_address<A: OfFamily>(network: &Network, policy: &EdgePolicy, uplinks: &BTreeSet<u32>) -> Option<A> {
    let mut taken = network.sources.iter().copied();
    taken.find_map(A::of).or_else(|| of_node(network, policy, uplinks))
}

/// The node's address, else an uplink's.
fn of_node<A: OfFamily>(network: &Network, policy: &EdgePolicy, uplinks: &BTreeSet<u32>) -> Option<A> {
    let of_device = |index: u32| of_device(network, policy, index);
    let is_here = |address: &&IpAddr| network.addresses.iter().any(|held| held.address == **address);
    let mut of_node = policy.node_addresses.iter().filter(is_here).copied();
    of_node
        .find_map(A::of)
        .or_else(|| uplinks.iter().copied().find_map(of_device))
        .or_else(|| policy.node_addresses.iter().copied().find_map(A::of))
}

/// The node's address if the device holds it, else the first that the kernel would take by itself, else any global one.
fn of_device<A: OfFamily>(network: &Network, policy: &EdgePolicy, index: u32) -> Option<A> {
    let ranks: [&dyn Fn(&LinkAddress) -> bool; 3] = [
        &|held| policy.node_addresses.contains(&held.address),
        &|held| held.preferred,
        &|_| true,
    ];
    ranks.into_iter().find_map(|rank| {
        let mut held = network.global_addresses(index).filter(|held| rank(held));
        held.find_map(|held| A::of(held.address))
    })
}
