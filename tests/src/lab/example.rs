//! The cluster that `manifests/examples` describes: what `demo` and `lab up` show.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Addresses, Builder, Lab, Namespace, Protocol, Service, address, server::Server};

/// The examples, by file name.
pub const MANIFESTS: [(&str, &str); 3] = [
    ("nodes.yaml", include_str!("../../../manifests/examples/nodes.yaml")),
    (
        "demo-web.yaml",
        include_str!("../../../manifests/examples/demo-web.yaml"),
    ),
    (
        "demo-dns.yaml",
        include_str!("../../../manifests/examples/demo-dns.yaml"),
    ),
];

/// Port that the pods of `demo/web` listen on
pub const WEB_PORT: u16 = 8080;
/// Port that the pods of `demo/dns` listen on
pub const DNS_PORT: u16 = 5353;

const NODES: [(&str, &[&str]); 2] = [
    ("node-a", &["client", "web-1", "dns-1"]),
    ("node-b", &["web-2", "web-3", "dns-2"]),
];

/// Two nodes with their pods.
pub fn cluster() -> Builder {
    NODES
        .iter()
        .fold(Lab::builder(), |builder, (node, pods)| builder.node(node, pods))
}

/// `demo/web`, TCP, with pods on both nodes.
pub fn web() -> Service {
    let service = Service::new("demo", "web", address::cluster(80)).port("http", Protocol::Tcp, 80, WEB_PORT);
    with_pods(service, "web-")
}

/// `demo/dns`, UDP, with pods on both nodes.
pub fn dns() -> Service {
    let service = Service::new("demo", "dns", address::cluster(53)).port("dns", Protocol::Udp, 53, DNS_PORT);
    with_pods(service, "dns-")
}

/// The pods that serve, and their ports.
pub fn servers() -> impl Iterator<Item = (&'static str, u16)> {
    let pods = NODES.into_iter().flat_map(|(_, pods)| pods).copied();
    pods.filter_map(|pod| match pod {
        _ if pod.starts_with("web-") => Some((pod, WEB_PORT)),
        _ if pod.starts_with("dns-") => Some((pod, DNS_PORT)),
        _ => None,
    })
}

/// The servers of the cluster; they end when dropped.
#[derive(Debug)]
pub struct Servers {
    _servers: Vec<Server>,
}

/// Starts the servers in the pods of a lab that another process built, by its prefix.
///
/// # Errors
/// A pod's namespace is not there.
pub fn serve(prefix: &str) -> Result<Servers> {
    let addresses = addresses().collect::<BTreeMap<_, _>>();
    let start = |(pod, port): (&'static str, u16)| {
        Server::start(
            &Namespace::open(&format!("{prefix}-{pod}"))?,
            pod,
            &[addresses[pod]],
            port,
        )
    };
    let servers = servers().map(start).collect::<Result<_>>()?;
    Ok(Servers { _servers: servers })
}

impl Lab {
    /// Gives the agents the examples.
    pub fn apply_examples(&self) -> Result<()> {
        for (name, text) in MANIFESTS {
            self.write_manifest(name, text)?;
        }
        self.expect(&web());
        self.expect(&dns());
        Ok(())
    }
}

/// Addresses of all pods by name.
fn addresses() -> impl Iterator<Item = (&'static str, Addresses)> {
    let of_node = |((_, pods), node): ((&str, &'static [&'static str]), u8)| {
        pods.iter()
            .copied()
            .zip(1..)
            .map(move |(pod, number)| (pod, address::pod(node, number)))
    };
    NODES.into_iter().zip(1..).flat_map(of_node)
}

fn with_pods(mut service: Service, prefix: &str) -> Service {
    for ((node, pods), node_number) in NODES.into_iter().zip(1..) {
        for (pod, pod_number) in pods.iter().zip(1..).filter(|(pod, _)| pod.starts_with(prefix)) {
            service = service.member(pod, node, address::pod(node_number, pod_number));
        }
    }
    service
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};
    use serde::Deserialize as _;
    use serde_yaml_ng::{Deserializer, Value, from_value};

    use super::*;
    use crate::lab::Family;

    fn documents(name: &str) -> Vec<Value> {
        let (_, text) = MANIFESTS
            .into_iter()
            .find(|(file, _)| *file == name)
            .expect("an example of that name");
        Deserializer::from_str(text)
            .map(|document| Value::deserialize(document).expect("YAML"))
            .collect()
    }

    /// What a reader sees in the files is what the lab builds.
    #[test]
    fn the_files_describe_the_cluster() {
        for (file, service) in [("demo-web.yaml", web()), ("demo-dns.yaml", dns())] {
            let [object, v4, v6] = documents(file).try_into().expect("a Service and two EndpointSlices");
            assert_eq!(
                from_value::<core::Service>(object).expect("a Service"),
                service.service()
            );
            for (document, family) in [(v4, Family::V4), (v6, Family::V6)] {
                assert_eq!(
                    from_value::<EndpointSlice>(document).expect("a slice"),
                    service.slice(family)
                );
            }
        }
    }

    #[test]
    fn the_nodes_have_the_labs_addresses() {
        for (document, number) in documents("nodes.yaml").into_iter().zip(1..) {
            let node: core::Node = from_value(document).expect("a Node");
            assert_eq!(node.metadata.name.as_deref(), Some(NODES[usize::from(number) - 1].0));
            let addresses = node.status.and_then(|status| status.addresses).expect("addresses");
            let addresses: Vec<String> = addresses.into_iter().map(|address| address.address).collect();
            assert_eq!(
                addresses,
                address::node(number).both().map(|address| address.to_string())
            );
            let networks = node.spec.and_then(|spec| spec.pod_cidrs).expect("podCIDRs");
            assert_eq!(networks, address::pod_networks(number));
        }
    }
}
