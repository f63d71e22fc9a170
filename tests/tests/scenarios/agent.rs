//! The agent goes and comes back; the dataplane stays.

use anyhow::{Result, bail, ensure};
use proxy_tests::{
    lab::{Agent, Builder, Connection, Family, Lab, Load, Protocol, Service},
    require_root,
};

use super::{PORT, serve};

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

/// Ends the client's agent under load, several times; no request may notice, nor may an open connection.
fn nothing_is_lost(end: impl Fn(Agent) -> Result<()>) -> Result<()> {
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["near", "far"])?;
        let [v4, v6] = Family::ALL.map(|family| service.frontend(family, PORT));
        let mut agent = lab.start_agent("node-a")?;
        let _other = lab.start_agent("node-b")?;
        let mut open = lab.namespace("client").run(|| Connection::open(v6))?;
        let backend = open.ask()?.backend;
        let targets = [
            (Protocol::Tcp, v4),
            (Protocol::Udp, v4),
            (Protocol::Tcp, v6),
            (Protocol::Udp, v6),
        ];
        let load = Load::start(lab.namespace("client"), 2, &targets);
        for _ in 0..3 {
            load.wait_for(100)?;
            end(agent)?;
            load.wait_for(300)?;
            agent = lab.start_agent("node-a")?;
            // Only a running agent follows a change: the new one is at work when this returns.
            change_and_back(lab, &service)?;
            load.wait_for(100)?;
            ensure!(open.ask()?.backend == backend);
        }
        load.stop().expect_no_loss()?;
        lab.namespace("client").expect_no_loss()
    })
}

fn change_and_back(lab: &Lab, service: &Service) -> Result<()> {
    for state in [service.clone().without("near"), service.clone()] {
        lab.apply(&state)?;
        lab.wait_for_service_everywhere(&state)?;
    }
    Ok(())
}

#[test]
fn restart_under_load_loses_nothing() -> Result<()> {
    require_root!();
    nothing_is_lost(Agent::terminate)
}

#[test]
fn kill_under_load_loses_nothing() -> Result<()> {
    require_root!();
    nothing_is_lost(|agent| agent.kill().map(drop))
}

/// While no agent ran, a Service changed, another went, and a pod came: all of it counts once an agent runs again.
#[test]
fn an_agent_catches_up_with_what_it_missed() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let web = serve(lab, "web", 1, &["near"])?;
        let gone = serve(lab, "gone", 2, &["near"])?;
        let agent = lab.start_agent("node-a")?;
        lab.tcp_request("client", gone.frontend(Family::V4, PORT))?;
        agent.kill()?;

        lab.serve("far", super::POD_PORT)?;
        let web = web.pods(&[lab.pod("far")]);
        lab.apply(&web)?;
        lab.delete(&gone)?;
        lab.add_pod("node-a", "late")?;
        lab.plug("late")?;
        let _agent = lab.start_agent("node-a")?;
        for pod in ["client", "late"] {
            let answer = lab.tcp_request(pod, web.frontend(Family::V6, PORT))?;
            ensure!(answer.backend == "far", "{answer:?}");
        }
        lab.wait_for_service("node-a", &gone.without("near"))
    })
}

/// behaviour.md 8.11
#[test]
fn cleanup_leaves_nothing() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["near"])?;
        let frontend = service.frontend(Family::V4, PORT);
        let agent = lab.start_agent("node-a")?;
        agent.terminate()?;
        // The dataplane stands without its agent ...
        lab.tcp_request("client", frontend)?;
        // ... until it is taken down.
        lab.ask_agent("node-a", "cleanup", &[])?;
        ensure!(lab.tcp_request("client", frontend).is_err(), "served after the cleanup");
        let pins = lab.pin_directory("node-a");
        let left: Vec<_> = std::fs::read_dir(&pins)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(left.is_empty(), "left behind: {left:?}");
        let programs = lab.namespace("node-a").tool("bpftool", &["net", "show"], "")?;
        ensure!(
            !programs.contains("ingress") && !programs.contains("egress"),
            "{programs}"
        );
        // A node that was cleaned can be taken into service again.
        let _agent = lab.start_agent("node-a")?;
        lab.tcp_request("client", frontend)?;
        Ok(())
    })
}

#[test]
fn reading_commands_need_no_agent() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["near"])?;
        lab.start_agent("node-a")?.terminate()?;
        lab.tcp_request("client", service.frontend(Family::V4, PORT))?;
        for command in ["services", "flows", "status"] {
            let table = lab.ask_agent("node-a", command, &[])?;
            if table.trim().is_empty() {
                bail!("`proxy-agent {command}` printed nothing");
            }
            let json: serde_json::Value = serde_json::from_str(&lab.ask_agent("node-a", command, &["-o", "json"])?)?;
            ensure!(json.is_object(), "`proxy-agent {command} -o json` printed {json}");
        }
        ensure!(lab.flow_count("node-a")? > 0, "no flow is listed after a request");
        Ok(())
    })
}
