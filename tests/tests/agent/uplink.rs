//! Uplinks are edges: agents come and go under traffic between nodes, and `status` tells what each device is.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{AgentOptions, Lab, Load, PATIENCE, Service, wait_until},
    require_root,
};
use serde_json::Value;

use crate::{
    cluster::{PORT, frontends, web},
    log::Log,
};

/// A client on one node, what it asks on the other.
fn lab(scenario: impl FnOnce(&mut Lab, &Service) -> Result<()>) -> Result<()> {
    Lab::builder()
        .node("node-a", &["client"])
        .node("node-b", &["web-1"])
        .run(|lab| {
            lab.serve("web-1", PORT)?;
            let web = web(lab, &["web-1"]);
            lab.apply(&web)?;
            scenario(lab, &web)
        })
}

/// What `status` says of a device; `None` if it is no edge.
fn device(lab: &Lab, node: &str, name: &str) -> Result<Option<Value>> {
    let status = lab.listing(node, "status", &[])?;
    let devices = status["devices"].as_array().context("status has devices")?;
    Ok(devices.iter().find(|device| device["name"] == name).cloned())
}

fn expect_fields(device: &Value, expected: &[(&str, Value)]) -> Result<()> {
    expected.iter().try_for_each(|(field, value)| {
        ensure!(device[field] == *value, "{field} is not {value}: {device:#}");
        Ok(())
    })
}

#[test]
fn status_tells_each_edge_and_why() -> Result<()> {
    require_root!();
    lab(|lab, _| {
        let log = Log::from_now(lab, "node-a");
        let _agents = lab.start_agents()?;
        let eth0 = device(lab, "node-a", "eth0")?.context("eth0 is an edge")?;
        let own = lab.node("node-a").addresses();
        expect_fields(
            &eth0,
            &[
                ("role", "uplink".into()),
                ("why", "has a default route".into()),
                ("link_header", "ethernet".into()),
                ("local_traffic", false.into()),
                ("ingress", "tcx".into()),
                ("egress", "tcx".into()),
                ("masquerade_v4", own.v4.to_string().into()),
                ("masquerade_v6", own.v6.to_string().into()),
            ],
        )?;
        let pod = device(lab, "node-a", "veth-client")?.context("the pod's device is an edge")?;
        expect_fields(
            &pod,
            &[
                ("role", "pod".into()),
                ("why", "its other end is in another namespace".into()),
            ],
        )?;
        ensure!(device(lab, "node-a", "lo")?.is_none(), "lo is no edge");
        log.wait_for(&["device lo: no edge, leads nowhere"])?;
        log.wait_for(&["device eth0: uplink, has a default route"])?;
        let text = lab.ask_agent("node-a", "status", &[])?;
        for word in ["WHY", "has a default route", "LINK HEADER"] {
            ensure!(text.contains(word), "{word} is missing in {text}");
        }
        Ok(())
    })
}

/// Programs of both nodes' uplinks are replaced, taken off and put on again.
#[test]
fn agents_that_come_and_go_cost_no_request_between_nodes() -> Result<()> {
    require_root!();
    lab(|lab, web| {
        let agents = lab.start_agents()?;
        let load = Load::start(lab.namespace("client"), 2, &frontends(web));
        load.wait_for(50)?;
        for agent in agents {
            let node = agent.node().to_owned();
            agent.kill()?;
            load.wait_for(50)?;
            let ignoring = AgentOptions {
                arguments: vec!["--ignore-devices".to_owned(), "eth*".to_owned()],
                ..AgentOptions::default()
            };
            let log = Log::from_now(lab, &node);
            let agent = lab.start_agent_with(&node, ignoring)?;
            log.wait_for(&["device eth0: no edge, named by --ignore-devices"])?;
            wait_until(&format!("{node} ignores eth0"), PATIENCE, || {
                device(lab, &node, "eth0").ok()?.is_none().then_some(())
            })?;
            load.wait_for(50)?;
            agent.terminate()?;
            let overlay = AgentOptions {
                arguments: vec!["--overlay-devices".to_owned(), "eth0".to_owned()],
                ..AgentOptions::default()
            };
            let agent = lab.start_agent_with(&node, overlay)?;
            let eth0 = wait_until(&format!("{node} serves eth0"), PATIENCE, || {
                device(lab, &node, "eth0")
                    .ok()?
                    .filter(|device| device["ingress"].is_string())
            })?;
            agent.kill()?;
            expect_fields(
                &eth0,
                &[
                    ("role", "overlay".into()),
                    ("why", "named by --overlay-devices".into()),
                    ("ingress", "tcx".into()),
                ],
            )?;
            load.wait_for(50)?;
        }
        load.stop().expect_no_loss()
    })
}

/// behaviour.md 5.8: in the modes that go by interface, devices carry what the datapath needs to know.
#[test]
fn rule_5_8_devices_of_local_traffic_are_marked() -> Result<()> {
    require_root!();
    lab(|lab, _| {
        let file = lab.directory().join("config");
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth-}\n";
        std::fs::write(&file, text)?;
        let options = AgentOptions {
            arguments: vec!["--config".to_owned(), file.display().to_string()],
            ..AgentOptions::default()
        };
        let _agent = lab.start_agent_with("node-a", options)?;
        for (name, local) in [("veth-client", true), ("eth0", false)] {
            let device = device(lab, "node-a", name)?.context("an edge")?;
            expect_fields(&device, &[("local_traffic", local.into())])?;
        }
        Ok(())
    })
}

/// As a pod on macvlan: the way to it leads through the network card.
#[test]
fn a_pod_without_a_device_of_its_own_is_told_of() -> Result<()> {
    require_root!();
    lab(|lab, _| {
        let _agent = lab.start_agent("node-b")?;
        let log = Log::from_now(lab, "node-b");
        let (pod, node) = (lab.pod("web-1"), lab.node("node-b").namespace());
        let address = pod.addresses().v6;
        let device = pod.host_device().context("a pod with a device")?;
        let route = format!("{address}/128 dev {device}");
        node.ip(&format!("route del {route}\n"))?;
        let telling = [&format!("pod {address}: "), "the uplink eth0", "macvlan"];
        log.wait_for(&[&["WARN"], &telling[..]].concat())?;
        node.ip(&format!("route add {route}\n"))?;
        log.wait_for(&[&["no longer"], &telling[..]].concat())?;
        ensure!(
            log.count(&["WARN", "the uplink"]) == 1,
            "the other family has its device"
        );
        Ok(())
    })
}
