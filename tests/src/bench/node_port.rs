//! Packets a second through a NodePort to a pod on another node: by XDP, by the hooks alone, and by rules as kube-proxy makes
//! them.
//!
//! A client outside sends small UDP packets as fast as it can; what the pod's device receives is counted. The whole way is
//! worked off on one core: the client's system calls, two passes through a router, the node in between, the pod's node and
//! its veth. So the ratio says what the node in between adds to a way that is otherwise the same, and veths, which need the
//! kernel to make a packet buffer for each frame even under XDP, show less of it than a network card would.

use std::{
    fmt,
    net::{SocketAddr, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    Options, in_rounds, nftables,
    report::{Machine, median, write_json},
    traffic,
};
use crate::lab::{
    Agent, AgentOptions, Family, FrontendKind, Lab, PATIENCE, Policy, Protocol, Service, Xdp, address, under_xdp,
    wait_until,
};

/// The port on every node.
const NODE_PORT: u16 = 30_080;
/// The pod's port.
const POD_PORT: u16 = 8080;
/// Bytes in a packet, headers aside.
const PAYLOAD: usize = 18;
/// Packets between two looks at the clock.
const BURST: usize = 32;

/// What forwards packets on the node in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarder {
    /// Rules as kube-proxy's nftables mode makes them
    Nftables,
    /// This proxy at its hooks
    Hooks,
    /// This proxy by XDP
    Xdp(Xdp),
}

impl fmt::Display for Forwarder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nftables => f.write_str("nftables"),
            Self::Hooks => f.write_str("this proxy, tc"),
            Self::Xdp(mode) => write!(f, "this proxy, {mode} XDP"),
        }
    }
}

/// What everything is compared with comes first.
const FORWARDERS: [Forwarder; 4] = [
    Forwarder::Nftables,
    Forwarder::Hooks,
    Forwarder::Xdp(Xdp::Generic),
    Forwarder::Xdp(Xdp::Native),
];

/// A standing way. Fields are dropped in this order: nothing outlives the lab it is in.
struct Way {
    forwarder: Forwarder,
    target: SocketAddr,
    core: usize,
    /// Takes what arrives and doesn't look at it; a port without a socket would answer with ICMP errors.
    _sink: UdpSocket,
    _agent: Option<Agent>,
    lab: Lab,
}

/// Medians over all rounds, and the median of the ratios to the first way in the same round.
#[derive(Clone, Debug, Serialize)]
struct Row {
    forwarder: String,
    packets_per_second: f64,
    ratio: f64,
    /// The share of packets that arrived
    arrived: f64,
}

/// The file's content.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    rounds: u32,
    milliseconds: u64,
    rows: &'a [Row],
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Packets that arrived in a second
    rate: f64,
    /// The share of packets that arrived
    arrived: f64,
}

/// Runs all rounds, prints the table and writes `node_port.json`.
///
/// # Errors
/// A way can't be built, or nothing arrives by it.
pub(super) fn run(options: &Options, machine: &Machine, directory: &Path) -> Result<()> {
    let core = traffic::core()?;
    let ways = FORWARDERS
        .into_iter()
        .map(|forwarder| Way::build(forwarder, core))
        .collect::<Result<Vec<_>>>()?;
    let time = Duration::from_millis(options.milliseconds);
    let samples = in_rounds(&ways, options.rounds, |way| way.measure(time))?;
    let row = |(way, of_way): (&Way, &Vec<Sample>)| Row {
        forwarder: way.forwarder.to_string(),
        packets_per_second: median(of_way.iter().map(|sample| sample.rate)),
        ratio: median(of_way.iter().zip(&samples[0]).map(|(one, first)| one.rate / first.rate)),
        arrived: median(of_way.iter().map(|sample| sample.arrived)),
    };
    let rows: Vec<Row> = ways.iter().zip(&samples).map(row).collect();
    print(&rows);
    let report = Report {
        machine,
        rounds: options.rounds,
        milliseconds: options.milliseconds,
        rows: &rows,
    };
    write_json(directory, "node_port.json", &report)
}

