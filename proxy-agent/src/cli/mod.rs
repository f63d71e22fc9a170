//! The command line (kept stable: tools and tests depend on it). One subcommand a file.

mod ask;
mod cleanup;
mod doctor;
mod documentation;
mod filter;
mod flags;
mod flows;
pub mod input;
mod listing;
mod monitor;
mod mount_bpffs;
mod plan;
mod rate;
mod run;
mod services;
mod status;
mod top;
mod trace;
mod verify;
mod watching;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};

/// An eBPF service proxy for Kubernetes: replaces kube-proxy on a node, beside any CNI.
#[derive(Debug, Parser)]
#[command(name = "proxy-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// A table for people
    Table,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Plan(plan::PlanArgs),
    Trace(trace::TraceArgs),
    Services(services::ServicesArgs),
    Flows(flows::FlowsArgs),
    Monitor(monitor::MonitorArgs),
    Top(top::TopArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Cleanup(cleanup::CleanupArgs),
    MountBpffs(mount_bpffs::MountBpffsArgs),
    Completions(documentation::CompletionsArgs),
    Man(documentation::ManArgs),
}

impl Cli {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Whatever stops the subcommand, with the object and the reason named.
    pub fn run(self) -> Result<()> {
        match self.command {
            Command::Run(arguments) => arguments.run(),
            Command::Plan(arguments) => arguments.run(),
            Command::Trace(arguments) => arguments.run(),
            Command::Services(arguments) => arguments.run(),
            Command::Flows(arguments) => arguments.run(),
            Command::Monitor(arguments) => arguments.run(),
            Command::Top(arguments) => arguments.run(),
            Command::Status(arguments) => arguments.run(),
            Command::Doctor(arguments) => arguments.run(),
            Command::Cleanup(arguments) => arguments.run(),
            Command::MountBpffs(arguments) => arguments.run(),
            Command::Completions(arguments) => arguments.run(),
            Command::Man(arguments) => arguments.run(),
        }
    }
}
