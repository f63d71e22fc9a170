//! A workload as files for `proxy-agent run --manifests`.

use std::fmt::Write as _;

use serde_json::json;

use super::workload::{Service, Workload};

/// All Services and EndpointSlices as one YAML file. Every document is JSON, which is YAML.
pub(super) fn render(workload: Workload) -> String {
    let mut text = String::new();
    for Service {
        name,
        frontend,
        endpoints,
    } in workload.services()
    {
        let [first, second] = endpoints;
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "bench", "name": name},
            "spec": {
                "clusterIP": frontend.ip(), "clusterIPs": [frontend.ip()], "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": frontend.port()}],
            },
        });
        write(&mut text, &service);
        // A slice has one port for all its endpoints: each endpoint gets one of its own.
        for (endpoint, suffix) in [(first, "a"), (second, "b")] {
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": "bench", "name": format!("{name}-{suffix}"),
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "protocol": "TCP", "port": endpoint.port()}],
                "endpoints": [{"addresses": [endpoint.ip()], "conditions": {"ready": true}}],
            });
            write(&mut text, &slice);
        }
    }
    text
}

fn write(text: &mut String, object: &serde_json::Value) {
    writeln!(text, "---\n{object}").expect("a string takes everything");
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_service_has_a_slice_for_each_endpoint() {
        let text = render(super::super::workload::tests::small());
        let objects: Vec<Value> = serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| Value::deserialize(document).unwrap())
            .collect();
        let kinds = |kind: &str| objects.iter().filter(|object| object["kind"] == kind).count();
        assert_eq!((kinds("Service"), kinds("EndpointSlice"), objects.len()), (3, 6, 9));
        assert_eq!(objects[3]["spec"]["clusterIPs"][0], "10.96.0.2");
        assert_eq!(objects[5]["ports"][0]["port"], 8081);
    }
}
