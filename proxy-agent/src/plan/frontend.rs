//! What this node serves: the planner's result.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::Serialize;

use super::{Family, Protocol};

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
}
