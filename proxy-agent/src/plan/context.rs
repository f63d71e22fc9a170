//! What the plan of every Service depends on besides the Service.

use std::net::IpAddr;

use super::{Family, LocalSources, node::primary};
use crate::{config::ProxyConfig, model::Node};

/// What the plan of every Service depends on besides the Service and its slices, and the zone of the Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanContext {
    /// Masquerade everything that is sent to a cluster address (behaviour.md 5.3)
    pub masquerade_all: bool,
    /// The families in which pods can be told from others (behaviour.md 5.8)
    pub detected: Vec<Family>,
    /// The address that is this node's own in each family, where it has one (behaviour.md 3.10, 8.12)
    pub own_addresses: Vec<IpAddr>,
}

impl PlanContext {
    /// The context of a node with these addresses, the primary one of each family first.
    pub fn new(config: &ProxyConfig, node: &Node, node_addresses: &[IpAddr]) -> Self {
        let sources = LocalSources::new(&config.local_traffic, node);
        Self {
            masquerade_all: config.masquerade_all,
            detected: Family::ALL
                .into_iter()
                .filter(|family| sources.detects(*family))
                .collect(),
            own_addresses: primary(node_addresses).collect(),
        }
    }
}
