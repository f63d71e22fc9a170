//! Which devices are edges of the node, why, and which address masqueraded packets get there. Pure: [`super::network`]
//! looks at the node, this decides.

mod classify;
mod link;
mod masquerade;
mod reason;
#[cfg(test)]
mod tests;
mod unserved;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proxy_common::layout::{Device, device_flags, role};

use self::classify::Classifier;
pub use self::{
    classify::Class,
    link::{Framing, Link, LinkAddress, LinkKind, Network},
    reason::{Why, WhyNot},
    unserved::unserved,
};

/// What an edge leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A pod
    Pod,
    /// Other nodes and clients
    Uplink,
    /// Other nodes, through a tunnel
    Overlay,
}

impl Role {
    /// As the `devices` table has it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Pod => role::POD,
            Self::Uplink => role::UPLINK,
            Self::Overlay => role::OVERLAY,
        }
    }

    /// From the `devices` table.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            role::POD => Some(Self::Pod),
            role::UPLINK => Some(Self::Uplink),
            role::OVERLAY => Some(Self::Overlay),
            _ => None,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
            Self::Overlay => "overlay",
        })
    }
}

/// An edge of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Interface name
    pub name: String,
    /// What it leads to
    pub role: Role,
    /// Why it has that role
    pub why: Why,
    /// What its packets begin with
    pub framing: Framing,
    /// Whether what arrives here counts as sent by pods of this node (behaviour.md 5.8, the modes that go by interface)
    pub local_traffic: bool,
    /// Address of masqueraded IPv4 packets that leave here
    pub masquerade_v4: Option<Ipv4Addr>,
    /// Address of masqueraded IPv6 packets that leave here
    pub masquerade_v6: Option<Ipv6Addr>,
}

impl Edge {
    /// As the `devices` table has it.
    pub fn device(&self) -> Device {
        let flag = |is_set: bool, flag: u32| if is_set { flag } else { 0 };
        Device {
            masquerade_v4: self.masquerade_v4.map_or([0; 4], |address| address.octets()),
            masquerade_v6: self.masquerade_v6.map_or([0; 16], |address| address.octets()),
            role: self.role.number(),
            flags: flag(self.local_traffic, device_flags::LOCAL_TRAFFIC)
                | flag(self.framing == Framing::Bare, device_flags::BARE),
            reason: self.why.number(),
            name: name_bytes(&self.name),
        }
    }
}

/// An interface name as the table has it. The kernel's names are shorter than the field (`IFNAMSIZ`).
fn name_bytes(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (byte, character) in bytes.iter_mut().zip(name.bytes()) {
        *byte = character;
    }
    bytes
}

/// The interface name in a table entry.
pub(super) fn name_of(device: &Device) -> String {
    let name = device.name.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// What the user says of devices and the node. Of the lists of names the first that has a device counts.
#[derive(Clone, Debug, Default)]
pub struct EdgePolicy {
    /// Addresses of this node
    pub node_addresses: Vec<IpAddr>,
    /// Names of devices that are no edges, whatever they look like
    pub ignored: Vec<glob::Pattern>,
    /// Names of devices that lead to pods
    pub pods: Vec<glob::Pattern>,
    /// Names of devices that are uplinks
    pub uplinks: Vec<glob::Pattern>,
    /// Names of devices that lead to other nodes through a tunnel
    pub overlays: Vec<glob::Pattern>,
    /// Devices whose packets count as sent by pods of this node; `None` if that doesn't go by devices
    pub local_traffic: Option<InterfaceMatch>,
}

/// Interfaces by name (behaviour.md 5.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceMatch {
    /// The one of this name
    Name(String),
    /// All whose names start so
    Prefix(String),
}

impl InterfaceMatch {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Name(wanted) => name == wanted,
            Self::Prefix(prefix) => name.starts_with(prefix.as_str()),
        }
    }
}

/// The edges of the node by interface index.
pub fn edges(network: &Network, policy: &EdgePolicy) -> BTreeMap<u32, Edge> {
    let classifier = Classifier::new(network, policy);
    let uplinks = classifier.uplinks();
    let edge = |link: &Link| {
        let (role, why) = classifier.classify(link).ok()?;
        let edge = Edge {
            name: link.name.clone(),
            role,
            why,
            framing: link.framing,
            local_traffic: is_local_traffic(network, policy, link),
            masquerade_v4: masquerade::address(network, policy, &uplinks, link),
            masquerade_v6: masquerade::address(network, policy, &uplinks, link),
        };
        Some((link.index, edge))
    };
    network.links.iter().filter_map(edge).collect()
}

/// The addresses that packets of the host's processes have which go to other machines: what the kernel says it takes, else the
/// node's, else an uplink's.
pub fn host_addresses(network: &Network, policy: &EdgePolicy) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    let uplinks = Classifier::new(network, policy).uplinks();
    (
        masquerade::host_address(network, policy, &uplinks),
        masquerade::host_address(network, policy, &uplinks),
    )
}

/// The entry of the host itself in the `devices` table.
pub(super) fn host_device(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Device {
    Device {
        masquerade_v4: v4.map_or([0; 4], |address| address.octets()),
        masquerade_v6: v6.map_or([0; 16], |address| address.octets()),
        ..Device::default()
    }
}

/// The class of every device by name, edge or not.
pub fn classes(network: &Network, policy: &EdgePolicy) -> BTreeMap<String, Class> {
    let classifier = Classifier::new(network, policy);
    let class = |link: &Link| (link.name.clone(), classifier.classify(link));
    network.links.iter().map(class).collect()
}

/// kube-proxy sees a bridge, not its ports, as the interface that a packet arrives at.
fn is_local_traffic(network: &Network, policy: &EdgePolicy, link: &Link) -> bool {
    let bridge = link.master.and_then(|master| network.link(master));
    let seen = bridge.filter(|bridge| bridge.kind == LinkKind::Bridge).unwrap_or(link);
    let local_traffic = policy.local_traffic.as_ref();
    local_traffic.is_some_and(|wanted| wanted.matches(&seen.name))
}