impl Way {
    /// Builds the lab and waits until a packet arrives.
    fn build(forwarder: Forwarder, core: usize) -> Result<Self> {
        eprintln!("building: {forwarder}");
        // All ways have the wires that XDP needs, so that they differ in nothing else.
        let lab = under_xdp(Xdp::Native, || {
            let nodes = Lab::builder().node("node-a", &[]).node("node-b", &["server"]);
            nodes.outside().build()
        })?;
        let pod = lab.pod("server");
        let endpoint = SocketAddr::new(pod.addresses().v4.into(), POD_PORT);
        let sink = pod.namespace().run(|| UdpSocket::bind(endpoint))?;
        let service = Service::new("bench", "node-port", address::cluster(1))
            .port("udp", Protocol::Udp, 80, POD_PORT)
            .node_port("udp", NODE_PORT)
            .external_policy(Policy::Cluster)
            .pods(&[pod]);
        let target = service.frontend_of(FrontendKind::NodePort, Family::V4, "udp", lab.node("node-a"));
        let xdp = match forwarder {
            Forwarder::Nftables => None,
            Forwarder::Hooks => Some("off"),
            Forwarder::Xdp(mode) => Some(mode.name()),
        };
        let agent = if let Some(xdp) = xdp {
            lab.apply_nodes()?;
            lab.apply(&service)?;
            let options = AgentOptions {
                arguments: vec![format!("--xdp={xdp}")],
                ..AgentOptions::default()
            };
            Some(lab.start_agent_with("node-a", options)?)
        } else {
            let rules = nftables::render_node_port(target, endpoint);
            lab.namespace("node-a").tool("nft", &["--file", "-"], &rules)?;
            None
        };
        let way = Self {
            forwarder,
            target,
            core,
            _sink: sink,
            _agent: agent,
            lab,
        };
        let (client, before) = (way.lab.namespace("outside"), way.arrived()?);
        wait_until(&format!("a packet arrives by {forwarder}"), PATIENCE, || {
            client.run(|| send(target, Duration::from_millis(1), core)).ok()?;
            (way.arrived().ok()? > before + 10).then_some(())
        })?;
        Ok(way)
    }

    /// Packets that the pod's device has received.
    fn arrived(&self) -> Result<u64> {
        let pod = self.lab.pod("server").namespace();
        let text = pod.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?;
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let packets = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(packets.context("no device eth0")?.parse()?)
    }

    fn measure(&self, time: Duration) -> Result<Sample> {
        let before = self.arrived()?;
        let client = self.lab.namespace("outside");
        let (sent, took) = client.run(|| send(self.target, time, self.core))?;
        let mut arrived = self.arrived()?;
        // What is still on its way: an idle core works it off at once.
        wait_until("no more packets arrive", PATIENCE, || {
            let last = std::mem::replace(&mut arrived, self.arrived().ok()?);
            (last == arrived).then_some(())
        })?;
        let arrived = arrived - before;
        ensure!(arrived > 0, "nothing arrives by {}", self.forwarder);
        #[expect(clippy::cast_precision_loss, reason = "packets within seconds")]
        let (arrived, sent) = (arrived as f64, sent as f64);
        Ok(Sample {
            rate: arrived / took.as_secs_f64(),
            arrived: arrived / sent,
        })
    }
}

/// Sends packets for some time; how many, and how long it took.
fn send(to: SocketAddr, time: Duration, core: usize) -> Result<(u64, Duration)> {
    traffic::pin(core)?;
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < time {
        for _ in 0..BURST {
            // A queue on the way may be full: that packet doesn't arrive, which is what is measured.
            sent += u64::from(socket.send(&[0; PAYLOAD]).is_ok());
        }
    }
    Ok((sent, start.elapsed()))
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(["by", "packets/s", "to nftables", "arrived"]);
    for row in rows {
        table.add_row([
            row.forwarder.clone(),
            format!("{:.0}", row.packets_per_second),
            format!("{:.2}", row.ratio),
            format!("{:.0} %", row.arrived * 100.0),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}
