//! `plan`: what this node serves, according to manifests. Touches nothing.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use serde::Serialize;

use super::{Output, input::InputArgs, listing};
use crate::plan::{Frontend, Kind, Protocol};

/// Print what this node serves according to manifests: every frontend and its endpoints
#[derive(Debug, Args)]
#[command(mut_arg("manifests", |argument| argument.required(true)))]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    input: InputArgs,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// The listing, as JSON and YAML show it.
#[derive(Debug, Serialize)]
struct Listing {
    frontends: Vec<Row>,
}

/// A frontend, as JSON and YAML show it. A list that it never uses is null.
#[derive(Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    namespace: String,
    service: String,
    port_name: String,
    protocol: Protocol,
    kind: Kind,
    address: Option<IpAddr>,
    port: u16,
    cluster: Option<Vec<SocketAddr>>,
    local: Option<Vec<SocketAddr>>,
    has_endpoints: bool,
    /// What only the table shows
    #[serde(skip)]
    more: More,
}

/// What else holds for a frontend, as the table shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct More {
    masquerade: String,
    affinity: String,
    sources: String,
}

impl From<Frontend> for Row {
    fn from(frontend: Frontend) -> Self {
        let more = More::of(&frontend);
        let service_port = frontend.service_port;
        Self {
            namespace: service_port.namespace,
            service: service_port.service,
            port_name: service_port.port_name,
            protocol: service_port.protocol,
            kind: frontend.kind,
            address: frontend.address,
            port: frontend.port,
            cluster: frontend.cluster,
            local: frontend.local,
            has_endpoints: frontend.has_endpoints,
            more,
        }
    }
}

impl More {
    fn of(frontend: &Frontend) -> Self {
        Self {
            masquerade: frontend.masquerade.to_string(),
            affinity: frontend
                .affinity
                .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
            sources: if frontend.sources.is_empty() {
                "all".to_owned()
            } else {
                lines(&frontend.sources)
            },
        }
    }
}

impl PlanArgs {
    pub(crate) fn run(self) -> Result<()> {
        let plan = self.input.plan()?.frontends;
        let mut frontends: Vec<Row> = plan.into_values().flatten().map(Row::from).collect();
        frontends.sort_unstable();
        self.output.print(&Listing { frontends }, text)
    }
}

fn text(listing: &Listing) -> Table {
    let mut table = listing::table([
        "SERVICE",
        "KIND",
        "FRONTEND",
        "SOURCES",
        "CLUSTER",
        "LOCAL",
        "MASQUERADED",
        "AFFINITY",
    ]);
    for row in &listing.frontends {
        let address = row.address.map_or_else(
            || format!("*:{}", row.port),
            |address| SocketAddr::new(address, row.port).to_string(),
        );
        table.add_row([
            format!("{}/{}:{}", row.namespace, row.service, row.port_name),
            row.kind.to_string(),
            format!("{address}/{}", row.protocol),
            row.more.sources.clone(),
            list(row.cluster.as_deref(), row.has_endpoints),
            list(row.local.as_deref(), row.has_endpoints),
            row.more.masquerade.clone(),
            row.more.affinity.clone(),
        ]);
    }
    table
}

/// A list's cell: what happens to packets when it is empty is said, too (behaviour.md 4.1, 4.2).
fn list(endpoints: Option<&[SocketAddr]>, has_endpoints: bool) -> String {
    match endpoints {
        None => "-".to_owned(),
        Some([]) if has_endpoints => "none: drop".to_owned(),
        Some([]) => "none: reject".to_owned(),
        Some(endpoints) => lines(endpoints),
    }
}

/// One item a line.
fn lines(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
