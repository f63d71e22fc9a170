//! A flood of first packets with false sources, ten times what the flow table has room for.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_common::datapath::Reason;
use proxy_tests::{
    lab::{AgentOptions, Connection, Family, Lab, Protocol, flood, wait_until},
    require_root,
};

use super::{PORT, serve};

/// Room in the flow table of one family, in entries; a flow takes two.
const ENTRIES: u32 = 8192;
/// Packets of a flood: ten times the flows that there is room for.
const PACKETS: u16 = 40_960;
/// Connections that are established before.
const CONNECTIONS: usize = 20;
/// How long the collector may take for what a flood has left.
const RECOVERY: Duration = Duration::from_mins(1);

/// Entries in the flow tables of a node.
fn entries(lab: &Lab, node: &str) -> Result<u64> {
    let status = lab.listing(node, "status", &[])?;
    let tables = status["tables"].as_array().context("status lists no tables")?.iter();
    let flows = tables.filter(|table| table["name"].as_str().is_some_and(|name| name.starts_with("flows_")));
    Ok(flows.filter_map(|table| table["entries"].as_u64()).sum())
}

/// Established connections go on all the while, new ones are made during the flood and after it, and what it leaves goes.
fn is_withstood(lab: &Lab) -> Result<()> {
    let service = serve(lab, "web", 1, &["server"])?;
    let arguments = [
        format!("--flow-table-size={ENTRIES}"),
        "--flow-timeout=tcp-opening=5s".to_owned(),
        "--flow-timeout=tcp-answered=5s".to_owned(),
        "--flow-timeout=udp-opening=5s".to_owned(),
    ];
    let options = AgentOptions {
        arguments: arguments.into(),
        ..AgentOptions::default()
    };
    let _agent = lab.start_agent_with("node-a", options)?;
    for family in Family::ALL {
        let to = service.frontend(family, PORT);
        let open = || -> Result<Vec<Connection>> {
            (0..CONNECTIONS)
                .map(|_| {
                    let mut connection = Connection::open(to)?;
                    connection.ask()?;
                    Ok(connection)
                })
                .collect()
        };
        let mut connections = lab.namespace("client").run(open)?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let context = || format!("{family}, {protocol}");
            let over = AtomicBool::new(false);
            let asked = thread::scope(|scope| -> Result<usize> {
                let flooding = scope.spawn(|| {
                    let sent = flood(lab.namespace("mallory"), protocol, to, PACKETS);
                    over.store(true, Ordering::Relaxed);
                    sent
                });
                let mut asked = 0;
                while !over.load(Ordering::Relaxed) {
                    for connection in &mut connections {
                        connection.ask().context("on an established connection, in the flood")?;
                        asked += 1;
                    }
                }
                flooding.join().expect("no panic")?;
                Ok(asked)
            })
            .with_context(context)?;
            ensure!(asked > 0, "{family}, {protocol}: nothing was asked in the flood");
            lab.tcp_request("client", to)
                .and_then(|_| lab.udp_request("client", to))
                .with_context(context)
                .context("new ones right after the flood")?;
            for connection in &mut connections {
                connection.ask().with_context(context).context("after the flood")?;
            }
        }
    }
    let evicted = lab.reason_count("node-a", Reason::FlowEvicted)?;
    ensure!(evicted > u64::from(PACKETS), "{evicted} flows were given up");
    wait_until("the flow tables are as before", RECOVERY, || {
        entries(lab, "node-a").is_ok_and(|entries| entries < 200).then_some(())
    })
}

/// Ten times the table, of SYNs and of UDP packets, from a pod whose sources are all false.
#[test]
pub(super) fn a_flood_breaks_no_connection() -> Result<()> {
    require_root!();
    Lab::builder()
        .node("node-a", &["client", "mallory", "server"])
        .run(|lab| is_withstood(lab))
}
