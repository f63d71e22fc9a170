//! What this node needs to know of its own Node object.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as api;

use ipnet::IpNet;

use super::{
    Family,
    address::{parse_ip, parse_range},
    object::Complaints,
};

/// Taint of a node that the cluster autoscaler is about to delete.
const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Names the zone of a node.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// This node. Without a Node object nothing is known (behaviour.md 2.12).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its zone; never empty
    pub zone: Option<String>,
    /// Its addresses, at most one a family, the one of the primary family first (behaviour.md 8.12)
    pub addresses: Vec<IpAddr>,
    /// What its pods have addresses from (`spec.podCIDRs`)
    pub pod_ranges: Vec<IpNet>,
    /// Whether load balancers may send to it: it is known, isn't being deleted, and isn't about to be (behaviour.md 8.5)
    pub eligible: bool,
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
            pod_ranges: parse_pod_ranges(object.spec.as_ref(), complaints),
            eligible: object.metadata.deletion_timestamp.is_none() && !is_tainted(object.spec.as_ref()),
        }
    }
}

/// Whether the cluster autoscaler is about to delete it.
fn is_tainted(spec: Option<&api::NodeSpec>) -> bool {
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    taints.iter().any(|taint| taint.key == DELETION_TAINT)
}

fn parse_pod_ranges(spec: Option<&api::NodeSpec>, complaints: &mut Complaints) -> Vec<IpNet> {
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
    // An API server fills both fields from either; a file may have only one.
    let single = spec
        .and_then(|spec| spec.pod_cidr.as_deref())
        .filter(|text| !text.is_empty());
    let texts: Vec<(String, &str)> = if listed.is_empty() {
        single
            .map(|text| ("spec.podCIDR".to_owned(), text))
            .into_iter()
            .collect()
    } else {
        let field = |index| format!("spec.podCIDRs[{index}]");
        listed
            .iter()
            .enumerate()
            .map(|(index, text)| (field(index), text.as_str()))
            .collect()
    };
    let mut ranges = Vec::new();
    for (field, text) in texts {
        match parse_range(text) {
            Ok(range) => ranges.push(range),
            Err(reason) => complaints.add(field, reason),
        }
    }
    ranges
}
