//! `cargo xtask demo`, `cargo xtask lab`, `cargo xtask bench` and `cargo xtask soak`.

mod demo;
mod lab;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use proxy_tests::{bench, lab::obstacle, soak};

/// Clusters of network namespaces on one machine, with the real agent on each node
#[derive(Debug, Parser)]
#[command(name = "proxy-lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the proxy at work: requests through Services, one of them scaled down and up meanwhile
    Demo(demo::Demo),
    /// Keep a lab standing for hand work
    #[command(subcommand)]
    Lab(lab::Lab),
    /// Measure the proxy beside direct traffic and beside rules as kube-proxy makes them
    Bench(bench::Options),
    /// Let traffic meet whatever happens to a cluster, for a long time, and lose nothing
    Soak(soak::Options),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Some(obstacle) = obstacle() {
        bail!("{obstacle}");
    }
    match cli.command {
        Command::Demo(demo) => demo.run(),
        Command::Lab(lab) => lab.run(),
        Command::Bench(options) => bench::run(&options),
        Command::Soak(options) => soak::run(&options),
    }
}
