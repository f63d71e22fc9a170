//! The project's tasks, run as `cargo xtask TASK`: one file a task.

mod build;
mod image;
mod kind;
mod lab;
mod process;
mod rules;
mod setup;
mod test;
mod workspace;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sets up, builds, tries and tests the service proxy.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Finds the eBPF toolchain and the lab's tools, and installs what is missing where it may
    Setup,
    /// Builds the kernel programs and the agent
    Build(build::Options),
    /// Builds the agent's container image as an archive that kind and podman load: no container engine needed
    Image(image::Options),
    /// Tries the proxy in a cluster of kind's: ClusterIPs, nodePorts, load balancers, policies, affinity, a restart under load, and
    /// Kubernetes' own suite where it is at hand. Status 77 where there is no kind or no container engine
    Kind(kind::Options),
    /// Shows the proxy at work in a lab of network namespaces: no cluster needed (root)
    #[command(disable_help_flag = true)]
    Demo(Passed),
    /// Keeps a lab standing for hand work: up, down, status (root)
    #[command(disable_help_flag = true)]
    Lab(Passed),
    /// Runs every test and ends with the line `N passed, N failed, N skipped` (root, or what needs it is skipped)
    Test,
    /// Writes docs/rules.md: which tests cite which rule of the proxy's behaviour
    Rules(rules::Options),
    /// Measures the proxy beside direct traffic, nftables and iptables (root)
    #[command(disable_help_flag = true)]
    Bench(Passed),
    /// Lets traffic meet whatever happens to a cluster, for an hour, and loses nothing (root)
    #[command(disable_help_flag = true)]
    Soak(Passed),
}

/// Arguments for the lab's own command line (`--help` shows it).
#[derive(Debug, clap::Args)]
struct Passed {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

fn main() -> ExitCode {
    run(Cli::parse().task).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::run(),
        Task::Build(options) => build::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Kind(options) => kind::run(&options),
        Task::Demo(passed) => lab::run("demo", &passed.arguments, build::Profile::Dev),
        Task::Lab(passed) => lab::run("lab", &passed.arguments, build::Profile::Dev),
        Task::Test => Ok(test::run()),
        Task::Rules(options) => rules::run(&options),
        Task::Bench(passed) => lab::run("bench", &passed.arguments, build::Profile::Release),
        Task::Soak(passed) => lab::run("soak", &passed.arguments, build::Profile::Dev),
    }
}
