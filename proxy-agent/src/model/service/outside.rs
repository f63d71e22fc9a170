//! What a Service says about traffic that isn't meant for its cluster address: external addresses and their policy.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::super::{
    address::{parse_ip, parse_range},
    object::Complaints,
};

/// Whether a Service of this spec has a type whose external policy counts (behaviour.md 2.3), and the policy is Local.
pub(super) fn is_local(spec: &api::ServiceSpec, complaints: &mut Complaints) -> bool {
    let has_external_ips = spec.external_ips.as_ref().is_some_and(|list| !list.is_empty());
    let counts = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("" | "ClusterIP") => has_external_ips,
        Some(other) => {
            let reason = format!(
                "{other:?} is no type of Service: ClusterIP, NodePort, LoadBalancer and ExternalName are; taken for \
                 ClusterIP"
            );
            complaints.add("spec.type", reason);
            has_external_ips
        }
    };
    super::is_local(
        "spec.externalTrafficPolicy",
        spec.external_traffic_policy.as_deref(),
        complaints,
    ) && counts
}

/// `spec.healthCheckNodePort`, where it means something (behaviour.md 8.1): an API server gives a valid one, or 0.
pub(super) fn health_check_port(spec: &api::ServiceSpec) -> Option<u16> {
    let is_meant =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| is_meant)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// Whether an entry of a list isn't blank: API servers let blank ones pass, and they mean nothing.
fn is_given(text: &str) -> bool {
    !text.trim().is_empty()
}

/// `spec.externalIPs`: sorted, without duplicates.
pub(super) fn external_ips(spec: &api::ServiceSpec, complaints: &mut Complaints) -> Vec<IpAddr> {
    let texts = spec.external_ips.as_deref().unwrap_or_default();
    let mut addresses = BTreeSet::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| is_given(text)) {
        match parse_ip(text).and_then(super::servable) {
            Ok(address) => _ = addresses.insert(address),
            Err(reason) => complaints.add(format!("spec.externalIPs[{index}]"), reason),
        }
    }
    Vec::from_iter(addresses)
}

/// The addresses of `status.loadBalancer.ingress` that packets arrive with (behaviour.md 3.2): sorted, without
/// duplicates.
pub(super) fn load_balancer_ips(status: Option<&api::ServiceStatus>, complaints: &mut Complaints) -> Vec<IpAddr> {
    let entries = status
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default();
    let mut addresses = BTreeSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let field = |name| format!("status.loadBalancer.ingress[{index}].{name}");
        // A load balancer that has only a name is reached elsewhere.
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else {
            continue;
        };
        match entry.ip_mode.as_deref() {
            None | Some("VIP") => {}
            Some("Proxy") => continue,
            Some(other) => {
                let reason = format!("{other:?} is no such mode: VIP and Proxy are; the address is not served");
                complaints.add(field("ipMode"), reason);
                continue;
            }
        }
        match parse_ip(text).and_then(super::servable) {
            Ok(address) => _ = addresses.insert(address),
            Err(reason) => complaints.add(field("ip"), reason),
        }
    }
    Vec::from_iter(addresses)
}

/// `spec.loadBalancerSourceRanges`: sorted, without duplicates.
pub(super) fn source_ranges(spec: &api::ServiceSpec, complaints: &mut Complaints) -> Vec<IpNet> {
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let mut ranges = BTreeSet::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| is_given(text)) {
        match parse_range(text) {
            Ok(range) => _ = ranges.insert(range),
            Err(reason) => {
                let field = format!("spec.loadBalancerSourceRanges[{index}]");
                complaints.add(field, format!("{reason}; it lets nobody in, and keeps nobody out"));
            }
        }
    }
    Vec::from_iter(ranges)
}
