//! Choice of endpoints (behaviour.md 2; kube-proxy's pkg/proxy/topology.go).

use std::{
    collections::{BTreeMap, btree_map},
    net::SocketAddr,
};

use super::Family;
use crate::model::{Endpoint, Node, NodeHint, Port, ServiceView, SlicePort};

/// The endpoints of one service port in one family, by address and port (behaviour.md 1.16, 1.17).
#[derive(Debug)]
pub struct Candidates<'a>(BTreeMap<SocketAddr, &'a Endpoint>);

/// Which endpoints the hints leave (behaviour.md 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology<'a> {
    Anywhere,
    Node,
    Zone(&'a str),
}

impl<'a> Candidates<'a> {
    /// Collects the endpoints that a Service's slices name for a port: by its name and protocol, never by its number
    /// (behaviour.md 1.12).
    pub fn collect(service: ServiceView<'a>, port: &Port, family: Family) -> Self {
        let mut found: BTreeMap<SocketAddr, &'a Endpoint> = BTreeMap::new();
        for slice in service.slices().filter(|slice| slice.family == family) {
            let is_ours = |of: &&SlicePort| of.name == port.name && of.protocol == port.protocol;
            for slice_port in slice.ports.iter().filter(is_ours) {
                for endpoint in &slice.endpoints {
                    match found.entry(SocketAddr::new(endpoint.address, slice_port.port)) {
                        btree_map::Entry::Vacant(vacant) => {
                            vacant.insert(endpoint);
                        }
                        btree_map::Entry::Occupied(mut occupied) => {
                            if occupied.get().conditions.terminating && !endpoint.conditions.terminating {
                                occupied.insert(endpoint);
                            }
                        }
                    }
                }
            }
        }
        Self(found)
    }

    /// All of them, used or not, in the order of their addresses.
    pub fn all(&self) -> impl Iterator<Item = (SocketAddr, &'a Endpoint)> + '_ {
        self.0.iter().map(|(address, endpoint)| (*address, *endpoint))
    }

    /// The list for traffic policy Cluster (behaviour.md 2.6): the ready endpoints that the hints leave; if there are
    /// none, those that still serve while they terminate.
    pub fn cluster(&self, node: &Node) -> Vec<SocketAddr> {
        let topology = self.topology(node);
        let chosen = self.filter(|endpoint| is_ready(endpoint) && topology.allows(endpoint));
        if chosen.is_empty() {
            self.filter(is_draining)
        } else {
            chosen
        }
    }

    /// The list for traffic policy Local (behaviour.md 2.7): the same of this node's endpoints, whatever the hints say.
    pub fn local(&self) -> Vec<SocketAddr> {
        let chosen = self.filter(|endpoint| endpoint.local && is_ready(endpoint));
        if chosen.is_empty() {
            self.filter(|endpoint| endpoint.local && is_draining(endpoint))
        } else {
            chosen
        }
    }

    /// The endpoints that serve, ready or terminating or neither, anywhere (behaviour.md 7.4).
    pub fn serving(&self) -> Vec<SocketAddr> {
        self.filter(|endpoint| endpoint.conditions.serving)
    }

    /// Whether an endpoint exists anywhere that a list could hold (behaviour.md 2.9). This is the same as "the Cluster
    /// list isn't empty": the hints never empty it.
    pub fn any(&self) -> bool {
        self.0
            .values()
            .any(|endpoint| is_ready(endpoint) || is_draining(endpoint))
    }

    fn topology<'n>(&self, node: &'n Node) -> Topology<'n> {
        let ready = || self.0.values().copied().filter(|endpoint| is_ready(endpoint));
        let agreed = |has_hint: fn(&Endpoint) -> bool, topology: Topology<'_>| {
            ready().all(has_hint) && ready().any(|endpoint| topology.allows(endpoint))
        };
        if agreed(|endpoint| endpoint.nodes != NodeHint::None, Topology::Node) {
            return Topology::Node;
        }
        match node.zone.as_deref().map(Topology::Zone) {
            Some(zone) if agreed(|endpoint| !endpoint.zones.is_empty(), zone) => zone,
            _ => Topology::Anywhere,
        }
    }

    fn filter(&self, keep: impl Fn(&Endpoint) -> bool) -> Vec<SocketAddr> {
        let kept = self.0.iter().filter(|(_, endpoint)| keep(endpoint));
        kept.map(|(address, _)| *address).collect()
    }
}

impl Topology<'_> {
    fn allows(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::Anywhere => true,
            Self::Node => endpoint.nodes == NodeHint::Here,
            Self::Zone(zone) => endpoint.zones.iter().any(|hint| &**hint == zone),
        }
    }
}

/// Takes new connections. `ready` counts as given: with publishNotReadyAddresses it is set whatever the rest says
/// (behaviour.md 1.14).
const fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.ready
}

/// Terminates, but still serves: used when nothing else is left (behaviour.md 2.6, 2.7, 2.10).
const fn is_draining(endpoint: &Endpoint) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}
