//! Which devices are edges of the node, and which address masqueraded packets get there. Pure: [`super::network`] looks
//! at the node, this decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proxy_common::layout::{Device, role};

/// A device of the node, as netlink tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index
    pub index: u32,
    /// Interface name
    pub name: String,
    /// What it is
    pub kind: LinkKind,
    /// Interface index of the bridge or bond it belongs to
    pub master: Option<u32>,
    /// Whether its other end is in another network namespace (`IFLA_LINK_NETNSID`)
    pub peer_elsewhere: bool,
}

/// What a device is, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// The loopback device
    Loopback,
    /// One end of a pair: veth or netkit
    Pair,
    /// A bridge
    Bridge,
    /// A dummy device
    Dummy,
    /// An overlay: vxlan, geneve, ipip, wireguard and their like
    Tunnel,
    /// Anything else: a network card, vlan, bond
    Other,
}

/// An address of a device: global, usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Interface index of the device
    pub index: u32,
    /// The address
    pub address: IpAddr,
    /// Length of its prefix in bits
    pub prefix: u8,
}

/// The node's devices, addresses and ways out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Devices
    pub links: Vec<Link>,
    /// Addresses, in the kernel's order
    pub addresses: Vec<LinkAddress>,
    /// Interface indexes of default routes
    pub default_routes: BTreeSet<u32>,
}

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
    /// Address of masqueraded IPv4 packets that leave here
    pub masquerade_v4: Option<Ipv4Addr>,
    /// Address of masqueraded IPv6 packets that leave here
    pub masquerade_v6: Option<Ipv6Addr>,
}

