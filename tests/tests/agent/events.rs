//! Events at the API server: what happened to the node and to Services.

use anyhow::{Result, ensure};
use proxy_tests::{
    api_server::ApiServer,
    lab::{AgentOptions, Protocol, Service, address},
    require_root,
};
use serde_json::Value;

use crate::cluster::{Cluster, NODE, PORT, cluster, expect_answers, web};

/// Waits for an event with this reason.
fn wait_for(server: &ApiServer, reason: &str) -> Value {
    server.wait_for_event(&format!("event {reason}"), |event| event["reason"] == reason)
}

fn count(server: &ApiServer, reason: &str) -> usize {
    let events = server.events();
    events.iter().filter(|event| event["reason"] == reason).count()
}

/// Starts the agent with these arguments.
fn options(cluster: &Cluster<'_>, arguments: &[&str]) -> AgentOptions {
    AgentOptions {
        arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        ..cluster.options()
    }
}

/// behaviour.md 8.14: on the Node, as kube-proxy does; an API server that takes no events disturbs nothing.
#[test]
fn rule_8_14_the_start_is_an_event_and_refusals_disturb_nothing() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let service = web(lab, &["web-1"]);
        cluster.apply(&service)?;
        let agent = cluster.start_agent()?;
        let started = wait_for(&cluster.server, "Starting");
        ensure!(started["type"] == "Normal", "{started}");
        ensure!(started["regarding"]["kind"] == "Node", "{started}");
        ensure!(started["regarding"]["name"] == NODE, "{started}");
        ensure!(started["metadata"]["namespace"] == "default", "{started}");
        ensure!(started["reportingInstance"] == NODE, "{started}");
        agent.terminate()?;

        // The server is there, and refuses.
        let log = cluster.log();
        cluster.server.refuse_events(true);
        let _agent = cluster.start_agent()?;
        log.wait_for(&["WARN", "the API server refuses event Starting: 403", "rbac.yaml"])?;
        cluster.wait_for_plan()?;
        ensure!(count(&cluster.server, "Starting") == 1, "an event that was refused");
        expect_answers(lab, &service, &["web-1"])
    })
}

/// Issue 4: a full table is an event that names table and limit, on the Service that can't be written; what was programmed
/// stays, and the Service is served when there is room.
#[test]
fn a_service_without_room_is_an_event() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let first = web(lab, &["web-1"]);
        cluster.apply(&first)?;
        // Three frontends in each family: two of the first Service, and a wildcard.
        let _agent = lab.start_agent_with(NODE, options(cluster, &["--table-size=services=4"]))?;
        cluster.wait_for_plan()?;
        let api = Service::new("shop", "api", address::cluster(81))
            .port("a", Protocol::Tcp, 80, PORT)
            .port("b", Protocol::Tcp, 81, PORT)
            .pods(&[lab.pod("web-2")]);
        let log = cluster.log();
        cluster.apply(&api)?;
        let event = wait_for(&cluster.server, "FailedToProgramService");
        ensure!(event["type"] == "Warning", "{event}");
        ensure!(event["regarding"]["kind"] == "Service", "{event}");
        ensure!(event["regarding"]["name"] == "api", "{event}");
        ensure!(event["metadata"]["namespace"] == "shop", "{event}");
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(note.contains("table services_v"), "{event}");
        ensure!(note.contains("is full: it has room for 4 entries"), "{event}");
        // The table itself is an event on the node.
        let full = wait_for(&cluster.server, "TableFull");
        ensure!(full["regarding"]["kind"] == "Node", "{full}");
        let note = full["note"].as_str().unwrap_or_default();
        ensure!(note.contains("has 4 entries and room for 4"), "{full}");
        expect_answers(lab, &first, &["web-1"])?;

        // Told once, although it is tried again with each tick.
        cluster.delete(&first)?;
        log.wait_for(&["no longer: Service shop/api"])?;
        cluster.wait_for_plan()?;
        let told = cluster.server.events();
        let notes: Vec<_> = told.iter().map(|event| event["note"].to_string()).collect();
        let mut distinct = notes.clone();
        distinct.sort_unstable();
        distinct.dedup();
        ensure!(distinct.len() == notes.len(), "an event twice: {notes:#?}");
        Ok(())
    })
}
