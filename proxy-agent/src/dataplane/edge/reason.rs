//! Why a device has its role.

use std::fmt;

/// Why a device is an edge, and of which role. The number stands in the `devices` table, so that `status` tells what the
/// agent decided, not what it would decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Why {
    /// A flag names it a pod's
    PodFlag = 1,
    /// A flag names it an uplink
    UplinkFlag = 2,
    /// A flag names it an overlay
    OverlayFlag = 3,
    /// It has a default route
    DefaultRoute = 4,
    /// It holds an address of the node
    NodeAddress = 5,
    /// It holds a global address
    Address = 6,
    /// Nothing says which device is the uplink, and it is the first that is in a network of others
    FirstAddress = 7,
    /// It connects a bridge with other hosts
    BridgePort = 8,
    /// It is a pair whose other end is in another namespace
    Pair = 9,
    /// It is a tap device without an address
    Tap = 10,
    /// It is a tunnel
    Tunnel = 11,
    /// It leads to a process that forwards packets
    Tun = 12,
}

impl Why {
    const ALL: [Self; 12] = [
        Self::PodFlag,
        Self::UplinkFlag,
        Self::OverlayFlag,
        Self::DefaultRoute,
        Self::NodeAddress,
        Self::Address,
        Self::FirstAddress,
        Self::BridgePort,
        Self::Pair,
        Self::Tap,
        Self::Tunnel,
        Self::Tun,
    ];

    /// As the `devices` table has it.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// From the `devices` table.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|why| why.number() == number)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PodFlag => "named by --pod-devices",
            Self::UplinkFlag => "named by --uplink-devices",
            Self::OverlayFlag => "named by --overlay-devices",
            Self::DefaultRoute => "has a default route",
            Self::NodeAddress => "holds an address of the node",
            Self::Address => "holds a global address",
            Self::FirstAddress => {
                "the first device in a network with others; no default route or node address tells more"
            }
            Self::BridgePort => "connects a bridge with other hosts",
            Self::Pair => "its other end is in another namespace",
            Self::Tap => "a tap device without an address, as a virtual machine has",
            Self::Tunnel => "a tunnel",
            Self::Tun => "leads to a process that forwards packets",
        })
    }
}

/// Why a device is no edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// A flag says so
    IgnoreFlag,
    /// The programs can't read its packets
    Framing,
    /// It leads nowhere
    Internal,
    /// The bond that it belongs to is the edge
    BondPort,
    /// The bridge that it belongs to is the edge
    UplinkPort,
    /// Packets of the bridge's hosts pass its ports, which are edges; those from one port to another never pass the bridge
    Bridge,
    /// Both ends are in this namespace
    PairHere,
    /// It is down
    Down,
    /// It has no global address and no default route: nobody sends anything there
    NoAddress,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IgnoreFlag => "named by --ignore-devices",
            Self::Framing => "of a link layer that the programs can't read",
            Self::Internal => "leads nowhere",
            Self::BondPort => "its bond is the edge",
            Self::UplinkPort => "its bridge is the edge",
            Self::Bridge => "a bridge whose ports are the edges",
            Self::PairHere => "both of its ends are in this namespace",
            Self::Down => "down",
            Self::NoAddress => "has neither a global address nor a default route",
        })
    }
}
