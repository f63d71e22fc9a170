//! `status`: what is pinned and attached, and how full it is.

use anyhow::Result;
use clap::Args;

use super::listing::{ListingArgs, or_dash, table};
use crate::dataplane::inspect::{self, Status};

/// Show the agent, the devices and their programs, how full the tables are, and what happened to packets
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    listing: ListingArgs,
}

impl StatusArgs {
    pub(super) fn run(self) -> Result<()> {
        let tables = self.listing.tables()?;
        let status = inspect::status(self.listing.pin(), &tables)?;
        self.listing.print(&status, text)
    }
}

fn text(status: &Status) -> String {
    let agent = match (status.agent.running, status.agent.process) {
        (true, Some(process)) => format!("running, process {process}"),
        (true, None) => "running".to_owned(),
        (false, _) => "not running; what is pinned goes on forwarding".to_owned(),
    };
    let mut devices = table([
        "DEVICE",
        "INDEX",
        "ROLE",
        "WHY",
        "LINK HEADER",
        "INGRESS",
        "EGRESS",
        "XDP",
        "MASQUERADE",
    ]);
    for device in &status.devices {
        let masquerade: Vec<_> = [
            device.masquerade_v4.map(|address| address.to_string()),
            device.masquerade_v6.map(|address| address.to_string()),
        ]
        .into_iter()
        .flatten()
        .collect();
        devices.add_row([
            device.name.clone(),
            device.index.to_string(),
            or_dash(device.role),
            or_dash(device.why.as_deref()),
            device.link_header.to_owned(),
            or_dash(device.ingress),
            or_dash(device.egress),
            or_dash(device.xdp_why.as_deref()),
            masquerade.join("\n"),
        ]);
    }
    let mut fills = table(["TABLE", "ENTRIES", "ROOM FOR"]);
    for fill in &status.tables {
        fills.add_row([
            fill.name.to_owned(),
            fill.entries.to_string(),
            fill.max_entries.to_string(),
        ]);
    }
    let mut reasons = table(["PACKETS", "BYTES", "WHAT HAPPENED"]);
    for reason in &status.reasons {
        reasons.add_row([
            reason.packets.to_string(),
            reason.bytes.to_string(),
            reason.reason.clone(),
        ]);
    }
    format!(
        "Pin directory: {} (layout version {})\nAgent: {agent}\n\n{devices}\n\n{fills}\n\n{reasons}",
        status.pin_directory.display(),
        status.layout_version,
    )
}
