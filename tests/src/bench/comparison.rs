//! Traffic from pod to pod: directly, through this proxy, and through rules as kube-proxy makes them.

use std::{path::Path, time::Duration};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    Options, in_rounds,
    paths::{Proxy, Way},
    report::{Machine, median, write_json},
    traffic::{self, Sample},
};

/// Medians over all rounds of one way, and the medians of its ratios to the direct way in the same round.
#[derive(Clone, Debug, Serialize)]
struct Row {
    proxy: String,
    services: u32,
    /// Microseconds
    connect_p50: f64,
    connect_p50_ratio: f64,
    /// Microseconds
    connect_p99: f64,
    connect_p99_ratio: f64,
    /// Microseconds
    exchange_p50: f64,
    exchange_p50_ratio: f64,
    /// Microseconds
    exchange_p99: f64,
    exchange_p99_ratio: f64,
    connections_per_second: f64,
    connections_ratio: f64,
    /// Gigabits a second
    throughput: f64,
    throughput_ratio: f64,
}

/// The file's content.
#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    rounds: u32,
    milliseconds: u64,
    rows: &'a [Row],
}

/// Runs all rounds, prints the table and writes `traffic.json`.
///
/// # Errors
/// A way can't be built, or a request failed.
pub(super) fn run(options: &Options, machine: &Machine, directory: &Path) -> Result<()> {
    let core = traffic::core()?;
    let mut ways = vec![build(Proxy::None, 0, core)?];
    for &services in &options.services {
        for &proxy in &options.proxies {
            ways.push(build(proxy, services, core)?);
        }
    }
    let time = Duration::from_millis(options.milliseconds);
    let samples = in_rounds(&ways, options.rounds, |way| way.measure(time))?;
    let direct = samples[0].clone();
    let rows: Vec<Row> = ways
        .iter()
        .zip(&samples)
        .map(|(way, samples)| summarise(way, samples, &direct))
        .collect();
    print(&rows);
    let report = Report {
        machine,
        rounds: options.rounds,
        milliseconds: options.milliseconds,
        rows: &rows,
    };
    write_json(directory, "traffic.json", &report)
}

fn build(proxy: Proxy, services: u32, core: usize) -> Result<Way> {
    eprintln!("building: {proxy}, {services} Services");
    Way::build(proxy, services, core)
}

fn summarise(way: &Way, samples: &[Sample], direct: &[Sample]) -> Row {
    let value = |of: fn(&Sample) -> f64| median(samples.iter().map(of));
    let ratio = |of: fn(&Sample) -> f64| median(samples.iter().zip(direct).map(|(way, direct)| of(way) / of(direct)));
    let connect_p50 = |sample: &Sample| sample.connect.p50.as_secs_f64() * 1e6;
    let connect_p99 = |sample: &Sample| sample.connect.p99.as_secs_f64() * 1e6;
    let exchange_p50 = |sample: &Sample| sample.exchange.p50.as_secs_f64() * 1e6;
    let exchange_p99 = |sample: &Sample| sample.exchange.p99.as_secs_f64() * 1e6;
    let connections = |sample: &Sample| sample.connections;
    let throughput = |sample: &Sample| sample.throughput / 1e9;
    Row {
        proxy: way.proxy.to_string(),
        services: way.services,
        connect_p50: value(connect_p50),
        connect_p50_ratio: ratio(connect_p50),
        connect_p99: value(connect_p99),
        connect_p99_ratio: ratio(connect_p99),
        exchange_p50: value(exchange_p50),
        exchange_p50_ratio: ratio(exchange_p50),
        exchange_p99: value(exchange_p99),
        exchange_p99_ratio: ratio(exchange_p99),
        connections_per_second: value(connections),
        connections_ratio: ratio(connections),
        throughput: value(throughput),
        throughput_ratio: ratio(throughput),
    }
}

fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header([
        "path",
        "Services",
        "connect+request+response p50, us",
        "p99, us",
        "request/response p50, us",
        "p99, us",
        "connections/s",
        "bulk, Gbit/s",
    ]);
    let with_ratio = |value: f64, ratio: f64| format!("{value:.1} ({ratio:.2})");
    for row in rows {
        table.add_row([
            row.proxy.clone(),
            if row.services == 0 {
                "-".to_owned()
            } else {
                row.services.to_string()
            },
            with_ratio(row.connect_p50, row.connect_p50_ratio),
            with_ratio(row.connect_p99, row.connect_p99_ratio),
            with_ratio(row.exchange_p50, row.exchange_p50_ratio),
            with_ratio(row.exchange_p99, row.exchange_p99_ratio),
            format!("{:.0} ({:.2})", row.connections_per_second, row.connections_ratio),
            with_ratio(row.throughput, row.throughput_ratio),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
}
