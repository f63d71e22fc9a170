//! The agent at the size of a large cluster: how long it takes to start and to write a change, and what that costs it and the API
//! server.

mod changes;
mod cluster;
mod process;

use std::{
    net::TcpListener,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use proxy_agent::dataplane::{kernel, pin::PinDirectory};
use serde::Serialize;

use self::{
    changes::Latency,
    cluster::Size,
    process::{Memory, Process},
};
use super::report::{Machine, write_json};
use crate::{
    api_server::{ApiServer, Resource},
    lab::{AgentOptions, Lab},
};

const NODE: &str = "node-a";
/// Between two changes on an idle machine, and how many.
const IDLE: (u32, Duration) = (300, Duration::from_millis(50));
/// The same at 100 changes a second.
const BUSY: (u32, Duration) = (3000, Duration::from_millis(10));
const SIZES: [Size; 2] = [
    Size {
        services: 10_000,
        endpoints: 10,
    },
    Size {
        services: 5000,
        endpoints: 50,
    },
];

/// What a start took.
#[derive(Clone, Copy, Debug, Serialize)]
struct Start {
    /// From the start of the process until everything is in the tables, seconds
    all: f64,
    /// The same from the moment when the API server has handed out the last page of Services and EndpointSlices, seconds
    since_listed: f64,
    /// Processor time until then, seconds
    processor: f64,
    memory: Memory,
    /// What the API server was asked and sent until then
    requests: usize,
    bytes: u64,
}

/// One size.
#[derive(Clone, Copy, Debug, Serialize)]
struct Row {
    services: u32,
    endpoints: u32,
    /// With empty tables
    start: Start,
    /// With those that the last agent left
    restart: Start,
    idle: Latency,
    busy: Latency,
    /// Part of a processor that the agent takes at 100 changes a second
    busy_share: f64,
    /// Memory after all changes
    memory: Memory,
    /// Requests and bytes of all changes
    requests: usize,
    bytes: u64,
}

/// The file's content.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    rows: &'a [Row],
}

/// Measures, prints tables and writes `control-plane.json`.
///
/// # Errors
/// The lab can't be built, or the tables don't become what the API server says.
pub(super) fn run(machine: &Machine, directory: &Path) -> Result<()> {
    let mut rows = Vec::new();
    for size in SIZES {
        rows.push(measure(size)?);
    }
    print(&rows);
    write_json(directory, "control-plane.json", &Report { machine, rows: &rows })
}

fn measure(size: Size) -> Result<Row> {
    let mut row = None;
    Lab::builder().node(NODE, &["client"]).run(|lab| {
        row = Some(measure_in(lab, size)?);
        Ok(())
    })?;
    row.context("the lab runs its scenario")
}

