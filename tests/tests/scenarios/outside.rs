//! Traffic from outside the cluster: each kind of frontend, protocol and family; backends here, on the other node and in the
//! nodes' own network; both policies.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Agent, AgentOptions, Answer, Builder, Connection, Family, FrontendKind, Lab, Policy, Protocol, Service, Shape,
        UdpClient,
        address::{self, OUTSIDE},
    },
    require_root,
};
use serde_json::json;

use super::{POD_PORT, PORT, service};

/// The first nodePort; each Service has its own.
pub(super) const NODE_PORT: u16 = 30_000;

/// A client with a backend `near` on node-a, which all outside traffic enters by, and a backend `far` on node-b.
pub(super) fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
        .outside()
}

/// A Service with a frontend of every kind, its addresses announced by node-a. A backend is a pod, or a node: a server in
/// its own network.
pub(super) fn expose(lab: &Lab, name: &str, number: u8, backends: &[&str]) -> Result<Service> {
    for backend in backends {
        lab.serve(backend, POD_PORT)?;
    }
    let is_pod = |name: &&&str| lab.pods().iter().any(|pod| pod.name() == **name);
    let (pods, hosts): (Vec<&str>, Vec<&str>) = backends.iter().partition(|name| is_pod(name));
    let pods: Vec<_> = pods.into_iter().map(|pod| lab.pod(pod)).collect();
    let [external, balancer] = [address::external(number), address::balancer(number)];
    for announced in [external, balancer] {
        lab.announce(announced, &["node-a"])?;
    }
    let node_port = NODE_PORT + u16::from(number);
    let service = service(name, address::cluster(number))
        .node_port("tcp", node_port)
        .node_port("udp", node_port)
        .external(external)
        .balancer(balancer, None)
        .pods(&pods);
    Ok(hosts
        .into_iter()
        .fold(service, |service, host| service.host(lab.node(host))))
}

/// Agents that know which clients are pods (`clusterCIDR`) and the nodes' addresses.
pub(super) fn start_agents(lab: &Lab) -> Result<Vec<Agent>> {
    lab.start_agents_with(&lab.cluster_options(&[])?)
}

/// A frontend of every external kind, protocol and family, at node-a.
pub(super) fn frontends(lab: &Lab, service: &Service) -> Vec<(Protocol, SocketAddr)> {
    let mut frontends = Vec::new();
    for kind in FrontendKind::EXTERNAL {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let port = protocol.to_string().to_lowercase();
                frontends.push((protocol, service.frontend_of(kind, family, &port, lab.node("node-a"))));
            }
        }
    }
    frontends
}

/// Asks each frontend; every answer must be right.
pub(super) fn ask_all(lab: &Lab, from: &str, service: &Service, rightly: impl Fn(&Answer) -> bool) -> Result<()> {
    for (protocol, to) in frontends(lab, service) {
        let answer = lab.request(from, protocol, to);
        let answer = answer.with_context(|| format!("{} from {from}, {protocol} {to}", service.full_name()))?;
        ensure!(
            rightly(&answer),
            "{} from {from}, {protocol} {to}: {answer:?}",
            service.full_name()
        );
    }
    Ok(())
}

/// A Service in front of each backend, applied.
pub(super) fn expose_each<'a>(lab: &Lab, backends: &[&'a str], policy: Policy) -> Result<Vec<(&'a str, Service)>> {
    let expose_one = |(number, &backend)| {
        let service = expose(lab, backend, number, &[backend])?.external_policy(policy);
        lab.apply(&service)?;
        Ok((backend, service))
    };
    (1..).zip(backends).map(expose_one).collect()
}

/// The client is masqueraded wherever the backend is, but not on the way to a server on the node itself, which passes no
/// postrouting (behaviour.md 5.10).
fn clients_are_masqueraded(lab: &Lab) -> Result<()> {
    let services = expose_each(lab, &["near", "far", "node-a", "node-b"], Policy::Cluster)?;
    let _agents = start_agents(lab)?;
    for (backend, service) in &services {
        ask_all(lab, "outside", service, |answer| {
            let seen = answer.peer.ip();
            let rightly = if *backend == "node-a" {
                OUTSIDE.both().contains(&seen)
            } else {
                lab.node("node-a").holds(seen)
            };
            answer.backend == *backend && rightly
        })?;
    }
    Ok(())
}

#[test]
pub(super) fn rule_5_4_policy_cluster_serves_and_masquerades_clients_from_outside() -> Result<()> {
    require_root!();
    cluster().run(|lab| clients_are_masqueraded(lab))
}

