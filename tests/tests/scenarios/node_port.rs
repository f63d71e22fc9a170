//! NodePorts: at which addresses they are served, and for whom.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Agent, AgentOptions, Family, Lab, PATIENCE, Policy, Protocol, address, wait_until},
    require_root,
};
use serde_json::json;

use super::{
    change::change,
    outside::{self, cluster, expose, frontends, start_agents},
    vip::expect,
};

/// That of the first Service.
const NODE_PORT: u16 = outside::NODE_PORT + 1;

/// The agent of node-a with these `nodePortAddresses`.
fn agent_with(lab: &Lab, ranges: &[&str]) -> Result<Agent> {
    let configuration = lab.write_configuration("addresses", &json!({ "nodePortAddresses": ranges }))?;
    lab.start_agent_with("node-a", AgentOptions::configured(&configuration))
}

/// A family that no range is given for is served at all addresses; where a nodePort isn't served, the node's own server
/// answers (behaviour.md 3.6, 3.8).
#[test]
fn rule_3_6_node_ports_are_served_at_the_addresses_of_the_configuration() -> Result<()> {
    require_root!();
    // Whether the first and the second address are served, IPv4 and IPv6.
    let cases: [(&[&str], [[bool; 2]; 2]); 3] = [
        (&["172.31.0.0/24"], [[false, true], [true, true]]),
        (&["172.30.0.1/32", "fd00:172:31::/64"], [[true, false], [false, true]]),
        (
            &["0.0.0.0/0", "198.51.100.0/24", "2001:db8:51::/64"],
            [[true, true], [false, false]],
        ),
    ];
    cluster().second_uplink().run(|lab| {
        let service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&service)?;
        lab.serve("node-a", NODE_PORT)?;
        lab.apply_nodes()?;
        let node = lab.node("node-a");
        for (ranges, expected) in cases {
            let _agent = agent_with(lab, ranges)?;
            for (family, served) in Family::ALL.into_iter().zip(expected) {
                for (addresses, served) in node.wire_addresses().into_iter().zip(served) {
                    let backend = if served { "near" } else { "node-a" };
                    expect(lab, "outside", addresses.with_port(family, NODE_PORT), backend)
                        .with_context(|| format!("{ranges:?}"))?;
                }
            }
        }
        Ok(())
    })
}

/// The router sends all to node-b's address to node-a, as if both had it. While only node-b has, node-a forwards, and a
/// server there answers on the nodePort's number.
#[test]
fn rule_3_6_node_ports_follow_addresses_that_come_and_go() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&service)?;
        lab.serve("node-b", NODE_PORT)?;
        lab.apply_nodes()?;
        let moving = lab.node("node-b").addresses();
        lab.announce(moving, &["node-a"])?;
        let _agent = agent_with(lab, &[address::WIRE_V4, address::WIRE_V6])?;
        let node = lab.node("node-a").namespace();
        for (change, backend) in [("", "node-b"), ("add", "near"), ("del", "node-b"), ("add", "near")] {
            if !change.is_empty() {
                node.ip(&format!(
                    "addr {change} {}/32 dev eth0\naddr {change} {}/128 dev eth0 nodad\n",
                    moving.v4, moving.v6
                ))?;
            }
            for family in Family::ALL {
                let to = moving.with_port(family, NODE_PORT);
                wait_until(&format!("{backend} answers at {to}"), PATIENCE, || {
                    (lab.tcp_request("outside", to).ok()?.backend == backend).then_some(())
                })
                .with_context(|| format!("after {change:?}"))?;
                expect(lab, "outside", to, backend)?;
            }
        }
        // All the while the address that stayed is served.
        for (protocol, to) in frontends(lab, &service) {
            lab.request("outside", protocol, to)?;
        }
        Ok(())
    })
}

/// By a nodePort of its own node or of the other, a pod gets any endpoint under either policy; under Local it is seen as
/// itself, there as well, since its address is a pod's (behaviour.md 5.6, 5.11).
#[test]
fn rule_5_11_pods_use_node_ports_of_any_node() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let backends = ["near", "far"];
        let services = [expose(lab, "on-a", 1, &["near"])?, expose(lab, "on-b", 2, &["far"])?];
        let _agents = start_agents(lab)?;
        for policy in [Policy::Cluster, Policy::Local] {
            for service in &services {
                change(lab, &service.clone().external_policy(policy))?;
            }
            for (backend, number) in backends.iter().zip(0..) {
                for entry in ["node-a", "node-b"] {
                    if policy == Policy::Local && (*backend, entry) == ("near", "node-b") {
                        // The backend's answers to a client of its own node, which it sees as itself, never pass the node
                        // that would have to translate them: so with every proxy.
                        continue;
                    }
                    for family in Family::ALL {
                        for protocol in Protocol::ALL {
                            let to = lab.node(entry).addresses().with_port(family, NODE_PORT + number);
                            let answer = lab.request("client", protocol, to);
                            let answer = answer.with_context(|| format!("{policy:?}, {protocol} {to}"))?;
                            let seen = answer.peer.ip();
                            let rightly = match policy {
                                Policy::Cluster => lab.node(entry).holds(seen),
                                Policy::Local => seen == lab.pod("client").addresses().of(family),
                            };
                            ensure!(
                                answer.backend == *backend && rightly,
                                "{policy:?}, {protocol} {to}: {answer:?}"
                            );
                        }
                    }
                }
            }
        }
        Ok(())
    })
}
