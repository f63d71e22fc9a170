//! What this node needs to know of itself to serve frontends.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::{
    config::{LocalTraffic, NodePortAddresses, ProxyConfig},
    model::{Family, Model, Node},
};

/// What holds for all frontends of this node.
///
/// Depends on the Node object, the ServiceCIDRs and the addresses of the node's devices: make it anew when one of them
/// changes. It is small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlan {
    /// Where nodePorts are served (behaviour.md 3.6, 3.7): addresses of this node, never a loopback one
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Where nodePorts are served to processes of the host besides: loopback addresses, `127.0.0.1` and `::1`, if the
    /// configuration names no address, or those (behaviour.md 3.7)
    pub loopback_node_port_addresses: BTreeSet<IpAddr>,
    /// All addresses that are local to this node's host: whose packets are the node's own (behaviour.md 5.6 ii)
    pub local_addresses: BTreeSet<IpAddr>,
    /// How a pod's traffic is told from other traffic (behaviour.md 5.8)
    pub local_sources: LocalSources,
    /// Where addresses of Services come from: one that no Service has leads nowhere (behaviour.md 4.7). Sorted, none
    /// within another
    pub service_ranges: Vec<IpNet>,
}

/// How a pod's traffic is told from other traffic (behaviour.md 5.8).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LocalSources {
    /// Its source is in one of these ranges, of either family; none is known without any. Sorted, none within another
    Ranges(Vec<IpNet>),
    /// It arrives at the interface of this name
    Interface(String),
    /// It arrives at an interface whose name starts so
    InterfacePrefix(String),
}

impl NodePlan {
    /// Plans for a node that has these addresses (behaviour.md 8.12, the primary one of each family first), and on whose
    /// devices there are those of `local_addresses`.
    pub fn new(config: &ProxyConfig, model: &Model, node_addresses: &[IpAddr], local_addresses: &[IpAddr]) -> Self {
        Self {
            node_port_addresses: node_port_addresses(&config.node_port_addresses, node_addresses, local_addresses),
            loopback_node_port_addresses: loopback(&config.node_port_addresses),
            local_addresses: local_addresses.iter().copied().collect(),
            local_sources: LocalSources::new(&config.local_traffic, model.node()),
            service_ranges: disjoint(model.service_ranges()),
        }
    }
}

impl LocalSources {
    /// What a configuration means on a node.
    pub fn new(config: &LocalTraffic, node: &Node) -> Self {
        match config {
            LocalTraffic::ClusterCidr(ranges) => Self::Ranges(disjoint(ranges.iter().copied())),
            LocalTraffic::NodeCidr => Self::Ranges(disjoint(node.pod_ranges.iter().copied())),
            LocalTraffic::BridgeInterface(name) => Self::Interface(name.clone()),
            LocalTraffic::InterfaceNamePrefix(prefix) => Self::InterfacePrefix(prefix.clone()),
        }
    }

    /// Whether pods can be told from others in a family at all.
    pub fn detects(&self, family: Family) -> bool {
        match self {
            Self::Ranges(ranges) => ranges.iter().any(|range| Family::of(range.addr()) == family),
            Self::Interface(_) | Self::InterfacePrefix(_) => true,
        }
    }
}

/// The addresses that are this node's own in each family: the first of each (behaviour.md 8.12).
pub(super) fn primary(node_addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    Family::ALL.into_iter().filter_map(|family| {
        let mut of_family = node_addresses
            .iter()
            .copied()
            .filter(|address| Family::of(*address) == family);
        of_family.next()
    })
}

fn node_port_addresses(wanted: &NodePortAddresses, node: &[IpAddr], local: &[IpAddr]) -> BTreeSet<IpAddr> {
    let mut ranges = wanted.ranges().to_vec();
    if !matches!(wanted, NodePortAddresses::Ranges(_)) {
        let primary = primary(node).filter(|address| !address.is_loopback());
        ranges.extend(primary.map(IpNet::from));
    }
    let usable = local.iter().filter(|address| !address.is_loopback());
    let wanted = usable.filter(|address| is_wanted(&ranges, address));
    wanted.copied().collect()
}

/// Whether one of the ranges holds the address. A family without a range is one that nothing was said about: all addresses of it.
fn is_wanted(ranges: &[IpNet], address: &IpAddr) -> bool {
    let family = Family::of(*address);
    let mut of_family = ranges
        .iter()
        .filter(|range| Family::of(range.addr()) == family)
        .peekable();
    of_family.peek().is_none() || of_family.any(|range| range.contains(address))
}

/// A process that asks for a port of "this machine" gets the same as at the node's own addresses, unless the configuration names
/// addresses without these.
fn loopback(wanted: &NodePortAddresses) -> BTreeSet<IpAddr> {
    let all: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    all.into_iter()
        .filter(|address| is_wanted(wanted.ranges(), address))
        .collect()
}

/// The ranges without those that are within others, neighbours joined; sorted.
fn disjoint(ranges: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let ranges: Vec<IpNet> = ranges.into_iter().collect();
    let mut disjoint = IpNet::aggregate(&ranges);
    disjoint.sort_unstable();
    disjoint
}
