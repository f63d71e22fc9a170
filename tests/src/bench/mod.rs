//! Benchmarks: what a Service costs, beside no Service and beside kube-proxy's rules. Never part of a test: times are of a
//! machine and a moment, so everything is compared within one run.

mod collector;
mod comparison;
mod control_plane;
mod iptables;
mod manifests;
mod nftables;
mod node_port;
mod paths;
mod programs;
mod report;
mod traffic;
mod workload;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;

use paths::Proxy;
use report::Machine;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Nanoseconds a packet in each program, by `BPF_PROG_TEST_RUN`
    Programs,
    /// Requests from pod to pod, beside kube-proxy's rules
    Traffic,
    /// CPU time of the collector of old flows
    Collector,
    /// Packets a second from outside to a pod on another node, by XDP, by tc and by kube-proxy's rules
    NodePort,
    /// The agent at the size of a large cluster: start, changes, memory
    ControlPlane,
}

/// What `proxy-lab bench` can be told.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What to measure [default: everything]
    #[arg(value_enum)]
    part: Option<Part>,
    /// The same as `control-plane`
    #[arg(long, conflicts_with = "part")]
    control_plane: bool,
    /// Programs, Collector: flows in the table; 2, or powers of ten
    #[arg(long, value_delimiter = ',', default_values_t = [2, 1_000, 1_000_000])]
    flows: Vec<u32>,
    /// Traffic: numbers of Services
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1_000, 10_000])]
    services: Vec<u32>,
    /// Traffic: what to compare with the direct way
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Proxy::Ours, Proxy::Nftables, Proxy::Iptables])]
    proxies: Vec<Proxy>,
    /// Traffic, NodePort: how often everything is measured
    #[arg(long, default_value_t = 9)]
    rounds: u32,
    /// Traffic, NodePort: how long each quantity is measured in a round
    #[arg(long, default_value_t = 300)]
    milliseconds: u64,
    /// Where the JSON files go [default: target/bench of the workspace]
    #[arg(long)]
    output: Option<PathBuf>,
}

/// Runs the benchmarks, prints tables and writes JSON.
///
/// # Errors
/// A way that traffic takes can't be built, or a request failed: there is no table of half the truth.
pub fn run(options: &Options) -> Result<()> {
    let machine = Machine::this()?;
    println!("{}", machine.describe());
    let directory = options.output.clone().unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .with_file_name("target")
            .join("bench")
    });
    let asked = if options.control_plane {
        Some(Part::ControlPlane)
    } else {
        options.part
    };
    let is_asked = |part| asked.is_none_or(|asked| asked == part);
    if is_asked(Part::Programs) {
        programs::run(&options.flows, &machine, &directory)?;
    }
    if is_asked(Part::Collector) {
        collector::run(&options.flows, &machine, &directory)?;
    }
    if is_asked(Part::Traffic) {
        comparison::run(options, &machine, &directory)?;
    }
    if is_asked(Part::NodePort) {
        node_port::run(options, &machine, &directory)?;
    }
    if is_asked(Part::ControlPlane) {
        control_plane::run(&machine, &directory)?;
    }
    Ok(())
}

/// Measures every way once a round; gives the samples of each. Round 0 only warms caches up, and each round starts with another
/// way, so that none always follows the same one.
///
/// # Errors
/// Those of `measure`.
fn in_rounds<W, S: Clone>(ways: &[W], rounds: u32, measure: impl Fn(&W) -> Result<S>) -> Result<Vec<Vec<S>>> {
    let mut samples: Vec<Vec<S>> = vec![Vec::new(); ways.len()];
    for round in 0..=rounds {
        eprintln!("round {round} of {rounds}");
        for index in (0..ways.len()).map(|index| (index + round as usize) % ways.len()) {
            let sample = measure(&ways[index])?;
            if round > 0 {
                samples[index].push(sample);
            }
        }
    }
    Ok(samples)
}
