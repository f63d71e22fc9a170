//! What this node needs to know of its own Node object.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use super::{Family, address::parse_ip, object::Complaints};

/// Names the zone of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// This node. Without a Node object nothing is known (behaviour.md 2.12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its zone; never empty
    pub zone: Option<String>,
    /// Its addresses, at most one a family, the one of the primary family first (behaviour.md 8.12)
    pub addresses: Vec<IpAddr>,
}

impl Node {
    pub(super) fn parse(object: &api::Node, complaints: &mut Complaints) -> Self {
        let labels = object.metadata.labels.as_ref();
        let zone = labels
            .and_then(|labels| labels.get(ZONE_LABEL))
            .filter(|zone| !zone.is_empty());
        let listed = object
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_deref())
            .unwrap_or_default();
        let mut addresses: Vec<IpAddr> = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (index, address) in listed.iter().enumerate().filter(|(_, address)| address.type_ == wanted) {
                match parse_ip(&address.address) {
                    Ok(address) => {
                        if addresses.iter().all(|known| Family::of(*known) != Family::of(address)) {
                            addresses.push(address);
                        }
                    }
                    Err(reason) => complaints.add(format!("status.addresses[{index}].address"), reason),
                }
            }
        }
        Self {
            zone: zone.cloned(),
            addresses,
        }
    }
}