#[test]
pub(super) fn rule_5_4_on_strict_nodes_in_every_shape() -> Result<()> {
    require_root!();
    for shape in Shape::ALL {
        cluster().shape(shape).strict().run(|lab| {
            lab.admit_outside()?;
            clients_are_masqueraded(lab).with_context(|| shape.to_string())?;
            let offended = lab.offended_rules()?;
            ensure!(offended.is_empty(), "{shape}: {offended:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Pods that use an external frontend are masqueraded as well (behaviour.md 5.4).
#[test]
pub(super) fn rule_5_4_policy_cluster_masquerades_pods() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        for (backend, service) in &services {
            ask_all(lab, "client", service, |answer| {
                answer.backend == *backend && lab.node("node-a").holds(answer.peer.ip())
            })?;
        }
        Ok(())
    })
}

/// Only backends of the node, and they see the client itself.
fn clients_are_seen(lab: &Lab) -> Result<()> {
    let services = expose_each(lab, &["near", "node-a"], Policy::Local)?;
    let _agents = start_agents(lab)?;
    for (backend, service) in &services {
        ask_all(lab, "outside", service, |answer| {
            answer.backend == *backend && OUTSIDE.both().contains(&answer.peer.ip())
        })?;
    }
    Ok(())
}

#[test]
pub(super) fn rule_5_5_policy_local_keeps_the_clients_address() -> Result<()> {
    require_root!();
    cluster().run(|lab| clients_are_seen(lab))
}

#[test]
pub(super) fn rule_5_5_on_strict_nodes() -> Result<()> {
    require_root!();
    cluster().strict().run(|lab| {
        lab.admit_outside()?;
        clients_are_seen(lab)?;
        let offended = lab.offended_rules()?;
        ensure!(offended.is_empty(), "{offended:#?}");
        Ok(())
    })
}

/// A pod of the cluster gets any endpoint under policy Local, and is seen as itself.
#[test]
pub(super) fn rule_5_6_policy_local_gives_pods_the_whole_cluster() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["far"], Policy::Local)?;
        let _agents = start_agents(lab)?;
        let client = lab.pod("client").addresses().both();
        for (backend, service) in &services {
            ask_all(lab, "client", service, |answer| {
                answer.backend == *backend && client.contains(&answer.peer.ip())
            })?;
        }
        Ok(())
    })
}

/// Clients stay with one endpoint, whichever frontend of a service port they use (behaviour.md 6.1).
#[test]
pub(super) fn rule_6_1_affinity_is_shared_by_all_frontends_of_a_port() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far"])?.affinity(Duration::from_hours(1));
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for from in ["outside", "client"] {
            for protocol in Protocol::ALL {
                for family in Family::ALL {
                    let mut frontends = frontends(lab, &service);
                    if from == "client" {
                        frontends.push((protocol, service.frontend(family, PORT)));
                    }
                    frontends.retain(|(of, to)| *of == protocol && to.is_ipv4() == (family == Family::V4));
                    let mut backends = Vec::new();
                    for (_, to) in frontends.repeat(4) {
                        backends.push(lab.request(from, protocol, to)?.backend);
                    }
                    backends.dedup();
                    ensure!(backends.len() == 1, "{from}, {protocol} {family}: {backends:?}");
                }
            }
        }
        Ok(())
    })
}

/// Only the primary address has nodePorts by default; at another one a server of the node answers. At the primary address it
/// is shadowed (behaviour.md 3.6, 3.8, 3.9).
#[test]
pub(super) fn rule_3_8_a_node_port_at_another_address_is_left_alone() -> Result<()> {
    require_root!();
    cluster().second_uplink().run(|lab| {
        let service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&service)?;
        lab.serve("node-a", NODE_PORT + 1)?;
        let _agents = start_agents(lab)?;
        let node = lab.node("node-a");
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                for (addresses, backend) in [(node.addresses(), "near"), (node.second_addresses(), "node-a")] {
                    let to = addresses.with_port(family, NODE_PORT + 1);
                    let answer = lab.request("outside", protocol, to)?;
                    ensure!(answer.backend == backend, "{protocol} {to}: {answer:?}");
                }
            }
        }
        Ok(())
    })
}

/// Requests come in by the second uplink, from two routers away; answers leave by the first one.
#[test]
pub(super) fn a_request_by_one_uplink_is_answered_by_the_other() -> Result<()> {
    require_root!();
    let nodes = Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"]);
    nodes.far_outside().second_uplink().run(|lab| {
        let services = expose_each(lab, &["near", "far", "node-a"], Policy::Cluster)?;
        lab.apply_nodes()?;
        let ranges = ["172.31.0.0/24", "fd00:172:31::/64"];
        let configuration = lab.write_configuration("proxy", &json!({ "nodePortAddresses": ranges }))?;
        let _agents = lab.start_agents_with(&AgentOptions::configured(&configuration))?;
        for ((backend, service), number) in services.iter().zip(1..) {
            for family in Family::ALL {
                for protocol in Protocol::ALL {
                    let to = lab
                        .node("node-a")
                        .second_addresses()
                        .with_port(family, NODE_PORT + number);
                    let answer = lab.request("outside", protocol, to);
                    let answer = answer.with_context(|| format!("{}, {protocol} {to}", service.full_name()))?;
                    ensure!(answer.backend == *backend, "{protocol} {to}: {answer:?}");
                }
            }
        }
        Ok(())
    })
}

/// 1 MiB each way over TCP, datagrams of all alignments, right checksums everywhere.
#[test]
pub(super) fn bulk_arrives_unchanged() -> Result<()> {
    const MEBIBYTE: usize = 1 << 20;
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far", "node-b"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        for (_, service) in &services {
            for (protocol, to) in frontends(lab, service) {
                let exchange = || -> Result<()> {
                    if protocol == Protocol::Tcp {
                        let mut connection = Connection::open(to)?;
                        connection.pull(MEBIBYTE)?;
                        connection.push(MEBIBYTE)?;
                    } else {
                        let mut socket = UdpClient::bind(0, to)?;
                        for length in [0, 1, 2, 3, 600, 1199, 1200] {
                            socket.ask_with(to, &vec![0xa5; length])?;
                        }
                    }
                    Ok(())
                };
                let outcome = lab.namespace("outside").run(exchange);
                outcome.with_context(|| format!("{}, {protocol} {to}", service.full_name()))?;
            }
        }
        for name in ["outside", "near", "far", "node-a", "node-b"] {
            let errors = lab.namespace(name).checksum_errors()?;
            ensure!(errors == 0, "{name} received {errors} wrong checksums");
        }
        Ok(())
    })
}