impl Edge {
    /// As the `devices` table has it.
    pub fn device(&self) -> Device {
        Device {
            masquerade_v4: self.masquerade_v4.map_or([0; 4], |address| address.octets()),
            masquerade_v6: self.masquerade_v6.map_or([0; 16], |address| address.octets()),
            role: self.role.number(),
            flags: 0,
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

/// What the user says of devices and the node.
#[derive(Clone, Debug, Default)]
pub struct EdgePolicy {
    /// Addresses of this node
    pub node_addresses: Vec<IpAddr>,
    /// Names of devices that lead to pods, whatever they look like
    pub pods: Vec<glob::Pattern>,
    /// Names of devices that are uplinks, whatever they look like
    pub uplinks: Vec<glob::Pattern>,
}

/// The edges of the node by interface index.
pub fn edges(network: &Network, policy: &EdgePolicy) -> BTreeMap<u32, Edge> {
    let uplinks = uplinks(network, policy);
    network
        .links
        .iter()
        .filter_map(|link| {
            let role = role_of(link, &uplinks, policy)?;
            let edge = Edge {
                name: link.name.clone(),
                role,
                masquerade_v4: masquerade(network, policy, &uplinks, link, |address| match address {
                    IpAddr::V4(address) => Some(address),
                    IpAddr::V6(_) => None,
                }),
                masquerade_v6: masquerade(network, policy, &uplinks, link, |address| match address {
                    IpAddr::V4(_) => None,
                    IpAddr::V6(address) => Some(address),
                }),
            };
            Some((link.index, edge))
        })
        .collect()
}

fn role_of(link: &Link, uplinks: &BTreeSet<u32>, policy: &EdgePolicy) -> Option<Role> {
    if matches(&policy.pods, &link.name) {
        return Some(Role::Pod);
    }
    if matches(&policy.uplinks, &link.name) {
        return Some(Role::Uplink);
    }
    match link.kind {
        LinkKind::Loopback | LinkKind::Dummy => None,
        // In a node that is a container itself the uplink is a veth, too.
        _ if uplinks.contains(&link.index) => Some(Role::Uplink),
        LinkKind::Tunnel => Some(Role::Overlay),
        LinkKind::Pair if link.peer_elsewhere => Some(Role::Pod),
        LinkKind::Pair | LinkKind::Bridge | LinkKind::Other => None,
    }
}

fn matches(patterns: &[glob::Pattern], name: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(name))
}

/// Devices with a default route or an address of the node; where there are neither, the first with an address in a
/// network of others. (The host side of a pod's pair may well have an address, but alone in its network.)
fn uplinks(network: &Network, policy: &EdgePolicy) -> BTreeSet<u32> {
    let mut uplinks = network.default_routes.clone();
    uplinks.extend(
        network
            .addresses
            .iter()
            .filter(|held| policy.node_addresses.contains(&held.address))
            .map(|held| held.index),
    );
    let eligible = |index: u32| {
        network.links.iter().any(|link| {
            link.index == index
                && matches!(link.kind, LinkKind::Pair | LinkKind::Other)
                && !matches(&policy.pods, &link.name)
        })
    };
    if uplinks.is_empty() {
        uplinks.extend(
            network
                .addresses
                .iter()
                .filter(|held| !is_host_prefix(held) && eligible(held.index))
                .map(|held| held.index)
                .min(),
        );
    }
    uplinks
}

fn is_host_prefix(held: &LinkAddress) -> bool {
    held.prefix == if held.address.is_ipv4() { 32 } else { 128 }
}

/// The first address of the device or of the bridge it belongs to; else the one that the kernel would use: the
/// uplink's, else the node's.
fn masquerade<A>(
    network: &Network,
    policy: &EdgePolicy,
    uplinks: &BTreeSet<u32>,
    link: &Link,
    family: impl Fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let of_device = |index: u32| {
        let mut held = network.addresses.iter().filter(|held| held.index == index);
        held.find_map(|held| family(held.address))
    };
    of_device(link.index)
        .or_else(|| link.master.and_then(of_device))
        .or_else(|| uplinks.iter().copied().find_map(of_device))
        .or_else(|| policy.node_addresses.iter().copied().find_map(&family))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: LinkKind) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind,
            master: None,
            peer_elsewhere: false,
        }
    }

    fn pair(index: u32, name: &str) -> Link {
        Link {
            peer_elsewhere: true,
            ..link(index, name, LinkKind::Pair)
        }
    }

    fn address(index: u32, text: &str) -> LinkAddress {
        let network: ipnet::IpNet = text.parse().expect("an address with prefix");
        LinkAddress {
            index,
            address: network.addr(),
            prefix: network.prefix_len(),
        }
    }

    fn roles(network: &Network, policy: &EdgePolicy) -> Vec<(String, Role)> {
        edges(network, policy)
            .into_values()
            .map(|edge| (edge.name, edge.role))
            .collect()
    }

    fn named(roles: &[(&str, Role)]) -> Vec<(String, Role)> {
        roles.iter().map(|(name, role)| ((*name).to_owned(), *role)).collect()
    }

    /// A node with a network card, a pod bridge, pods on it, an overlay.
    fn bridged() -> Network {
        Network {
            links: vec![
                link(1, "lo", LinkKind::Loopback),
                link(2, "eth0", LinkKind::Other),
                link(3, "cni0", LinkKind::Bridge),
                Link {
                    master: Some(3),
                    ..pair(4, "veth1")
                },
                link(5, "flannel.1", LinkKind::Tunnel),
                link(6, "kube-ipvs0", LinkKind::Dummy),
                link(7, "local", LinkKind::Pair),
            ],
            addresses: vec![
                address(2, "192.0.2.10/24"),
                address(2, "2001:db8::10/64"),
                address(3, "10.244.1.1/24"),
                address(5, "10.244.1.0/32"),
            ],
            default_routes: BTreeSet::from([2]),
        }
    }

    #[test]
    fn each_kind_of_device_has_its_role() {
        assert_eq!(
            roles(&bridged(), &EdgePolicy::default()),
            named(&[
                ("eth0", Role::Uplink),
                ("veth1", Role::Pod),
                ("flannel.1", Role::Overlay)
            ])
        );
    }

    /// A packet to a pod leaves through the bridge, with its address; IPv6 has none there, so the uplink's is taken.
    #[test]
    fn masquerade_address_is_that_of_the_bridge_else_of_the_uplink() {
        let edges = edges(&bridged(), &EdgePolicy::default());
        assert_eq!(edges[&4].masquerade_v4, Some([10, 244, 1, 1].into()));
        assert_eq!(edges[&4].masquerade_v6, "2001:db8::10".parse().ok());
        assert_eq!(edges[&2].masquerade_v4, Some([192, 0, 2, 10].into()));
    }

    /// kind: the node is a container, its uplink a veth like those of its pods.
    #[test]
    fn a_pair_with_the_default_route_is_the_uplink() {
        let network = Network {
            links: vec![pair(2, "eth0"), pair(3, "veth1")],
            addresses: vec![address(3, "10.244.0.1/32"), address(2, "172.18.0.2/16")],
            default_routes: BTreeSet::from([2]),
        };
        assert_eq!(
            roles(&network, &EdgePolicy::default()),
            named(&[("eth0", Role::Uplink), ("veth1", Role::Pod)])
        );
    }

    /// Nodes on one wire without a router; the pods' pairs have addresses, but alone in their networks.
    #[test]
    fn without_default_route_the_uplink_is_where_the_node_address_is() {
        let mut network = Network {
            links: vec![pair(2, "veth1"), pair(3, "wire")],
            addresses: vec![address(2, "10.244.0.1/32"), address(3, "192.0.2.1/24")],
            default_routes: BTreeSet::new(),
        };
        let expected = named(&[("veth1", Role::Pod), ("wire", Role::Uplink)]);
        assert_eq!(roles(&network, &EdgePolicy::default()), expected);
        let policy = EdgePolicy {
            node_addresses: vec![[192, 0, 2, 1].into()],
            ..EdgePolicy::default()
        };
        network.addresses[1].prefix = 32;
        assert_eq!(roles(&network, &policy), expected);
    }

    #[test]
    fn flags_overrule_what_devices_look_like() {
        let policy = EdgePolicy {
            node_addresses: Vec::new(),
            pods: vec![glob::Pattern::new("tap*").expect("a pattern")],
            uplinks: vec![glob::Pattern::new("veth1").expect("a pattern")],
        };
        let network = Network {
            links: vec![link(2, "tap0", LinkKind::Other), pair(3, "veth1"), pair(4, "veth2")],
            ..Network::default()
        };
        assert_eq!(
            roles(&network, &policy),
            named(&[("tap0", Role::Pod), ("veth1", Role::Uplink), ("veth2", Role::Pod)])
        );
    }
}
