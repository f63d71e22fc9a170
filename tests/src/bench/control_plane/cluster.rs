//! The objects of a large cluster, as its controllers write them: with all that says nothing to a proxy.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::lab::address;

/// The port of every Service.
pub(super) const PORT: u16 = 80;
/// The port of every endpoint.
pub(super) const TARGET: u16 = 8080;
/// Pods of a node: what a kubelet takes is 110.
const PODS_A_NODE: u32 = 100;
/// Namespaces that Services are spread over.
const NAMESPACES: u32 = 50;

/// So many Services with so many endpoints each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) services: u32,
    /// Of each
    pub(super) endpoints: u32,
}

impl Size {
    /// Endpoints of all Services.
    pub(super) const fn all_endpoints(self) -> u32 {
        self.services * self.endpoints
    }

    /// Addresses of the endpoints of a Service. With each edition the first one is another.
    pub(super) fn backends(self, service: u32, edition: u32) -> impl Iterator<Item = Ipv4Addr> {
        let first = service * self.endpoints;
        (0..self.endpoints).map(move |index| {
            if index == 0 && edition > 0 {
                // Apart from all others.
                Ipv4Addr::from_bits(Ipv4Addr::new(10, 224, 0, 1).to_bits() + edition)
            } else {
                Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + first + index)
            }
        })
    }
}

/// The cluster address of a Service.
pub(super) fn frontend(service: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 1, 0).to_bits() + service)
}

/// The Node object of a node of the lab.
pub(super) fn node(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address::OUTSIDE.v4}]},
    })
}

/// A Service.
pub(super) fn service(number: u32) -> Value {
    let (address, app) = (frontend(number), name(number));
    let mut metadata = metadata(number, &app);
    metadata["annotations"] =
        json!({"meta.helm.sh/release-name": app, "meta.helm.sh/release-namespace": namespace(number)});
    metadata["labels"] = json!({
        "app.kubernetes.io/name": app, "app.kubernetes.io/instance": app, "app.kubernetes.io/managed-by": "Helm",
        "helm.sh/chart": "service-1.2.3",
    });
    metadata["managedFields"] = json!([{
        "manager": "helm", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:metadata": {"f:annotations": {".": {}, "f:meta.helm.sh/release-name": {},
            "f:meta.helm.sh/release-namespace": {}}, "f:labels": {".": {}, "f:app.kubernetes.io/name": {},
            "f:app.kubernetes.io/instance": {}, "f:app.kubernetes.io/managed-by": {}, "f:helm.sh/chart": {}}},
            "f:spec": {"f:internalTrafficPolicy": {}, "f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {},
            "f:name": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {}}}, "f:selector": {}, "f:sessionAffinity": {},
            "f:type": {}}},
    }]);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "type": "ClusterIP",
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": "http"}],
            "selector": {"app.kubernetes.io/name": app, "app.kubernetes.io/instance": app},
        },
        "status": {"loadBalancer": {}},
    })
}

/// Its EndpointSlice in an edition. Every node has as many pods as it may have, `own` those of the first hundred endpoints.
pub(super) fn slice(size: Size, service: u32, edition: u32, own: &str) -> Value {
    let app = name(service);
    let mut metadata = metadata(service, &format!("{app}-x7k2p"));
    metadata["generateName"] = format!("{app}-").into();
    metadata["labels"] = json!({
        "app.kubernetes.io/name": app, "app.kubernetes.io/instance": app, "app.kubernetes.io/managed-by": "Helm",
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io", "kubernetes.io/service-name": app,
    });
    metadata["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"});
    metadata["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "Service", "name": app, "uid": uid(service), "controller": true, "blockOwnerDeletion": true,
    }]);
    metadata["managedFields"] = json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "discovery.k8s.io/v1",
        "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
        "fieldsV1": {"f:addressType": {}, "f:endpoints": {}, "f:metadata": {"f:annotations": {".": {},
            "f:endpoints.kubernetes.io/last-change-trigger-time": {}}, "f:generateName": {}, "f:labels": {".": {},
            "f:app.kubernetes.io/name": {}, "f:endpointslice.kubernetes.io/managed-by": {},
            "f:kubernetes.io/service-name": {}}, "f:ownerReferences": {".": {}, "k:{\"uid\":\"x\"}": {}}}, "f:ports": {}},
    }]);
    let endpoint = |(index, address): (u32, Ipv4Addr)| {
        let host = (service * size.endpoints + index) / PODS_A_NODE;
        let node = if host == 0 {
            own.to_owned()
        } else {
            format!("worker-{host:05}")
        };
        json!({
            "addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": node, "zone": format!("zone-{}", host % 3),
            "targetRef": {
                "kind": "Pod", "namespace": namespace(service), "name": format!("{app}-5d78c9869d-{index:05}"),
                "uid": uid(index),
            },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata, "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
        "endpoints": (0..).zip(size.backends(service, edition)).map(endpoint).collect::<Value>(),
    })
}

fn namespace(service: u32) -> String {
    format!("team-{:02}", service % NAMESPACES)
}

fn name(service: u32) -> String {
    format!("service-{service:05}")
}

fn uid(number: u32) -> String {
    format!("8e1c2a30-5b1f-4a52-9d0e-{number:012x}")
}

fn metadata(service: u32, name: &str) -> Value {
    json!({
        "namespace": namespace(service), "name": name, "uid": uid(service), "generation": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
    })
}
