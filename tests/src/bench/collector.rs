//! What the collector costs: CPU time of one round over idle flows, none of which goes.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use nix::time::{ClockId, clock_gettime};
use proxy_agent::dataplane::{
    self,
    collect::{BRIEF, Collector},
    table::FamilyTables,
};
use proxy_common::{
    datapath::flow,
    layout::{FlowKey, FlowValue, INGRESS, TICK_SHIFT, Timeouts, history},
    packet::TCP,
};
use serde::Serialize;

use super::report::{Machine, write_json};
use crate::test_run::Kernel;

/// Rounds of each kind, of which the median counts.
const ROUNDS: usize = 5;
/// The longest time between two rounds, in seconds: that of a quiet node.
const LONGEST_WAIT: f64 = 60.0;

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// Connections; each has two entries
    flows: u32,
    /// CPU time of a round that looks every flow up
    full_milliseconds: f64,
    /// CPU time of one that doesn't, as most are
    brief_milliseconds: f64,
    /// Part of one CPU, with a round a minute
    share: f64,
}

/// The file's content.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    rows: &'a [Row],
}

/// Measures, prints the table and writes `collector.json`.
///
/// # Errors
/// The tables can't be made, or a flow goes.
pub(super) fn run(flows: &[u32], machine: &Machine, directory: &Path) -> Result<()> {
    let rows = flows.iter().map(|&flows| measure(flows)).collect::<Result<Vec<_>>>()?;
    print(&rows);
    write_json(directory, "collector.json", &Report { machine, rows: &rows })
}

fn measure(flows: u32) -> Result<Row> {
    eprintln!("a round over {flows} flows");
    let mut kernel = Kernel::load((3 * flows).max(1 << 16))?;
    fill(&mut kernel.tables().v4, flows)?;
    let [mut full, mut brief] = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let mut collector = Collector::new(kernel.reopen()?, Timeouts::DEFAULT);
        full.push(round(&mut collector, flows)?);
        brief.push(round(&mut collector, flows)?);
    }
    let [full, brief] = [full, brief].map(|mut samples| {
        samples.sort_unstable_by(f64::total_cmp);
        samples[ROUNDS / 2]
    });
    let briefs = f64::from(BRIEF);
    Ok(Row {
        flows,
        full_milliseconds: full * 1e3,
        brief_milliseconds: brief * 1e3,
        share: (full + briefs * brief) / (1.0 + briefs) / LONGEST_WAIT,
    })
}

/// Seconds of CPU that a round takes.
fn round(collector: &mut Collector, flows: u32) -> Result<f64> {
    let before = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    let usage = collector.collect(dataplane::now())?;
    let after = Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    ensure!(
        usage.kept == 2 * u64::from(flows) && usage.removed == 0,
        "{} entries stay and {} go",
        usage.kept,
        usage.removed
    );
    Ok(after.saturating_sub(before).as_secs_f64())
}

/// Writes established connections that were used a minute ago.
fn fill(tables: &mut FamilyTables<[u8; 4]>, flows: u32) -> Result<()> {
    let now = u32::try_from(dataplane::now().as_nanos() >> TICK_SHIFT)?;
    for number in 0..flows {
        let [_, high, middle, low] = number.to_be_bytes();
        let key = FlowKey::new(INGRESS, TCP, ([10, high, middle, low], 40_000), ([10, 96, 0, 1], 80));
        let value = FlowValue {
            address: [10, 244, 0, 1],
            port: 8080,
            other_port: 40_000,
            service: 1,
            last_seen: now.saturating_sub(60),
            history: history::SEEN | history::CONFIRMED,
            ..FlowValue::default()
        };
        let twin = FlowValue {
            history: history::SEEN | history::CONFIRMED,
            ..flow::twin_value(&key, &value)
        };
        tables.flows.insert(&flow::twin_key(&key, &value), &twin)?;
        tables.flows.insert(&key, &value)?;
    }
    Ok(())
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table
        .load_style(presets::ASCII_MARKDOWN)
        .set_header(["flows", "ms of CPU a round", "a brief one", "% of a CPU"]);
    for row in rows {
        table.add_row([
            row.flows.to_string(),
            format!("{:.1}", row.full_milliseconds),
            format!("{:.1}", row.brief_milliseconds),
            format!("{:.2}", row.share * 100.0),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}
