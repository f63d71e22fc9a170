//! Tables that are full: it is said which and how large, what was programmed stays, and what found no room gets it when there is
//! some.

use std::{fs, net::SocketAddr};

use anyhow::{Result, ensure};
use proxy_common::datapath::Reason;
use proxy_tests::{
    lab::{
        Agent, AgentOptions, Builder, Connection, Family, FrontendKind, Lab, PATIENCE, Protocol, Service, flood,
        wait_until,
    },
    require_root,
};

use super::{PORT, outside, serve};

/// Flows that a table of 1024 entries has room for.
const ROOM: usize = 512;

fn cluster() -> Builder {
    Lab::builder().node("node-a", &["client", "web-1", "web-2", "web-3"])
}

fn start(lab: &Lab, sizes: &[&str]) -> Result<Agent> {
    let arguments = sizes.iter().flat_map(|size| ["--table-size", size]);
    let options = AgentOptions {
        arguments: arguments.map(str::to_owned).collect(),
        ..AgentOptions::default()
    };
    lab.start_agent_with("node-a", options)
}

/// Waits until the agent has told something, and gives the line.
fn told(lab: &Lab, what: &str) -> Result<String> {
    wait_until(&format!("the agent tells {what:?}"), PATIENCE, || {
        let log = fs::read_to_string(lab.agent_log("node-a")).ok()?;
        log.lines().find(|line| line.contains(what)).map(str::to_owned)
    })
}

fn frontends(service: &Service) -> Vec<(Protocol, SocketAddr)> {
    let both = |protocol| Family::ALL.map(|family| (protocol, service.frontend(family, PORT)));
    Protocol::ALL.into_iter().flat_map(both).collect()
}

fn is_served(lab: &Lab, service: &Service) -> Result<()> {
    for (protocol, to) in frontends(service) {
        lab.request("client", protocol, to)?;
    }
    Ok(())
}

/// A Service that finds no room waits, and comes into its own when another goes.
fn waits_for_room(lab: &Lab, sizes: &[&str], table: &str) -> Result<()> {
    let first = serve(lab, "first", 1, &["web-1"])?;
    let mut agent = start(lab, sizes)?;
    // Those that wait are not in the tables, as the plan says that they should be.
    let second = serve(lab, "second", 2, &["web-1", "web-2", "web-3"])?;
    let line = told(lab, &format!("table {table} is full: it has room for"))?;
    ensure!(line.contains("default/second"), "the Service is named: {line}");
    is_served(lab, &first)?;
    ensure!(agent.ended()?.is_none(), "the agent goes on");

    lab.delete(&first)?;
    told(lab, "no longer: Service default/second")?;
    is_served(lab, &second)
}

/// A frontend each for TCP and UDP, and the one for unknown ports: room for one Service, not for two.
#[test]
fn a_full_table_of_frontends_is_told_and_recovers() -> Result<()> {
    require_root!();
    cluster().run(|lab| waits_for_room(lab, &["services=4"], "services_v4"))
}

/// Two sets of endpoints of one, and then of three.
#[test]
fn a_full_table_of_endpoints_is_told_and_recovers() -> Result<()> {
    require_root!();
    cluster().run(|lab| waits_for_room(lab, &["slots=7"], "slots_v4"))
}

/// A name for each service port.
#[test]
fn a_full_table_of_names_is_told_and_recovers() -> Result<()> {
    require_root!();
    cluster().run(|lab| waits_for_room(lab, &["service_names=3"], "service_names"))
}

/// A flow table that holds nothing but established flows lets no more in, breaks none of them, and says so; a flow that ends
/// makes room.
#[test]
fn a_full_table_of_flows_is_told_and_recovers() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["web-1"])?;
        let to = service.frontend(Family::V4, PORT);
        let _agent = start(lab, &["flows=1024"])?;
        let mut open = Vec::new();
        lab.namespace("client").run(|| -> Result<()> {
            for _ in 0..ROOM {
                let mut connection = Connection::open(to)?;
                connection.ask()?;
                open.push(connection);
            }
            Ok(())
        })?;
        ensure!(lab.udp_request("client", to).is_err(), "there is room for no more");
        told(lab, "flows_v4")?;
        for connection in &mut open {
            connection.ask()?;
        }
        // Every other one ends: only so many are looked at for one that may be given up.
        let mut ends = [true, false].into_iter().cycle();
        open.retain(|_| ends.next() == Some(false));
        wait_until("they are closed", PATIENCE, || {
            let closing = lab
                .ask_agent("node-a", "flows", &["--state", "closing", "-o", "json"])
                .ok()?;
            let closing: serde_json::Value = serde_json::from_str(&closing).ok()?;
            (closing["flows"].as_array()?.len() >= ROOM / 2).then_some(())
        })?;
        lab.udp_request("client", to)?;
        lab.tcp_request("client", to)?;
        for connection in &mut open {
            connection.ask()?;
        }
        Ok(())
    })
}

/// A node has one port for each client that it masquerades towards an endpoint. More clients than ports: it is counted, other
/// protocols go on, and when the clients have gone there are ports again.
#[test]
fn masquerade_ports_run_out_and_come_back() -> Result<()> {
    require_root!();
    outside::cluster().run(|lab| {
        let service = outside::expose(lab, "web", 1, &["far"])?;
        lab.apply(&service)?;
        lab.apply_nodes()?;
        let timeouts = ["udp-opening=8s", "udp-established=8s"];
        let arguments = timeouts.into_iter().flat_map(|timeout| ["--flow-timeout", timeout]);
        // It is ports that run out: a masqueraded flow takes four entries.
        let arguments = arguments.chain(["--flow-table-size", "524288"]);
        let options = AgentOptions {
            arguments: arguments.map(str::to_owned).collect(),
            ..AgentOptions::default()
        };
        let _agents = lab.start_agents_with(&options)?;
        let to = |protocol| service.frontend_of(FrontendKind::NodePort, Family::V4, protocol, lab.node("node-a"));
        // Many of these clients have the same ports: those of the others are drawn from what is left, until nothing is.
        flood(lab.namespace("outside"), Protocol::Udp, to("udp"), u16::MAX)?;
        ensure!(
            lab.reason_count("node-a", Reason::PortsExhausted)? > 0,
            "there were ports for all"
        );
        lab.tcp_request("outside", to("tcp"))?;
        wait_until("there are ports again", PATIENCE * 3, || {
            lab.udp_request("outside", to("udp")).ok().map(drop)
        })
    })
}
