//! What the cluster has.

use serde_json::{Value, json};

/// A Service of this name, with an address that no other of these tests has.
pub(super) fn service(name: &str) -> Value {
    service_at(name, 0)
}

/// One of many.
pub(super) fn numbered(number: u16) -> Value {
    service_at(&format!("web-{number:04}"), number)
}

fn service_at(name: &str, number: u16) -> Value {
    // Those of names are above those of numbers. An API server gives each address out once.
    let of_name = name
        .bytes()
        .fold(7_u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    let number = if number == 0 { 0x4000 | of_name >> 2 } else { number };
    let [high, low] = (number + 1).to_be_bytes();
    let address = format!("10.96.{high}.{low}");
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}]},
    })
}

/// The same with a label that means nothing: an object that doesn't change has no new version.
pub(super) fn edited(mut object: Value, edition: usize) -> Value {
    object["metadata"]["labels"]["edition"] = edition.to_string().into();
    object
}

pub(super) fn labelled(mut object: Value, label: &str) -> Value {
    object["metadata"]["labels"] = json!({label: ""});
    object
}

pub(super) fn slice(name: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": name},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    })
}

pub(super) fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

pub(super) fn service_range(name: &str, range: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [range]},
    })
}
