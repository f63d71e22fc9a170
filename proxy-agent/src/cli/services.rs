//! `services`: what the pinned tables serve.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    net::SocketAddr,
    thread,
    time::Instant,
};

use anyhow::Result;
use clap::Args;
use comfy_table::{ColumnConstraint, Table};
use serde::Serialize;

use super::{
    ask::AskArgs,
    listing::{ListingArgs, or_dash, table},
    rate::per_second,
};
use crate::{
    config::timeouts::duration,
    dataplane::inspect::{self, ServiceRow},
    inquiry::{About, EndpointDetail, ServiceDetail},
    model::ObjectName,
    plan::{Protocol, ServicePort},
};

/// List the Services in the pinned tables: every frontend, its endpoints, and the traffic of its service port
#[derive(Debug, Args)]
pub(super) struct ServicesArgs {
    #[command(flatten)]
    listing: ListingArgs,

    #[command(flatten)]
    agent: AskArgs,

    /// Only the Service of this name (`name` or `namespace/name`)
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,

    /// Traffic policy, masquerade, session affinity and sources, too; the flows that there are now; and all endpoints with
    /// their state, used or not, which the agent is asked for
    #[arg(long)]
    wide: bool,

    /// Look twice, so far apart, and tell the traffic of a second
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, default_missing_value = "1s")]
    rate: Option<std::time::Duration>,
}

#[derive(Serialize)]
struct Services {
    services: Vec<Row>,
    /// With --wide: why the endpoints' states aren't known, if they aren't
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown: Option<String>,
}

/// A frontend, and what was asked for besides.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    frontend: ServiceRow,
    /// With --wide: flows of the service port that there are now, as metrics count them
    #[serde(skip_serializing_if = "Option::is_none")]
    flows: Option<u64>,
    /// With --wide, where an agent answers: endpoints of the frontend's family, used or not
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoints: Option<Vec<EndpointDetail>>,
    /// With --rate
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<Rate>,
}

/// Traffic of a service port in a second.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Rate {
    connections: f64,
    packets: f64,
    bytes: f64,
}

impl ServicesArgs {
    pub(super) fn run(self) -> Result<()> {
        let tables = self.listing.tables()?;
        let look = || -> Result<_> {
            let began = Instant::now();
            let mut rows = inspect::services(&tables)?;
            if let Some(wanted) = &self.service {
                rows.retain(|row| is_named(wanted, &row.namespace, &row.service));
            }
            Ok((began, rows))
        };
        let before = self.rate.map(|apart| {
            let looked = look();
            thread::sleep(apart);
            looked
        });
        let before = before.transpose()?;
        let (now, rows) = look()?;
        let rates = before.map(|(then, before)| rates(&before, &rows, now.duration_since(then).as_secs_f64()));
        let flows = self.wide.then(|| inspect::service_flows(&tables)).transpose()?;
        let known = self.wide.then(|| self.agent.services(&self.about(&rows)));
        let (details, unknown) = match known {
            Some(Ok(details)) => (Some(by_name(details)), None),
            Some(Err(error)) => (None, Some(format!("{error:#}: the endpoints' states are not known"))),
            None => (None, None),
        };
        let row = |row: ServiceRow| Row {
            flows: flows.as_ref().map(|flows| {
                row.service_port()
                    .and_then(|port| flows.get(&port))
                    .copied()
                    .unwrap_or(0)
            }),
            endpoints: details.as_ref().map(|details| endpoints(&row, details)),
            rate: rates
                .as_ref()
                .and_then(|rates| rates.get(&row.service_port()?).copied()),
            frontend: row,
        };
        let services = Services {
            services: rows.into_iter().map(row).collect(),
            unknown,
        };
        self.listing.print(&services, |services| self.text(services))
    }

    /// What the agent is to be asked for.
    fn about(&self, rows: &[ServiceRow]) -> About {
        match rows.first() {
            // A name without a namespace may be that of several.
            Some(row) if self.service.as_ref().is_some_and(|wanted| wanted.contains('/')) => {
                About::Service(ObjectName {
                    namespace: row.namespace.clone(),
                    name: row.service.clone(),
                })
            }
            _ => About::All,
        }
    }

    fn text(&self, services: &Services) -> String {
        let table = text(services, self.wide, self.rate.is_some());
        services
            .unknown
            .as_ref()
            .map_or_else(|| table.to_string(), |unknown| format!("{table}\n\n{unknown}"))
    }
}

/// What each service port did in a second, by what was counted before and after so many.
fn rates(before: &[ServiceRow], after: &[ServiceRow], seconds: f64) -> HashMap<ServicePort, Rate> {
    let before: HashMap<ServicePort, &ServiceRow> = before
        .iter()
        .filter_map(|row| Some((row.service_port()?, row)))
        .collect();
    let rate = |row: &ServiceRow| {
        let port = row.service_port()?;
        let last = before.get(&port)?;
        let rate = Rate {
            connections: per_second(last.connections, row.connections, seconds),
            packets: per_second(last.packets, row.packets, seconds),
            bytes: per_second(last.bytes, row.bytes, seconds),
        };
        Some((port, rate))
    };
    after.iter().filter_map(rate).collect()
}

fn by_name(details: Vec<ServiceDetail>) -> BTreeMap<ObjectName, ServiceDetail> {
    details.into_iter().map(|detail| (detail.name(), detail)).collect()
}