fn measure_in(lab: &Lab, size: Size) -> Result<Row> {
    let listener = lab.node(NODE).namespace().run(|| TcpListener::bind("127.0.0.1:0"))?;
    let server = ApiServer::on(listener)?;
    eprintln!("{} Services with {} endpoints each", size.services, size.endpoints);
    server.apply(cluster::node(NODE));
    for number in 0..size.services {
        server.apply(cluster::service(number));
        server.apply(cluster::slice(size, number, 0, NODE));
    }
    let options = AgentOptions {
        kubeconfig: Some(server.kubeconfig(&lab.directory())?),
        ..AgentOptions::default()
    };
    let start = |what: &str| -> Result<_> {
        eprintln!("  {what}");
        let (asked, sent) = (server.requests().len(), server.traffic().bytes);
        let process = Process::logging_to(lab.agent_log(NODE));
        let (began, began_at) = (SystemTime::now(), Instant::now());
        let agent = lab.spawn_agent(NODE, options.clone())?;
        let process = process(&agent);
        let ready = process.said("ready")?;
        let all = ready.duration_since(began)?;
        let listed = server
            .traffic()
            .listed
            .context("nothing was listed")?
            .duration_since(began_at);
        let start = Start {
            all: all.as_secs_f64(),
            since_listed: all.as_secs_f64() - listed.as_secs_f64(),
            processor: process.processor_time()?.as_secs_f64(),
            memory: process.memory()?,
            requests: server.requests().len() - asked,
            bytes: server.traffic().bytes - sent,
        };
        Ok((agent, process, start))
    };
    let (agent, process, first) = start("start")?;
    let tables = kernel::open(&PinDirectory::new(lab.pin_directory(NODE)))?;
    let count = |what: &str, found: usize, wanted: u32| {
        ensure!(found == wanted as usize, "{what}: {found} entries instead of {wanted}");
        Ok(())
    };
    // With the answer for unknown ports of each address (behaviour.md 4.6).
    count("services_v4", tables.v4.services.entries()?.len(), 2 * size.services)?;
    count("slots_v4", tables.v4.slots.entries()?.len(), size.all_endpoints())?;
    server.wait_for_watches(Resource::ALL.len());
    let (asked, sent) = (server.requests().len(), server.traffic().bytes);

    let mut editions = 0;
    eprintln!("  changes, one by one");
    let idle = changes::measure(&server, &tables, NODE, size, IDLE, &mut editions)?;
    eprintln!("  100 changes a second");
    let (before, since) = (process.processor_time()?, Instant::now());
    let busy = changes::measure(&server, &tables, NODE, size, BUSY, &mut editions)?;
    let busy_share = (process.processor_time()?.saturating_sub(before)).as_secs_f64() / since.elapsed().as_secs_f64();
    let memory = process.memory()?;
    let (requests, bytes) = (server.requests().len() - asked, server.traffic().bytes - sent);

    agent.terminate()?;
    let (agent, _, restart) = start("start again")?;
    agent.terminate()?;
    Ok(Row {
        services: size.services,
        endpoints: size.endpoints,
        start: first,
        restart,
        idle,
        busy,
        busy_share,
        memory,
        requests,
        bytes,
    })
}

fn print(rows: &[Row]) {
    let mut starts = table(&[
        "Services",
        "endpoints each",
        "start with",
        "lists arrived to programmed, s",
        "process start to programmed, s",
        "CPU, s",
        "resident, MB",
        "peak, MB",
        "tables, MB",
        "requests",
        "MB sent",
    ]);
    let mut changes = table(&[
        "Services",
        "endpoints each",
        "changes",
        "p50, ms",
        "p99, ms",
        "longest, ms",
        "CPU, %",
        "resident, MB",
        "requests",
        "MB sent",
    ]);
    let megabytes = |bytes: u64| format!("{:.1}", Duration::from_nanos(bytes).as_secs_f64() * 1e3);
    for row in rows {
        let size = [row.services.to_string(), row.endpoints.to_string()];
        for (what, start) in [("empty tables", row.start), ("full tables", row.restart)] {
            let cells = [
                what.to_owned(),
                format!("{:.2}", start.since_listed),
                format!("{:.2}", start.all),
                format!("{:.2}", start.processor),
                megabytes(start.memory.resident),
                megabytes(start.memory.peak),
                megabytes(start.memory.tables),
                start.requests.to_string(),
                megabytes(start.bytes),
            ];
            starts.add_row(size.iter().chain(&cells));
        }
        for (what, latency) in [("one by one", row.idle), ("100 a second", row.busy)] {
            let is_busy = what == "100 a second";
            let only_busy = |text: String| if is_busy { text } else { String::new() };
            let cells = [
                what.to_owned(),
                format!("{:.1}", latency.p50),
                format!("{:.1}", latency.p99),
                format!("{:.1}", latency.longest),
                only_busy(format!("{:.1}", row.busy_share * 100.0)),
                only_busy(megabytes(row.memory.resident)),
                only_busy(row.requests.to_string()),
                only_busy(megabytes(row.bytes)),
            ];
            changes.add_row(size.iter().chain(&cells));
        }
    }
    println!("{starts}\n\n{changes}");
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(header.iter().copied());
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
