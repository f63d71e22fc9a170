//! The choice among endpoints is uniform (behaviour.md 2.11).

use std::{collections::BTreeMap, net::SocketAddr};

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Builder, Family, FrontendKind, Lab, Policy, Protocol, RequestError, chi_square, request},
    require_root,
};

use super::{
    PORT,
    change::change,
    outside::{expose, start_agents},
    serve,
};

const CONNECTIONS: u32 = 10_000;
/// The values that chi-square exceeds once in 100,000 times by chance, by degrees of freedom: one less than pods.
const LIMITS: [f64; 5] = [0.0, 19.51, 23.03, 25.90, 28.47];
const PODS: [&str; 5] = ["web-1", "web-2", "web-3", "web-4", "web-5"];

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "web-1", "web-2", "web-3"])
        .node("node-b", &["web-4", "web-5"])
        .outside()
}

/// Connections from one place fall on these pods alike.
fn choices_are_even(lab: &Lab, from: &str, protocol: Protocol, frontend: SocketAddr, pods: &[&str]) -> Result<()> {
    let counts = lab.namespace(from).run(|| -> Result<_, RequestError> {
        let mut counts = BTreeMap::<String, u32>::new();
        for _ in 0..CONNECTIONS {
            let answer = request(protocol, frontend)?;
            *counts.entry(answer.backend).or_default() += 1;
        }
        Ok(counts)
    })?;
    ensure!(counts.keys().eq(pods), "{counts:?}");
    let values: Vec<u32> = counts.values().copied().collect();
    let even = chi_square(&values);
    ensure!(even < LIMITS[pods.len() - 1], "chi-square {even} of {counts:?}");
    Ok(())
}

fn cluster_ip_choices_are_even(protocol: Protocol, family: Family) -> Result<()> {
    cluster().run(|lab| {
        let frontend = serve(lab, "web", 1, &PODS)?.frontend(family, PORT);
        let _agents = lab.start_agents()?;
        choices_are_even(lab, "client", protocol, frontend, &PODS)
    })
}

#[test]
fn tcp_connections_spread_evenly() -> Result<()> {
    require_root!();
    cluster_ip_choices_are_even(Protocol::Tcp, Family::V4)
}

#[test]
fn udp_flows_spread_evenly() -> Result<()> {
    require_root!();
    cluster_ip_choices_are_even(Protocol::Udp, Family::V6)
}

/// All endpoints are chosen alike through a nodePort, whichever node they are on, and masqueraded; those of the node, and as
/// they come, under policy Local.
#[test]
fn rule_2_11_connections_through_a_node_port_spread_evenly() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &PODS)?;
        let _agents = start_agents(lab)?;
        let node = lab.node("node-a");
        let cases = [
            (Policy::Cluster, Protocol::Udp, Family::V4, &PODS[..]),
            (Policy::Local, Protocol::Tcp, Family::V6, &PODS[..3]),
        ];
        for (policy, protocol, family, pods) in cases {
            change(lab, &service.clone().external_policy(policy))?;
            let port = protocol.to_string().to_lowercase();
            let frontend = service.frontend_of(FrontendKind::NodePort, family, &port, node);
            choices_are_even(lab, "outside", protocol, frontend, pods)?;
        }
        Ok(())
    })
}
