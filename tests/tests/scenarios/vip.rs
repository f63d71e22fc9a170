//! Virtual addresses: those of load balancers that proxy or not, those that nobody announces, and clients that are their own
//! backend.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Family, IpMode, Lab, Policy, Protocol, Service,
        address::{self, OUTSIDE},
    },
    require_root,
};

use super::{
    POD_PORT, PORT,
    change::change,
    outside::{NODE_PORT, cluster, expose, start_agents},
    serve,
};

/// The backend that answers at an address, over each protocol.
pub(super) fn expect(lab: &Lab, from: &str, to: SocketAddr, backend: &str) -> Result<()> {
    for protocol in Protocol::ALL {
        let answer = lab.request(from, protocol, to);
        let answer = answer.with_context(|| format!("{protocol} from {from} to {to}"))?;
        ensure!(answer.backend == backend, "{protocol} from {from} to {to}: {answer:?}");
    }
    Ok(())
}

/// At the address of a load balancer that proxies, somebody else answers: that load balancer.
#[test]
fn rule_3_2_a_proxying_load_balancer_is_not_captured() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        lab.serve("outside", PORT)?;
        let plain = serve(lab, "web", 1, &["near"])?;
        let of_mode = |mode| plain.clone().balancer(OUTSIDE, mode);
        let _agents = start_agents(lab)?;
        for (service, backend) in [
            (of_mode(Some(IpMode::Proxy)), "outside"),
            (of_mode(Some(IpMode::Vip)), "near"),
            (of_mode(Some(IpMode::Proxy)), "outside"),
            (of_mode(None), "near"),
            (plain.clone(), "outside"),
        ] {
            change(lab, &service)?;
            for family in Family::ALL {
                expect(lab, "client", OUTSIDE.with_port(family, PORT), backend)?;
            }
        }
        Ok(())
    })
}

/// behaviour.md 3.3: a load balancer's addresses need no nodePorts. 3.5: pods of any node reach all addresses of a Service,
/// though nothing is bound to them and nobody announces them.
#[test]
fn rule_3_3_and_3_5_addresses_that_nobody_announces_serve_pods() -> Result<()> {
    require_root!();
    for policy in [Policy::Cluster, Policy::Local] {
        cluster().run(|lab| {
            let service = serve(lab, "web", 1, &["near"])?
                .external(address::external(1))
                .balancer(address::balancer(1), None)
                .external_policy(policy);
            lab.apply(&service)?;
            let _agents = start_agents(lab)?;
            for from in ["client", "near", "far"] {
                for addresses in [address::cluster(1), address::external(1), address::balancer(1)] {
                    for family in Family::ALL {
                        expect(lab, from, addresses.with_port(family, PORT), "near")?;
                    }
                }
            }
            lab.announce(address::balancer(1), &["node-a"])?;
            for family in Family::ALL {
                expect(lab, "outside", address::balancer(1).with_port(family, PORT), "near")?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// An external IP that is a node's address goes before a nodePort of the same number.
#[test]
fn rule_3_4_an_external_ip_goes_before_a_node_port() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let by_node_port = expose(lab, "other", 1, &["near"])?;
        lab.apply(&by_node_port)?;
        lab.serve("far", POD_PORT)?;
        let node = lab.node("node-a").addresses();
        let number = NODE_PORT + 1;
        let by_address = Service::new("default", "web", address::cluster(2))
            .port("tcp", Protocol::Tcp, number, POD_PORT)
            .port("udp", Protocol::Udp, number, POD_PORT)
            .external(node)
            .pods(&[lab.pod("far")]);
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            let to = node.with_port(family, number);
            for from in ["outside", "client"] {
                expect(lab, from, to, "near")?;
            }
            change(lab, &by_address)?;
            for from in ["outside", "client"] {
                expect(lab, from, to, "far")?;
            }
            lab.delete(&by_address)?;
            lab.settle_everywhere()?;
            expect(lab, "outside", to, "near")?;
        }
        Ok(())
    })
}

/// A pod that falls on itself is masqueraded, by whichever address and policy it came, also through a nodePort of the other
/// node; the node in between is what it sees.
#[test]
fn rule_5_2_a_pod_reaches_itself_by_every_frontend() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["client"])?;
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for policy in [Policy::Cluster, Policy::Local] {
            change(lab, &service.clone().external_policy(policy))?;
            for entry in ["node-a", "node-b"] {
                let mut targets = vec![lab.node(entry).addresses().with_port(Family::V4, NODE_PORT + 1)];
                targets.push(lab.node(entry).addresses().with_port(Family::V6, NODE_PORT + 1));
                if entry == "node-a" {
                    let vips = [address::cluster(1), address::external(1), address::balancer(1)];
                    targets.extend(
                        vips.iter()
                            .flat_map(|vip| Family::ALL.map(|family| vip.with_port(family, PORT))),
                    );
                }
                for to in targets {
                    for protocol in Protocol::ALL {
                        let answer = lab.request("client", protocol, to);
                        let answer = answer.with_context(|| format!("{policy:?}, {protocol} {to}"))?;
                        ensure!(
                            answer.backend == "client" && lab.node(entry).holds(answer.peer.ip()),
                            "{policy:?}, {protocol} {to}: {answer:?}"
                        );
                    }
                }
            }
        }
        Ok(())
    })
}
