//! The node's devices and addresses as netlink tells them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A device of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Interface index
    pub index: u32,
    /// Interface name
    pub name: String,
    /// What it is
    pub kind: LinkKind,
    /// What its packets begin with
    pub framing: Framing,
    /// Whether it is up (`IFF_UP`)
    pub up: bool,
    /// Interface index of the bridge, bond or the like it belongs to
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
    /// Several devices as one: a bond or team
    Bond,
    /// A device that only holds addresses or sees other devices' packets: dummy, ifb, vrf
    Dummy,
    /// An overlay: vxlan, geneve, ipip, wireguard and their like
    Tunnel,
    /// A tun or tap device: a process is its other end
    Tun,
    /// The node's own port of a software switch (Open vSwitch)
    Switch,
    /// Anything else: a network card, a VLAN
    Other,
}

/// What a device's packets begin with, where programs see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Framing {
    /// An Ethernet header
    Ethernet,
    /// The network header
    Bare,
    /// Something that the programs can't read
    Unknown,
}

/// An address of a device, in use (not still being checked for duplicates).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// Interface index of the device
    pub index: u32,
    /// The address
    pub address: IpAddr,
    /// Length of its prefix in bits
    pub prefix: u8,
    /// Whether its scope is global, so that others can answer to it
    pub global: bool,
    /// Whether the kernel takes it as a source by itself: neither deprecated, temporary nor secondary
    pub preferred: bool,
}

/// The node's devices, addresses and ways out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Devices
    pub links: Vec<Link>,
    /// Addresses of every scope, in the kernel's order
    pub addresses: Vec<LinkAddress>,
    /// Interface indexes of default routes in the main table
    pub default_routes: BTreeSet<u32>,
    /// The sources of packets to other machines that nothing is said about, as the kernel takes them
    pub sources: BTreeSet<IpAddr>,
}

impl Network {
    /// The device with an interface index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// All addresses that are the host's own (what nftables calls `fib daddr type local`), of every scope and device,
    /// except 127.0.0.0/8 and ::1. Link-local IPv6 addresses are among them.
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        let addresses = self.addresses.iter().map(|held| held.address);
        addresses.filter(|address| !address.is_loopback()).collect()
    }

    /// Global addresses of a device.
    pub(super) fn global_addresses(&self, index: u32) -> impl Iterator<Item = &LinkAddress> {
        let of_device = move |held: &&LinkAddress| held.index == index && held.global;
        self.addresses.iter().filter(of_device)
    }
}

/// Address families, where a choice is made for each.
pub(super) trait OfFamily: Sized {
    /// The address, if it is of this family.
    fn of(address: IpAddr) -> Option<Self>;
}

impl OfFamily for Ipv4Addr {
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }
}

impl OfFamily for Ipv6Addr {
    fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address),
        }
    }
}
