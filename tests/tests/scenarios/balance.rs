//! The choice among endpoints is uniform (behaviour.md 2.11).

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Family, Lab, Protocol, RequestError, chi_square, request},
    require_root,
};

use super::{PORT, serve};

const CONNECTIONS: u32 = 10_000;
/// The value that chi-square with 4 degrees of freedom exceeds once in 100,000 times by chance.
const LIMIT: f64 = 28.47;

fn choices_are_even(protocol: Protocol, family: Family) -> Result<()> {
    let pods = ["web-1", "web-2", "web-3", "web-4", "web-5"];
    Lab::builder()
        .node("node-a", &["client", "web-1", "web-2", "web-3"])
        .node("node-b", &["web-4", "web-5"])
        .run(|lab| {
            let frontend = serve(lab, "web", 1, &pods)?.frontend(family, PORT);
            let _agents = lab.start_agents()?;
            let counts = lab.namespace("client").run(|| -> Result<_, RequestError> {
                let mut counts = BTreeMap::<String, u32>::new();
                for _ in 0..CONNECTIONS {
                    let answer = request(protocol, frontend)?;
                    *counts.entry(answer.backend).or_default() += 1;
                }
                Ok(counts)
            })?;
            ensure!(counts.len() == pods.len(), "{counts:?}");
            let values: Vec<u32> = counts.values().copied().collect();
            ensure!(
                chi_square(&values) < LIMIT,
                "chi-square {} of {counts:?}",
                chi_square(&values)
            );
            Ok(())
        })
}

#[test]
fn tcp_connections_spread_evenly() -> Result<()> {
    require_root!();
    choices_are_even(Protocol::Tcp, Family::V4)
}

#[test]
fn udp_flows_spread_evenly() -> Result<()> {
    require_root!();
    choices_are_even(Protocol::Udp, Family::V6)
}
