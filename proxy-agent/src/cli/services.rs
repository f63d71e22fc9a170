//! `services`: what the pinned tables serve.

use std::{fmt::Display, net::SocketAddr};

use anyhow::Result;
use clap::Args;
use comfy_table::{ColumnConstraint, Table};
use serde::Serialize;

use super::listing::{ListingArgs, or_dash, table};
use crate::dataplane::inspect::{self, ServiceRow};

/// List the Services in the pinned tables: every frontend, its endpoints, and the traffic of its service port
#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    #[command(flatten)]
    listing: ListingArgs,

    /// Only the Service of this name (`name` or `namespace/name`)
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// In tables: traffic policy, masquerade, session affinity and sources, too
    #[arg(long)]
    wide: bool,
}

#[derive(Serialize)]
struct Services {
    services: Vec<ServiceRow>,
}

impl ServicesArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut services = inspect::services(&self.listing.tables()?)?;
        if let Some(wanted) = &self.service {
            services.retain(|row| is_named(wanted, &row.namespace, &row.service));
        }
        self.listing
            .print(&Services { services }, |services| text(services, self.wide))
    }
}

/// Whether a Service is the one that a flag names.
pub(super) fn is_named(wanted: &str, namespace: &str, service: &str) -> bool {
    match wanted.split_once('/') {
        Some(wanted) => wanted == (namespace, service),
        None => wanted == service,
    }
}

const COLUMNS: [&str; 12] = [
    "SERVICE",
    "KIND",
    "FRONTEND",
    "CLUSTER",
    "LOCAL",
    "POLICY",
    "MASQUERADED",
    "AFFINITY",
    "SOURCES",
    "CONNECTIONS",
    "PACKETS",
    "BYTES",
];
/// The columns that only wide tables have.
const WIDE: std::ops::Range<usize> = 5..9;

fn text(services: &Services, wide: bool) -> Table {
    let mut table = table(COLUMNS);
    for row in &services.services {
        let address = row.address.map_or_else(
            || format!("*:{}", row.port),
            |address| SocketAddr::new(address, row.port).to_string(),
        );
        let service = if row.service.is_empty() {
            "-".to_owned()
        } else {
            format!("{}/{}:{}", row.namespace, row.service, row.port_name)
        };
        table.add_row([
            service,
            row.kind.to_string(),
            format!("{address}/{}", or_dash(row.protocol)),
            list(&row.cluster),
            list(&row.local),
            row.policy.to_string(),
            row.masquerade.to_string(),
            row.affinity
                .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
            list(&row.sources),
            row.connections.to_string(),
            row.packets.to_string(),
            row.bytes.to_string(),
        ]);
    }
    if !wide {
        for index in WIDE {
            if let Some(column) = table.column_mut(index) {
                column.set_constraint(ColumnConstraint::Hidden);
            }
        }
    }
    table
}

fn list<T: Display>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items.iter().map(T::to_string).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::is_named;

    #[test]
    fn a_service_is_named_with_or_without_namespace() {
        assert!(is_named("web", "default", "web"));
        assert!(is_named("default/web", "default", "web"));
        assert!(!is_named("other/web", "default", "web"));
        assert!(!is_named("we", "default", "web"));
    }
}
