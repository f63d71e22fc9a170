//! The lab's addresses: which are whose follows from the order in the description. The last group of an IPv6 address is
//! written with the digits of its IPv4 companion, so that they read alike.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | pod `p` of node `n` (both from 1) | 10.244.n.(9+p) | fd00:10:244:n::(9+p) |
//! | node `n` on the wire | 172.30.0.n | fd00:172:30::n |
//! | router on the wire, every node's default gateway | 172.30.0.254 | fd00:172:30::254 |
//! | client outside the cluster, behind the router | 192.0.2.10 | 2001:db8::10 |
//! | gateway of node `n`'s pods, where they share a bridge | 10.244.n.1 | fd00:10:244:n::1 |
//! | node `n` on its tunnel device, where there is one | 10.244.n.0 | fd00:10:244:n:: |
//! | node `n` on the second wire, where there is one | 172.31.0.n | fd00:172:31::n |
//! | router on the second wire | 172.31.0.254 | fd00:172:31::254 |
//! | macvlan pod `p` of node `n` | 172.30.0.(100+16n+p) | fd00:172:30::(100+16n+p) |
//! | router and border on the wire between them | 198.51.100.1, .2 | 2001:db8:51::1, ::2 |
//! | ClusterIP `s` | 10.96.0.s | fd00:10:96::s |
//! | external IP `s` | 198.18.0.s | 2001:db8:18::s |
//! | load balancer address `s` | 203.0.113.s | 2001:db8:113::s |

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// IP family of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4
    pub v4: Ipv4Addr,
    /// IPv6
    pub v6: Ipv6Addr,
}

impl Addresses {
    /// The address of a family.
    pub const fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::V4(self.v4),
            Family::V6 => IpAddr::V6(self.v6),
        }
    }

    /// The address of a family with a port.
    pub const fn with_port(self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }

    /// Both addresses.
    pub const fn both(self) -> [IpAddr; 2] {
        [self.of(Family::V4), self.of(Family::V6)]
    }
}

/// What a server listens on that is to answer at every address
pub(super) const UNSPECIFIED: Addresses = Addresses {
    v4: Ipv4Addr::UNSPECIFIED,
    v6: Ipv6Addr::UNSPECIFIED,
};
/// All pods of all nodes, IPv4
pub const POD_NETWORK_V4: &str = "10.244.0.0/16";
/// All pods of all nodes, IPv6
pub const POD_NETWORK_V6: &str = "fd00:10:244::/48";
/// The wire between the nodes, IPv4
pub const WIRE_V4: &str = "172.30.0.0/24";
/// The wire between the nodes, IPv6
pub const WIRE_V6: &str = "fd00:172:30::/64";
/// The router on the wire between the nodes
pub const ROUTER: Addresses = Addresses {
    v4: Ipv4Addr::new(172, 30, 0, 254),
    v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, 0x254),
};
/// The router on the second wire
pub const SECOND_ROUTER: Addresses = Addresses {
    v4: Ipv4Addr::new(172, 31, 0, 254),
    v6: Ipv6Addr::new(0xfd00, 0x172, 0x31, 0, 0, 0, 0, 0x254),
};
/// The router on the wire to the border
pub const ROUTER_TO_BORDER: Addresses = Addresses {
    v4: Ipv4Addr::new(198, 51, 100, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 1),
};
/// The border on the wire to the router
pub const BORDER: Addresses = Addresses {
    v4: Ipv4Addr::new(198, 51, 100, 2),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 2),
};
/// Address of the outside client's gateway: the router, or the border where there is one
pub const OUTSIDE_GATEWAY: Addresses = Addresses {
    v4: Ipv4Addr::new(192, 0, 2, 1),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
};
/// The client outside the cluster
pub const OUTSIDE: Addresses = Addresses {
    v4: Ipv4Addr::new(192, 0, 2, 10),
    v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10),
};

/// Addresses of a pod by the numbers of its node and itself, both from 1.
pub const fn pod(node: u8, pod: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, 9 + pod),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, same_digits(node), 0, 0, 0, same_digits(9 + pod)),
    }
}

/// The networks of a node's pods (its `podCIDRs`), by its number from 1.
pub fn pod_networks(node: u8) -> [String; 2] {
    [format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64")]
}

/// Addresses of a node by its number from 1.
pub const fn node(node: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(172, 30, 0, node),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, same_digits(node)),
    }
}

/// Addresses of a node on the second wire, by its number from 1.
pub const fn node_on_second_wire(node: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(172, 31, 0, node),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x31, 0, 0, 0, 0, same_digits(node)),
    }
}

/// The gateway of a node's pods where they share a bridge, by the node's number from 1.
pub const fn gateway(node: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, 1),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, same_digits(node), 0, 0, 0, 1),
    }
}

/// Addresses of a node's tunnel device, the first of its pods' network (as flannel has it), by its number from 1.
pub const fn tunnel(node: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 244, node, 0),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, same_digits(node), 0, 0, 0, 0),
    }
}

/// Addresses of a macvlan pod by the numbers of its node (below 9) and itself (below 16), both from 1.
pub const fn macvlan_pod(node: u8, pod: u8) -> Addresses {
    let last = 100 + 16 * node + pod;
    Addresses {
        v4: Ipv4Addr::new(172, 30, 0, last),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, same_digits(last)),
    }
}

/// External IPs by number. Nothing is bound to them: see [`super::Lab::announce`].
pub const fn external(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(198, 18, 0, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, same_digits(number)),
    }
}

/// Addresses of load balancers by number. Nothing is bound to them: see [`super::Lab::announce`].
pub const fn balancer(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(203, 0, 113, number),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, same_digits(number)),
    }
}

/// ClusterIPs by number.
pub const fn cluster(number: u8) -> Addresses {
    Addresses {
        v4: Ipv4Addr::new(10, 96, 0, number),
        v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, same_digits(number)),
    }
}

/// The group that is written in hexadecimal with the digits that the number has in decimal: 53 is 0x53.
const fn same_digits(number: u8) -> u16 {
    let number = number as u16;
    number / 100 * 0x100 + number / 10 % 10 * 0x10 + number % 10
}
