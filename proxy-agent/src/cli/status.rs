//! `status`: what is pinned and attached, and how full it is; and whether it is what was planned.

use std::{fmt::Write as _, path::PathBuf};

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use serde::Serialize;

use super::{
    ask::AskArgs,
    input::InputArgs,
    listing::{ListingArgs, or_dash, table},
    verify::{self, Verification},
};
use crate::{
    dataplane::{
        cgroup::{Mode, SocketHook},
        inspect::{self, Status},
        kube_proxy::ADVICE,
    },
    inquiry::AgentDetail,
};

/// Show the agent, the devices and their programs, how full the tables are, and what happened to packets
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    listing: ListingArgs,

    #[command(flatten)]
    agent: AskArgs,

    /// Compare the tables with what is planned from the manifests or the API server, told as to `run`; ends with status 1 if
    /// they differ
    #[arg(long)]
    verify: bool,

    #[command(flatten)]
    input: InputArgs,

    /// With --verify: kubeconfig of the cluster, where there is no --manifests [default: KUBECONFIG, ~/.kube/config,
    /// in-cluster]
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    status: Status,
    /// What the agent says of itself; `null` if none runs, or answers
    health: Option<AgentDetail>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verification: Option<Verification>,
}

impl StatusArgs {
    pub(super) fn run(self) -> Result<()> {
        ensure!(
            self.verify || (self.input.manifests.is_none() && self.kubeconfig.is_none()),
            "what is planned is only looked at with --verify"
        );
        let tables = self.listing.tables()?;
        let status = inspect::status(self.listing.pin(), &tables)?;
        let verification = self
            .verify
            .then(|| verify::verify(&tables, &self.input, self.kubeconfig.as_deref()))
            .transpose()?;
        let health = if status.agent.running {
            self.agent.agent()
        } else {
            Err(anyhow!("no agent runs"))
        };
        let unknown = health.as_ref().err().map(|error| format!("{error:#}"));
        let report = Report {
            status,
            health: health.ok(),
            verification,
        };
        self.listing.print(&report, |report| {
            let verification = report.verification.as_ref().map_or_else(String::new, verify::text);
            text(
                &report.status,
                report.health.as_ref().ok_or(unknown.as_deref().unwrap_or_default()),
            ) + &verification
        })?;
        report.verification.map_or(Ok(()), Verification::into_result)
    }
}

/// What the agent says of itself, a line for all, and one for each problem; or why it doesn't.
fn health(health: Result<&AgentDetail, &str>) -> String {
    let health = match health {
        Ok(health) => health,
        Err(reason) => return format!("Health: not known, {reason}\n"),
    };
    let proxy = match (health.synced, health.healthy) {
        (false, _) => "waiting for Services and EndpointSlices to be listed",
        (true, true) => "healthy",
        (true, false) => "unhealthy, changes have been waiting for more than a minute",
    };
    let node = if health.node_eligible {
        "load balancers may use it"
    } else {
        "load balancers are told not to use it"
    };
    let last = health.last_sync.as_deref().unwrap_or("never");
    let made_good = match health.made_good {
        0 => String::new(),
        entries => format!("; {entries} entries that something else had changed were made good"),
    };
    let mut text = format!(
        "Health: {proxy}; node {}, {node}\nLast sync: {last}, {} Services{made_good}\n",
        health.node, health.services
    );
    for problem in &health.problems {
        writeln!(text, "Problem: {problem}").expect("a string takes everything");
    }
    text
}

fn text(status: &Status, told: Result<&AgentDetail, &str>) -> String {
    let agent = match (status.agent.running, status.agent.process) {
        (true, Some(process)) => format!("running, process {process}"),
        (true, None) => "running".to_owned(),
        (false, _) => "not running; what is pinned goes on forwarding".to_owned(),
    };
    let sockets = &status.sockets;
    let hooks = |hooks: &[SocketHook]| hooks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let at = sockets.cgroup.as_deref().unwrap_or_default();
    let whose = match sockets.mode {
        Mode::All => "the host and pods",
        Mode::Host | Mode::Off => "the host",
    };
    let attached = match (sockets.attached.is_empty(), sockets.missing.is_empty()) {
        (true, _) => "not served".to_owned(),
        (false, true) => format!("served at {at}, of {whose}"),
        (false, false) => format!("served at {at}, of {whose}, without {}", hooks(&sockets.missing)),
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
    let mut fills = table(["TABLE", "ENTRIES", "ROOM FOR", "FULL"]);
    for fill in &status.tables {
        fills.add_row([
            fill.name.to_owned(),
            fill.entries.to_string(),
            fill.max_entries.to_string(),
            format!("{}%", fill.percent()),
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
    let previous = status.previous.map_or_else(String::new, |previous| {
        let who = if previous.decides {
            "decide on all packets until these know all Services"
        } else {
            "are left to their programs"
        };
        format!(
            "Previous: {} flow entries in the tables before; these {who}\n",
            previous.flows
        )
    });
    let (health, kube_proxy) = (health(told), kube_proxy(status));
    format!(
        "Pin directory: {} (layout version {})\nAgent: {agent}\n{health}{previous}Sockets of processes: {attached}\n{kube_proxy}\n{devices}\n\n\
         {fills}\n\n{reasons}",
        status.pin_directory.display(),
        status.layout_version,
    )
}

/// What is left of kube-proxy, a line each; nothing in the usual case.
fn kube_proxy(status: &Status) -> String {
    let mut lines = String::new();
    if !status.kube_proxy.is_empty() {
        let leftovers: Vec<String> = status.kube_proxy.iter().map(ToString::to_string).collect();
        lines = format!("kube-proxy: {} here; {ADVICE}\n", leftovers.join(", "));
    }
    if status.left_to_conntrack > 0 {
        let connections = status.left_to_conntrack;
        writeln!(lines, "Connections of kube-proxy's, left to conntrack: {connections}")
            .expect("a string takes everything");
    }
    lines
}
