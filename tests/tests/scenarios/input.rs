//! Bad input is named and never stops the rest.

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{AgentOptions, Family, Lab, PATIENCE, wait_until},
    require_root,
};

use super::{PORT, serve};

/// File name, content, and what the agent's message must name: the object or file, and the field or value.
const BAD: [(&str, &str, [&str; 2]); 4] = [
    (
        "unreadable.yaml",
        "kind: Service\n  apiVersion: : v1\n\t- {",
        ["unreadable.yaml", "line"],
    ),
    (
        "unknown-field.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {namespace: default, name: typo}\nspec: {clusterIp: 10.96.0.9, ports: \
         [{port: 80}]}\n",
        ["typo", "clusterIp"],
    ),
    (
        "invalid-address.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {namespace: default, name: no-address}\nspec: {clusterIP: 10.96.0.999, \
         clusterIPs: [10.96.0.999], ports: [{port: 80}]}\n",
        ["no-address", "10.96.0.999"],
    ),
    (
        "bad-slice.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {namespace: default, name: web-bad, labels: \
         {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: tcp, protocol: TCP, port: 8080}]\nendpoints: \
         [{addresses: [nonsense]}]\n",
        ["web-bad", "nonsense"],
    ),
];

#[test]
fn bad_files_are_named_and_the_rest_is_served() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near", "next"]).run(|lab| {
        let service = serve(lab, "web", 1, &["near"])?;
        // Some are there when the agent starts, the others come later.
        for (name, text, _) in &BAD[..2] {
            lab.write_manifest(name, text)?;
        }
        let _agent = lab.start_agent("node-a")?;
        for (name, text, _) in &BAD[2..] {
            lab.write_manifest(name, text)?;
        }
        for (name, _, words) in BAD {
            wait_until(&format!("the agent's log names {words:?} of {name}"), PATIENCE, || {
                let log = std::fs::read_to_string(lab.agent_log("node-a")).ok()?;
                log.lines()
                    .any(|line| words.iter().all(|word| line.contains(word)))
                    .then_some(())
            })?;
        }
        // Still there, and still following changes.
        lab.tcp_request("client", service.frontend(Family::V4, PORT))?;
        let service = serve(lab, "web", 1, &["next"])?;
        lab.wait_for_service("node-a", &service)?;
        ensure!(lab.tcp_request("client", service.frontend(Family::V6, PORT))?.backend == "next");
        Ok(())
    })
}

/// Which of the two wins is not specified (behaviour.md 3.4); that one of them is served, and that both are named, is.
#[test]
fn two_services_with_one_address_are_named_and_one_is_served() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near", "next"]).run(|lab| {
        serve(lab, "first", 1, &["near"])?;
        let _agent = lab.start_agent("node-a")?;
        let other = serve(lab, "second", 1, &["next"])?;
        wait_until("the agent's log names both", PATIENCE, || {
            let log = std::fs::read_to_string(lab.agent_log("node-a")).ok()?;
            log.lines()
                .any(|line| line.contains("default/first") && line.contains("default/second"))
                .then_some(())
        })?;
        let answer = lab.tcp_request("client", other.frontend(Family::V4, PORT))?;
        ensure!(["near", "next"].contains(&answer.backend.as_str()), "{answer:?}");
        Ok(())
    })
}

#[test]
fn a_pin_directory_outside_a_bpf_file_system_is_explained() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &[]).run(|lab| {
        let elsewhere = lab.directory().join("log/pins");
        let options = AgentOptions {
            pin_directory: Some(elsewhere.clone()),
            ..AgentOptions::default()
        };
        let mut agent = lab.spawn_agent("node-a", options)?;
        let status = wait_until("the agent gives up", PATIENCE, || agent.ended().transpose())??;
        ensure!(!status.success());
        let log = std::fs::read_to_string(lab.agent_log("node-a"))?;
        ensure!(
            log.contains(&elsewhere.display().to_string()) && log.contains("BPF file system"),
            "{log}"
        );
        Ok(())
    })
}
