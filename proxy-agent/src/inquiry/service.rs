//! A Service as the model has it.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    model::{Endpoint, ObjectName, Port, Problem, ServiceView},
    plan::{Family, Protocol, endpoints::Candidates},
};

/// A Service, all its endpoints, and what its EndpointSlices say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceDetail {
    /// Namespace
    pub namespace: String,
    /// Name
    pub service: String,
    /// `internalTrafficPolicy` is Local
    pub internal_traffic_local: bool,
    /// `externalTrafficPolicy` is Local, and counts
    pub external_traffic_local: bool,
    /// Its cluster addresses, external ones, and those of its load balancer
    pub addresses: Vec<IpAddr>,
    /// Its ports
    pub ports: Vec<PortDetail>,
    /// How many EndpointSlices it has
    pub slices: usize,
    /// The ports that these name, each once
    pub slice_ports: Vec<SlicePortDetail>,
    /// The addresses of endpoints that these hold, whatever their ports, sorted
    pub endpoint_addresses: Vec<IpAddr>,
    /// What is wrong with the Service, or with writing it
    pub problems: Vec<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortDetail {
    /// Name, empty for an unnamed single port
    pub name: String,
    /// Protocol
    pub protocol: Protocol,
    /// Number
    pub port: u16,
    /// Number on the node's own addresses
    pub node_port: Option<u16>,
    /// Its endpoints of both families, sorted, used or not
    pub endpoints: Vec<EndpointDetail>,
}

/// An endpoint of a port (behaviour.md 1.14 to 1.17).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are the EndpointSlice's own")]
pub struct EndpointDetail {
    /// Address and port
    pub address: SocketAddr,
    /// Takes new connections
    pub ready: bool,
    /// Would take connections, were it not terminating
    pub serving: bool,
    /// Is about to end
    pub terminating: bool,
    /// It is on this node
    pub local: bool,
}

/// A port that EndpointSlices name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SlicePortDetail {
    /// Name: it belongs to the Service's port of this name and protocol (behaviour.md 1.12)
    pub name: String,
    /// Protocol
    pub protocol: Protocol,
}

impl ServiceDetail {
    /// What the model knows of a Service; `problems` are those of all objects.
    pub fn of<'a>(view: ServiceView<'_>, problems: impl IntoIterator<Item = &'a Problem>) -> Self {
        let service = view.service;
        let slice_ports = view
            .slices()
            .flat_map(|slice| &slice.ports)
            .map(|port| SlicePortDetail {
                name: port.name.clone(),
                protocol: port.protocol,
            });
        let slice_ports: BTreeSet<_> = slice_ports.collect();
        let endpoints = view.slices().flat_map(|slice| &slice.endpoints);
        let endpoint_addresses: BTreeSet<_> = endpoints.map(|endpoint| endpoint.address).collect();
        let ours = problems
            .into_iter()
            .filter(|problem| problem.service().as_ref() == Some(view.name));
        Self {
            namespace: view.name.namespace.clone(),
            service: view.name.name.clone(),
            internal_traffic_local: service.internal_traffic_local,
            external_traffic_local: service.external_traffic_local,
            addresses: service.addresses().collect(),
            ports: service.ports.iter().map(|port| PortDetail::of(view, port)).collect(),
            slices: view.slices().count(),
            slice_ports: slice_ports.into_iter().collect(),
            endpoint_addresses: endpoint_addresses.into_iter().collect(),
            problems: ours.map(ToString::to_string).collect(),
        }
    }

    /// Its name.
    pub fn name(&self) -> ObjectName {
        ObjectName {
            namespace: self.namespace.clone(),
            name: self.service.clone(),
        }
    }

    /// Its port of this name and protocol.
    pub fn port(&self, name: &str, protocol: Protocol) -> Option<&PortDetail> {
        let mut ports = self.ports.iter();
        ports.find(|port| port.name == name && port.protocol == protocol)
    }
}

impl PortDetail {
    fn of(view: ServiceView<'_>, port: &Port) -> Self {
        let mut endpoints = Vec::new();
        for family in Family::ALL {
            let candidates = Candidates::collect(view, port, family);
            endpoints.extend(
                candidates
                    .all()
                    .map(|(address, endpoint)| EndpointDetail::of(address, endpoint)),
            );
        }
        Self {
            name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
            endpoints,
        }
    }
}

impl EndpointDetail {
    fn of(address: SocketAddr, endpoint: &Endpoint) -> Self {
        Self {
            address,
            ready: endpoint.conditions.ready,
            serving: endpoint.conditions.serving,
            terminating: endpoint.conditions.terminating,
            local: endpoint.local,
        }
    }

    /// Whether connections may be sent to it when no other endpoint is ready (behaviour.md 2.6).
    pub const fn is_usable(&self) -> bool {
        self.ready || (self.serving && self.terminating)
    }
}

impl fmt::Display for EndpointDetail {
    /// Its state.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.ready, self.serving, self.terminating) {
            (true, _, false) => "ready",
            (true, _, true) => "ready, terminating",
            (false, true, false) => "serving, not ready",
            (false, true, true) => "serving, terminating",
            (false, false, true) => "terminating",
            (false, false, false) => "not ready",
        })?;
        f.write_str(if self.local { ", here" } else { "" })
    }
}
