//! Pure functions from the model to what this node must serve (behaviour.md 1-6). No BPF, no async, no clock.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

/// Address family of a frontend and its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Transport protocol of a service port, named as in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol of an IP protocol number, if it is one that Services have.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Key of a service port (behaviour.md 1.5): two ports of one number and different protocol are independent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// Namespace of the Service
    pub namespace: String,
    /// Name of the Service
    pub service: String,
    /// Name of the port, empty for an unnamed single port
    pub port_name: String,
    /// Protocol of the port
    pub protocol: Protocol,
}

impl fmt::Display for ServicePort {
    /// `namespace/name:port_name`, as `trace` and `services` print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.service, self.port_name)
    }
}

/// What kind of address a frontend is (behaviour.md 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// An address of `spec.clusterIPs`
    ClusterIP,
    /// An address of `spec.externalIPs`
    ExternalIP,
    /// An address of `status.loadBalancer.ingress`
    LoadBalancer,
    /// A port on this node's addresses
    NodePort,
}

/// One address and port that this node serves, and the endpoints it may choose from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// The service port it belongs to
    pub service_port: ServicePort,
    /// What it is
    pub kind: Kind,
    /// Family of it and all its endpoints
    pub family: Family,
    /// The virtual address; `None` for a nodePort
    pub address: Option<IpAddr>,
    /// The port
    pub port: u16,
    /// Endpoints for traffic policy Cluster, sorted; `None` when that list isn't used (behaviour.md 2.4)
    pub cluster: Option<Vec<SocketAddr>>,
    /// Endpoints for traffic policy Local, sorted; `None` when that list isn't used
    pub local: Option<Vec<SocketAddr>>,
    /// Whether an endpoint exists anywhere (behaviour.md 2.9): decides between reject and drop when a list is empty
    pub has_endpoints: bool,
}
