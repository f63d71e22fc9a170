//! What this node needs to know of a ServiceCIDR.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as api;

use super::{address::parse_range, object::Complaints};

/// Reads the ranges that an object gives out. One that is being deleted counts until it is gone: Services may still have
/// addresses from it.
pub(super) fn parse(object: &api::ServiceCIDR, complaints: &mut Complaints) -> Vec<IpNet> {
    let texts = object
        .spec
        .as_ref()
        .and_then(|spec| spec.cidrs.as_deref())
        .unwrap_or_default();
    let mut ranges = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse_range(text) {
            Ok(range) => ranges.push(range),
            Err(reason) => complaints.add(format!("spec.cidrs[{index}]"), reason),
        }
    }
    ranges
}
