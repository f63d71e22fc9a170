//! Whose packets count as a pod's (`detectLocalMode`), and what follows: who is masqueraded, and who gets endpoints of other
//! nodes under policy Local.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        AgentOptions, BridgeNetfilter, Cni, Family, FrontendKind, Interconnect, Lab, Policy, Protocol, Shape,
        address::{self, OUTSIDE},
    },
    require_root,
};
use serde_json::{Value, json};

use super::{
    PORT,
    outside::{cluster, expose, frontends},
    silence::dropped,
};

/// A way to tell pods from others.
struct Mode {
    configuration: Value,
    /// Whether clients of a ClusterIP are masqueraded: a pod of this node, a pod of the other one, the client outside
    masqueraded: [bool; 3],
    /// Whether pods of this node are told from others at all
    detects: bool,
}

/// The mode that goes by the devices that a shape has: a pod of the other node is none there.
fn by_interface(cni: Cni) -> Mode {
    let configuration = match cni {
        Cni::PointToPoint => json!({
            "detectLocalMode": "InterfaceNamePrefix", "detectLocal": { "interfaceNamePrefix": "veth-" }
        }),
        Cni::Bridge(_) => json!({ "detectLocalMode": "BridgeInterface", "detectLocal": { "bridgeInterface": "cni0" } }),
    };
    Mode {
        configuration,
        masqueraded: [false, true, true],
        detects: true,
    }
}

/// Those that go by addresses, the same in every shape.
fn by_address() -> [Mode; 4] {
    let pods = format!("{},{}", address::POD_NETWORK_V4, address::POD_NETWORK_V6);
    let mode = |configuration, masqueraded, detects| Mode {
        configuration,
        masqueraded,
        detects,
    };
    [
        mode(json!({ "clusterCIDR": pods }), [false, false, true], true),
        mode(json!({ "detectLocalMode": "NodeCIDR" }), [false, true, true], true),
        // No detector
        mode(json!({}), [false, false, false], false),
        // behaviour.md 5.7
        mode(
            json!({ "clusterCIDR": pods, "nftables": { "masqueradeAll": true }, "mode": "nftables" }),
            [true, true, true],
            true,
        ),
    ]
}

/// Requests to node-a, which alone runs an agent: the other node's pods and the client outside reach it as its clients do
/// that have no proxy of their own.
fn expect(lab: &Lab, mode: &Mode) -> Result<()> {
    lab.apply_nodes()?;
    let configuration = lab.write_configuration("mode", &mode.configuration)?;
    let _agent = lab.start_agent_with("node-a", AgentOptions::configured(&configuration))?;
    let own = expose(lab, "web", 1, &["near"])?;
    let other = expose(lab, "other", 2, &["far"])?.external_policy(Policy::Local);
    let clients = [
        ("client", lab.pod("client").addresses()),
        ("far", lab.pod("far").addresses()),
        ("outside", OUTSIDE),
    ];
    // behaviour.md 5.3
    for ((from, addresses), masqueraded) in clients.into_iter().zip(mode.masqueraded) {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let answer = lab.request(from, protocol, own.frontend(family, PORT));
                let answer = answer.with_context(|| format!("{protocol} {family} from {from}"))?;
                let seen = answer.peer.ip();
                let rightly = if masqueraded {
                    lab.node("node-a").holds(seen)
                } else {
                    seen == addresses.of(family)
                };
                ensure!(
                    answer.backend == "near" && rightly,
                    "{protocol} {family} from {from}: {answer:?}"
                );
            }
        }
    }
    // behaviour.md 5.6 i: a pod of this node gets the endpoints of all nodes, and is seen as itself; without a detector it
    // is a client like those outside.
    let targets = frontends(lab, &other);
    if mode.detects {
        let client = lab.pod("client").addresses().both();
        for (protocol, to) in targets {
            let answer = lab.request("client", protocol, to);
            let answer = answer.with_context(|| format!("{protocol} {to} from a pod"))?;
            ensure!(
                answer.backend == "far" && client.contains(&answer.peer.ip()),
                "{protocol} {to}: {answer:?}"
            );
        }
    } else {
        let served = own.frontend_of(FrontendKind::ClusterIp, Family::V4, "udp", lab.node("node-a"));
        dropped(lab, "client", &targets, served)?;
    }
    Ok(())
}

fn pods_are_detected(shape: Shape, modes: impl IntoIterator<Item = Mode>) -> Result<()> {
    cluster().shape(shape).run(|lab| {
        lab.apply(&expose(lab, "web", 1, &["near"])?)?;
        lab.apply(&expose(lab, "other", 2, &["far"])?.external_policy(Policy::Local))?;
        lab.announce(address::cluster(1), &["node-a"])?;
        for mode in modes {
            expect(lab, &mode).with_context(|| mode.configuration.to_string())?;
        }
        Ok(())
    })
}

#[test]
fn rule_5_8_pods_are_detected_by_address() -> Result<()> {
    require_root!();
    pods_are_detected(Shape::default(), by_address())
}

#[test]
fn rule_5_8_pods_are_detected_by_interface() -> Result<()> {
    require_root!();
    for cni in [Cni::PointToPoint, Cni::Bridge(BridgeNetfilter::On)] {
        let interconnect = Interconnect::Native;
        pods_are_detected(Shape { cni, interconnect }, [by_interface(cni)])?;
    }
    Ok(())
}
