//! The role of each device.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    EdgePolicy, Role, Why, WhyNot,
    link::{Framing, Link, LinkAddress, LinkKind, Network},
};

/// What a device is, and why.
pub type Class = Result<(Role, Why), WhyNot>;

/// Decides for the devices of a node.
pub(super) struct Classifier<'a> {
    network: &'a Network,
    policy: &'a EdgePolicy,
    /// The only device that looks like an uplink, where there is nothing better to go by
    first: Option<u32>,
}

impl<'a> Classifier<'a> {
    pub(super) fn new(network: &'a Network, policy: &'a EdgePolicy) -> Self {
        let mut classifier = Self {
            network,
            policy,
            first: None,
        };
        if classifier.uplinks().is_empty() {
            classifier.first = classifier.first_in_a_network();
        }
        classifier
    }

    /// The role of a device; the first rule that applies decides.
    pub(super) fn classify(&self, link: &Link) -> Class {
        let class = self.by_flag(link).unwrap_or_else(|| self.by_looks(link));
        if class.is_ok() && link.framing == Framing::Unknown {
            return Err(WhyNot::Framing);
        }
        class
    }

    /// Interface indexes of the uplinks.
    pub(super) fn uplinks(&self) -> BTreeSet<u32> {
        let is_uplink = |link: &&Link| matches!(self.classify(link), Ok((Role::Uplink, _)));
        let uplinks = self.network.links.iter().filter(is_uplink);
        uplinks.map(|link| link.index).collect()
    }

    fn by_flag(&self, link: &Link) -> Option<Class> {
        let named = |patterns: &[glob::Pattern]| patterns.iter().any(|pattern| pattern.matches(&link.name));
        let policy = self.policy;
        if named(&policy.ignored) {
            Some(Err(WhyNot::IgnoreFlag))
        } else if named(&policy.pods) {
            Some(Ok((Role::Pod, Why::PodFlag)))
        } else if named(&policy.uplinks) {
            Some(Ok((Role::Uplink, Why::UplinkFlag)))
        } else if named(&policy.overlays) {
            Some(Ok((Role::Overlay, Why::OverlayFlag)))
        } else {
            None
        }
    }

    fn by_looks(&self, link: &Link) -> Class {
        if matches!(link.kind, LinkKind::Loopback | LinkKind::Dummy) {
            return Err(WhyNot::Internal);
        }
        match self.master(link) {
            Some(master) if master.kind == LinkKind::Bond => return Err(WhyNot::BondPort),
            Some(master) if master.kind == LinkKind::Bridge => return self.of_bridge_port(link, master),
            // Of a VRF or an Open vSwitch: it routes, or is routed to, as if it stood alone.
            _ => {}
        }
        // In a node that is a container itself the uplink is a veth, too.
        if let Some(why) = self.uplink(link) {
            return Ok((Role::Uplink, why));
        }
        let has_address = self.network.global_addresses(link.index).next().is_some();
        match (link.kind, link.framing) {
            (LinkKind::Bridge, _) => Err(WhyNot::Bridge),
            (LinkKind::Pair, _) => pair(link),
            // Modules make tunnels that nobody uses: tunl0, sit0.
            (LinkKind::Tunnel | LinkKind::Tun, _) if !link.up => Err(WhyNot::Down),
            (LinkKind::Tunnel, _) => Ok((Role::Overlay, Why::Tunnel)),
            (LinkKind::Tun, Framing::Ethernet) if !has_address => Ok((Role::Pod, Why::Tap)),
            (LinkKind::Tun, _) => Ok((Role::Overlay, Why::Tun)),
            // Clients may come in by each address that the host has, as they do under kube-proxy.
            _ if has_address => Ok((Role::Uplink, Why::Address)),
            _ => Err(WhyNot::NoAddress),
        }
    }

    /// A bridge with the node's way out is an edge like the network card that is its port. Of other bridges the ports are:
    /// packets from one to another don't pass the bridge device itself.
    fn of_bridge_port(&self, link: &Link, bridge: &Link) -> Class {
        if matches!(self.classify(bridge), Ok((Role::Uplink, _))) {
            return Err(WhyNot::UplinkPort);
        }
        match link.kind {
            LinkKind::Pair => pair(link),
            LinkKind::Tun => Ok((Role::Pod, Why::Tap)),
            LinkKind::Tunnel => Ok((Role::Overlay, Why::BridgePort)),
            _ => Ok((Role::Uplink, Why::BridgePort)),
        }
    }

    fn master(&self, link: &Link) -> Option<&'a Link> {
        link.master.and_then(|master| self.network.link(master))
    }

    fn uplink(&self, link: &Link) -> Option<Why> {
        if self.network.default_routes.contains(&link.index) {
            return Some(Why::DefaultRoute);
        }
        let holds_node_address = self.network.global_addresses(link.index).any(|held| {
            self.policy.node_addresses.contains(&held.address) && !(may_be_pod(link) && self.is_lent(held))
        });
        if holds_node_address {
            return Some(Why::NodeAddress);
        }
        (self.first == Some(link.index)).then_some(Why::FirstAddress)
    }

    /// Whether other devices have the same address: some CNIs give the node's to the host side of every pod's pair.
    fn is_lent(&self, held: &LinkAddress) -> bool {
        let mut others = self.network.addresses.iter();
        others.any(|other| other.index != held.index && other.address == held.address)
    }

    /// The first device with an address in a network of others. (The host side of a pod's pair may well have an address,
    /// but alone in its network.)
    fn first_in_a_network(&self) -> Option<u32> {
        let eligible = |link: &Link| {
            matches!(link.kind, LinkKind::Pair | LinkKind::Bond | LinkKind::Other)
                && link.master.is_none()
                && self.by_flag(link).is_none()
        };
        let held = self.network.addresses.iter();
        held.filter(|held| held.global && !is_host_prefix(held))
            .filter(|held| self.network.link(held.index).is_some_and(eligible))
            .map(|held| held.index)
            .min()
    }
}

fn pair(link: &Link) -> Class {
    if link.peer_elsewhere {
        Ok((Role::Pod, Why::Pair))
    } else {
        Err(WhyNot::PairHere)
    }
}

fn may_be_pod(link: &Link) -> bool {
    link.kind == LinkKind::Pair && link.peer_elsewhere
}

fn is_host_prefix(held: &LinkAddress) -> bool {
    held.prefix == if matches!(held.address, IpAddr::V4(_)) { 32 } else { 128 }
}
