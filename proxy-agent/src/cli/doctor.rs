//! `doctor`: what this node means for the proxy.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use super::listing::ListingArgs;
use crate::dataplane::doctor::{self, Finding, Severity};

/// Examine this node: kernel, mounts, rights of this process, settings, other programs and proxies; each finding with what it
/// means and what to do. Ends with status 1 if there is a problem. Needs no agent
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    listing: ListingArgs,

    /// Directory of the cgroup (version 2) that --cgroup of `run` names [default: the root, wherever it is mounted]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// Only warnings and problems
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Serialize)]
struct Report {
    findings: Vec<Finding>,
}

impl DoctorArgs {
    pub(super) fn run(self) -> Result<()> {
        // Without tables there is less to say, and nothing wrong.
        let tables = self.listing.tables().ok();
        let mut findings = doctor::examine(self.listing.pin(), self.cgroup.as_deref(), tables.as_ref())?;
        let problems = findings
            .iter()
            .filter(|finding| finding.severity == Severity::Problem)
            .count();
        if self.quiet {
            findings.retain(|finding| finding.severity != Severity::Ok);
        }
        self.listing.print(&Report { findings }, text)?;
        match problems {
            0 => Ok(()),
            1 => bail!("1 problem"),
            problems => bail!("{problems} problems"),
        }
    }
}

/// The worst last, where a terminal ends.
fn text(report: &Report) -> String {
    let mut findings: Vec<&Finding> = report.findings.iter().collect();
    findings.sort_by_key(|finding| finding.severity);
    let lines = findings.iter().map(|finding| {
        let mut lines = format!(
            "{:<8} {}: {}: {}",
            finding.severity.to_string(),
            finding.area,
            finding.subject,
            finding.found
        );
        if let (Some(consequence), Some(fix)) = (&finding.consequence, &finding.fix) {
            write!(lines, "\n         means: {consequence}\n         fix:   {fix}").expect("a string takes everything");
        }
        lines
    });
    let lines: Vec<String> = lines.collect();
    if lines.is_empty() {
        "nothing to object to".to_owned()
    } else {
        lines.join("\n")
    }
}
