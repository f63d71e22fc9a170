//! Pods whose packets pass no hook of this node.
//!
//! A pod on a macvlan or ipvlan device, or on a virtual function of a network card (SR-IOV), sends without this namespace's
//! seeing it. The device can't be seen from here either; what shows is that the way to the pod leads through an uplink.

use std::{collections::BTreeMap, net::IpAddr};

use super::{Edge, LinkKind, Network, Role};
use crate::model::Problem;

/// What to tell of local pods, by the interface index of the device through which this node would send to each. Addresses
/// of the node itself are not among them.
pub fn unserved(network: &Network, edges: &BTreeMap<u32, Edge>, ways: &BTreeMap<IpAddr, u32>) -> Vec<Problem> {
    let problem = |(address, index): (&IpAddr, &u32)| {
        let edge = edges.get(index).filter(|edge| edge.role == Role::Uplink)?;
        // Pods behind a software switch have devices of their own, its ports; the way there leads through the switch.
        let is_switch = network.link(*index).is_some_and(|link| link.kind == LinkKind::Switch);
        (!is_switch).then(|| Problem {
            object: format!("pod {address}"),
            field: String::new(),
            reason: format!(
                "is on this node, but reached through the uplink {}, not a device of its own (macvlan, ipvlan, SR-IOV?): \
                 what it sends to Services is served only if it passes a device that `proxy-agent status` lists",
                edge.name
            ),
        })
    };
    ways.iter().filter_map(problem).collect()
}
