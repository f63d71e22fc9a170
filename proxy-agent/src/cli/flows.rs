//! `flows`: the connections under way.

use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use serde::Serialize;

use super::{
    listing::{ListingArgs, or_dash, table},
    services::is_named,
};
use crate::dataplane::{
    self,
    inspect::{self, FlowRow},
};

/// List the flows in the pinned tables: which client talks to which frontend and is served by which backend
#[derive(Debug, Args)]
pub(super) struct FlowsArgs {
    #[command(flatten)]
    listing: ListingArgs,

    /// Only flows of the Service of this name (`name` or `namespace/name`)
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// Only flows from this address
    #[arg(long, value_name = "ADDR")]
    client: Option<IpAddr>,

    /// Only flows served by this address
    #[arg(long, value_name = "ADDR")]
    backend: Option<IpAddr>,
}

#[derive(Serialize)]
struct Flows {
    flows: Vec<FlowRow>,
}

impl FlowsArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut flows = inspect::flows(&self.listing.tables()?, dataplane::now())?;
        flows.retain(|row| self.wants(row));
        self.listing.print(&Flows { flows }, text)
    }

    fn wants(&self, row: &FlowRow) -> bool {
        self.service.as_ref().is_none_or(|wanted| {
            let name = row.service.as_deref().and_then(|service| service.split_once(':'));
            name.and_then(|(service, _)| service.split_once('/'))
                .is_some_and(|(namespace, service)| is_named(wanted, namespace, service))
        }) && self.client.is_none_or(|client| row.client.ip() == client)
            && self.backend.is_none_or(|backend| row.backend.ip() == backend)
    }
}

fn text(flows: &Flows) -> Table {
    let mut table = table([
        "PROTOCOL",
        "CLIENT",
        "FRONTEND",
        "BACKEND",
        "MASQUERADE",
        "STATE",
        "IDLE",
        "SERVICE",
    ]);
    for row in &flows.flows {
        table.add_row([
            or_dash(row.protocol),
            row.client.to_string(),
            row.frontend.to_string(),
            if row.conntrack {
                "by conntrack".to_owned()
            } else {
                row.backend.to_string()
            },
            or_dash(row.masquerade),
            row.state.to_owned(),
            format!("{}s", row.idle_seconds),
            or_dash(row.service.as_ref()),
        ]);
    }
    table
}