/// All endpoints of a frontend's port and family; none of a Service that the agent doesn't know.
fn endpoints(row: &ServiceRow, details: &BTreeMap<ObjectName, ServiceDetail>) -> Vec<EndpointDetail> {
    let name = ObjectName {
        namespace: row.namespace.clone(),
        name: row.service.clone(),
    };
    let port = |protocol: Protocol| details.get(&name)?.port(&row.port_name, protocol);
    let Some(port) = row.protocol.and_then(port) else {
        return Vec::new();
    };
    // A nodePort has no address: it is of the family of the endpoints that it leads to.
    let mut used = row.cluster.iter().chain(&row.local);
    let is_ipv4 = row
        .address
        .map(|address| address.is_ipv4())
        .or_else(|| used.next().map(SocketAddr::is_ipv4));
    let of_family = port
        .endpoints
        .iter()
        .filter(|endpoint| is_ipv4.is_none_or(|is| is == endpoint.address.is_ipv4()));
    of_family.cloned().collect()
}

/// Whether a Service is the one that a flag names.
pub(super) fn is_named(wanted: &str, namespace: &str, service: &str) -> bool {
    match wanted.split_once('/') {
        Some(wanted) => wanted == (namespace, service),
        None => wanted == service,
    }
}

const COLUMNS: [&str; 18] = [
    "SERVICE",
    "KIND",
    "FRONTEND",
    "CLUSTER",
    "LOCAL",
    "ENDPOINTS",
    "POLICY",
    "MASQUERADED",
    "AFFINITY",
    "SOURCES",
    "FLOWS",
    "REFUSED",
    "CONNECTIONS",
    "PACKETS",
    "BYTES",
    "CONNECTIONS/S",
    "PACKETS/S",
    "BYTES/S",
];
/// The columns that only wide tables have.
const WIDE: std::ops::Range<usize> = 5..12;
/// The columns that are there with rates only.
const RATES: std::ops::Range<usize> = 15..18;

fn text(services: &Services, wide: bool, with_rates: bool) -> Table {
    let mut table = table(COLUMNS);
    for Row {
        frontend: row,
        flows,
        endpoints,
        rate,
    } in &services.services
    {
        let address = row.address.map_or_else(
            || format!("*:{}", row.port),
            |address| SocketAddr::new(address, row.port).to_string(),
        );
        let service = if row.service.is_empty() {
            "-".to_owned()
        } else {
            format!("{}/{}:{}", row.namespace, row.service, row.port_name)
        };
        let states: Option<Vec<String>> = endpoints.as_ref().map(|endpoints| {
            let state = |endpoint: &EndpointDetail| format!("{} {endpoint}", endpoint.address);
            endpoints.iter().map(state).collect()
        });
        let shown = |of: fn(&Rate) -> f64| or_dash(rate.as_ref().map(|rate| format!("{:.1}", of(rate))));
        table.add_row([
            service,
            row.kind.to_string(),
            format!("{address}/{}", or_dash(row.protocol)),
            list(&row.cluster),
            list(&row.local),
            states.map_or_else(|| "?".to_owned(), |states| list(&states)),
            row.policy.to_string(),
            row.masquerade.to_string(),
            row.affinity
                .map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s")),
            list(&row.sources),
            or_dash(*flows),
            row.refused.to_string(),
            row.connections.to_string(),
            row.packets.to_string(),
            row.bytes.to_string(),
            shown(|rate| rate.connections),
            shown(|rate| rate.packets),
            shown(|rate| rate.bytes),
        ]);
    }
    let hidden = WIDE.filter(|_| !wide).chain(RATES.filter(|_| !with_rates));
    for index in hidden {
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::Hidden);
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
    use std::net::IpAddr;

    use super::{Rate, ServiceRow, is_named, rates};
    use crate::plan::{Kind, Masquerade, Protocol, TrafficPolicy};

    #[test]
    fn a_service_is_named_with_or_without_namespace() {
        assert!(is_named("web", "default", "web"));
        assert!(is_named("default/web", "default", "web"));
        assert!(!is_named("other/web", "default", "web"));
        assert!(!is_named("we", "default", "web"));
    }

    fn row(address: Option<IpAddr>, connections: u64, packets: u64, bytes: u64) -> ServiceRow {
        ServiceRow {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port_name: "http".to_owned(),
            protocol: Some(Protocol::Tcp),
            kind: Kind::ClusterIP,
            address,
            port: 80,
            cluster: Vec::new(),
            local: Vec::new(),
            has_endpoints: false,
            policy: TrafficPolicy::Cluster,
            masquerade: Masquerade::Never,
            affinity: None,
            sources: Vec::new(),
            connections,
            packets,
            bytes,
            refused: 0,
        }
    }

    #[test]
    fn a_rate_is_what_was_counted_by_the_time_it_took() {
        let address = Some("10.96.0.1".parse().unwrap());
        let (before, after) = (row(address, 10, 100, 5000), row(None, 15, 150, 4000));
        let rates = rates(&[before], std::slice::from_ref(&after), 2.0);
        let expected = Rate {
            connections: 2.5,
            packets: 25.0,
            // It went back: the counters were begun anew.
            bytes: 0.0,
        };
        assert_eq!(rates.get(&after.service_port().unwrap()), Some(&expected));
    }
}
