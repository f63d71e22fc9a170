//! `kind`: the proxy in a real cluster (<https://kind.sigs.k8s.io>), without kube-proxy: builds the image, makes the cluster, deploys
//! as docs/deploy.md says, and asks what a cluster's users ask.
//!
//! Everything is done by the command-line tools that one would type oneself, and each is printed first.

mod cluster;
mod report;
mod requests;
mod scenarios;
mod suite;
mod tools;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{cluster::Cluster, tools::Tools};
use crate::{image, process, workspace};

/// Exit status of a run that could not begin: that of skipped tests elsewhere (automake's convention).
const SKIPPED: u8 = 77;

/// How long one command may take that waits for the cluster.
const PATIENCE: Duration = Duration::from_mins(5);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Loads this archive of the image proxy-agent:dev, instead of building one
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    /// Leaves the cluster standing, for hand work: `kind delete cluster --name proxy` removes it
    #[arg(long)]
    keep: bool,
    /// Kubernetes' own end-to-end tests, for their `[sig-network] Services` suite [default: e2e.test, if it is on the PATH]
    #[arg(long, value_name = "FILE")]
    e2e: Option<PathBuf>,
    /// Only scenarios whose names contain this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

/// Runs the task. Status 0: all is well; 1: something isn't, and a report says where to look; 77: there is no kind, or nothing that
/// it could run on.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let tools = match Tools::find() {
        Ok(tools) => tools,
        Err(reason) => {
            println!("skipped: {reason}");
            return Ok(ExitCode::from(SKIPPED));
        }
    };
    let archive = match &options.archive {
        Some(archive) => archive.clone(),
        None => image::of_this_machine()?,
    };
    let start = Instant::now();
    let cluster = Cluster::create(tools, options.keep)?;
    let failures = match try_out(&cluster, &archive, options) {
        Ok(failures) => failures,
        Err(error) => {
            eprintln!("error: {error:#}");
            vec!["deployment".to_owned()]
        }
    };
    if failures.is_empty() {
        process::step(&format!("all is well, after {:.0?}", start.elapsed()));
        return Ok(ExitCode::SUCCESS);
    }
    let directory = workspace::target().join("kind/report");
    report::collect(&cluster, &directory);
    eprintln!("FAILED: {}", failures.join(", "));
    eprintln!("logs, tables and traces: {}", directory.display());
    Ok(ExitCode::FAILURE)
}

/// Deploys, runs the scenarios and the suite; returns the names of those that failed.
fn try_out(cluster: &Cluster, archive: &Path, options: &Options) -> Result<Vec<String>> {
    cluster.load(archive)?;
    cluster.deploy()?;
    cluster.start_workload()?;
    let mut failures = scenarios::run(cluster, options.only.as_deref());
    if let Some(suite) = options.e2e.clone().or_else(|| workspace::find_program("e2e.test")) {
        if let Err(error) = suite::run(cluster, &suite) {
            eprintln!("{error:#}");
            failures.push("[sig-network] Services".to_owned());
        }
    } else {
        println!(
            "skipped: [sig-network] Services: no e2e.test (it comes with each release of Kubernetes): name it with --e2e"
        );
    }
    Ok(failures)
}
