//! What this node serves: the planner's result.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use ipnet::IpNet;
use serde::Serialize;

use super::{Family, Protocol, Vip};

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

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ClusterIP => "ClusterIP",
            Self::ExternalIP => "ExternalIP",
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
        })
    }
}

/// Which list a new connection's endpoint is chosen from (behaviour.md 2.2, 2.3, 5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum TrafficPolicy {
    /// From `cluster`
    Cluster,
    /// From `local`, whoever asks: `internalTrafficPolicy: Local`
    Local,
    /// From `cluster` for pods of [`LocalSources`](super::LocalSources) and for sources that are addresses of this node,
    /// from `local` for everyone else: `externalTrafficPolicy: Local`
    LocalForOutsiders,
}

/// Which clients' addresses are replaced by one of this node's on the way to the endpoint (behaviour.md 5.3-5.6).
/// Besides these: always that of an endpoint which reaches itself (5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Masquerade {
    /// Nobody's
    Never,
    /// Those of all sources that aren't a pod's by [`LocalSources`](super::LocalSources)
    Outsiders,
    /// Everyone's
    Always,
    /// Those of sources that are addresses of this node, if the source isn't a pod's
    Host,
}

impl fmt::Display for TrafficPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "Cluster",
            Self::Local => "Local",
            Self::LocalForOutsiders => "Local, but for pods and this host",
        })
    }
}

impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Never => "-",
            Self::Outsiders => "all but pods",
            Self::Always => "all",
            Self::Host => "this host",
        })
    }
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
    /// Endpoints for traffic policy Cluster, sorted; `None` when this frontend never uses that list
    pub cluster: Option<Vec<SocketAddr>>,
    /// Endpoints for traffic policy Local, sorted; `None` when this frontend never uses that list
    pub local: Option<Vec<SocketAddr>>,
    /// Whether an endpoint exists anywhere (behaviour.md 2.9): decides between reject and drop when a list is empty
    pub has_endpoints: bool,
    /// Endpoints whose flows may go on: those that serve, whatever else (behaviour.md 7.4), sorted. UDP only: flows of
    /// others are never cut (7.1)
    pub serving: Vec<SocketAddr>,
    /// Which of the lists is used for whom
    pub policy: TrafficPolicy,
    /// Whose address the endpoint doesn't see
    pub masquerade: Masquerade,
    /// How long a client stays with its endpoint, in seconds since its last new connection, 1 to 86400; `None` without
    /// session affinity (behaviour.md 6.2). All frontends of a service port and family share what is remembered (6.1).
    pub affinity: Option<NonZeroU32>,
    /// The only sources that are let in, all others are dropped; empty lets in all. Sorted, without duplicates, of the
    /// frontend's family (behaviour.md 3.10)
    pub sources: Vec<IpNet>,
}

impl Frontend {
    /// What packets are matched on.
    pub const fn vip(&self) -> Vip {
        Vip {
            family: self.family,
            address: self.address,
            port: self.port,
            protocol: self.service_port.protocol,
        }
    }
}
