//! A flood of first packets with false sources, ten times what the flow table has room for.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_common::datapath::Reason;
use proxy_tests::{
    lab::{Connection, Family, FrontendKind, Lab, Protocol, Service, flood, wait_until},
    require_root,
};

use super::outside::expose;

/// Room in the flow table of one family, in entries; a flow takes two, that of a masqueraded client four.
const ENTRIES: u32 = 8192;
/// Packets of a flood: ten times the flows that there is room for.
const PACKETS: u16 = 40_960;
/// Connections that are established before, each way.
const CONNECTIONS: usize = 10;
/// What connections that are open or were just closed may take, in entries of both families.
const STANDING: u64 = 400;
/// How long the collector may take for what a flood has left.
const RECOVERY: Duration = Duration::from_mins(1);

/// Entries in the flow tables of a node.
fn entries(lab: &Lab, node: &str) -> Result<u64> {
    let status = lab.listing(node, "status", &[])?;
    let tables = status["tables"].as_array().context("status lists no tables")?.iter();
    let flows = tables.filter(|table| table["name"].as_str().is_some_and(|name| name.starts_with("flows_")));
    Ok(flows.filter_map(|table| table["entries"].as_u64()).sum())
}

/// Where a flood comes in. Its sources are false in any case.
#[derive(Clone, Copy, Debug)]
enum Entry {
    /// A pod, to the cluster address: a flow takes two entries
    Pod,
    /// A host outside, to a nodePort and a load balancer's address at once: the clients are masqueraded, a flow takes four
    Outside,
}

impl Entry {
    const ALL: [Self; 2] = [Self::Pod, Self::Outside];

    /// Who sends, where to, and how much: ten times what there is room for, all in all.
    fn floods(self, lab: &Lab, service: &Service, family: Family, port: &str) -> Vec<(&'static str, SocketAddr, u16)> {
        let to = |kind| service.frontend_of(kind, family, port, lab.node("node-a"));
        match self {
            Self::Pod => vec![("mallory", to(FrontendKind::ClusterIp), PACKETS)],
            Self::Outside => [FrontendKind::NodePort, FrontendKind::LoadBalancer]
                .map(|kind| ("outside", to(kind), PACKETS / 4))
                .into(),
        }
    }
}

/// What goes on in the flood: connections of a pod, and from outside by a masquerade.
fn connect(lab: &Lab, service: &Service, family: Family) -> Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for (from, kind) in [
        ("client", FrontendKind::ClusterIp),
        ("outside", FrontendKind::NodePort),
        ("outside", FrontendKind::LoadBalancer),
    ] {
        let to = service.frontend_of(kind, family, "tcp", lab.node("node-a"));
        for _ in 0..CONNECTIONS {
            let mut connection = lab.namespace(from).run(|| Connection::open(to))?;
            connection.ask()?;
            connections.push(connection);
        }
    }
    Ok(connections)
}

/// Established connections go on all the while.
fn asked_in_flood(
    lab: &Lab,
    floods: &[(&str, SocketAddr, u16)],
    protocol: Protocol,
    connections: &mut [Connection],
) -> Result<usize> {
    thread::scope(|scope| {
        let flooding: Vec<_> = floods
            .iter()
            .map(|&(from, to, packets)| scope.spawn(move || flood(lab.namespace(from), protocol, to, packets)))
            .collect();
        let mut asked = 0;
        while flooding.iter().any(|flooding| !flooding.is_finished()) {
            for connection in &mut *connections {
                connection.ask().context("on an established connection, in the flood")?;
                asked += 1;
            }
        }
        flooding
            .into_iter()
            .try_for_each(|flooding| flooding.join().expect("no panic"))?;
        Ok(asked)
    })
}

/// Established connections go on all the while, new ones are made right after the flood, and what it leaves goes.
fn is_withstood(lab: &Lab) -> Result<()> {
    let service = expose(lab, "web", 1, &["server"])?;
    lab.apply(&service)?;
    let arguments = [
        &format!("--flow-table-size={ENTRIES}"),
        "--flow-timeout=tcp-opening=5s",
        "--flow-timeout=tcp-answered=5s",
        "--flow-timeout=udp-opening=5s",
    ];
    let _agent = lab.start_agent_with("node-a", lab.cluster_options(&arguments)?)?;
    let mut flooded = 0;
    for family in Family::ALL {
        let mut connections = connect(lab, &service, family)?;
        for (entry, protocol) in Entry::ALL
            .into_iter()
            .flat_map(|entry| [(entry, Protocol::Tcp), (entry, Protocol::Udp)])
        {
            let context = || format!("{family}, {protocol}, {entry:?}");
            let floods = entry.floods(lab, &service, family, &protocol.to_string().to_lowercase());
            let asked = asked_in_flood(lab, &floods, protocol, &mut connections).with_context(context)?;
            ensure!(asked > 0, "{}: nothing was asked in the flood", context());
            flooded += floods.iter().map(|(_, _, packets)| u64::from(*packets)).sum::<u64>();
            let new = [("client", FrontendKind::ClusterIp), ("outside", FrontendKind::NodePort)];
            for ((from, kind), port) in new.into_iter().flat_map(|new| [(new, "tcp"), (new, "udp")]) {
                let to = service.frontend_of(kind, family, port, lab.node("node-a"));
                let asked = if port == "tcp" {
                    lab.tcp_request(from, to)
                } else {
                    lab.udp_request(from, to)
                };
                asked
                    .with_context(context)
                    .with_context(|| format!("new ones of {from} right after the flood"))?;
            }
            for connection in &mut connections {
                connection.ask().with_context(context).context("after the flood")?;
            }
        }
    }
    let evicted = lab.reason_count("node-a", Reason::FlowEvicted)?;
    ensure!(evicted > flooded / 2, "{evicted} flows of {flooded} were given up");
    wait_until("the flow tables are as before", RECOVERY, || {
        entries(lab, "node-a")
            .is_ok_and(|entries| entries < STANDING)
            .then_some(())
    })
}

/// Ten times the table, of SYNs and of UDP packets, from a pod whose sources are all false, and from outside.
#[test]
pub(super) fn a_flood_breaks_no_connection() -> Result<()> {
    require_root!();
    Lab::builder()
        .node("node-a", &["client", "mallory", "server"])
        .outside()
        .run(|lab| is_withstood(lab))
}
