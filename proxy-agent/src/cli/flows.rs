//! `flows`: the connections under way.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::Result;
use clap::Args;
use comfy_table::Table;
use serde::Serialize;

use super::{
    Output,
    filter::FilterArgs,
    listing::{self, ListingArgs, or_dash, table},
};
use crate::{
    dataplane::{
        self,
        inspect::{self, FlowIdentity, FlowRow},
    },
    plan::Protocol,
};

/// List the flows in the pinned tables: which client talks to which frontend and is served by which backend
#[derive(Debug, Args)]
pub(super) struct FlowsArgs {
    #[command(flatten)]
    listing: ListingArgs,

    #[command(flatten)]
    filter: FilterArgs,

    /// Only flows in these states
    #[arg(long, value_name = "STATE", value_delimiter = ',', value_parser = STATES)]
    state: Vec<String>,

    /// Only flows of this protocol
    #[arg(long, value_name = "PROTOCOL", value_parser = ["tcp", "udp", "sctp"], ignore_case = true)]
    protocol: Option<String>,

    /// Go on after the list: a line for each flow that is there for the first time, gone, or in another state. The table is
    /// read every interval: see `monitor` for flows that are shorter than that
    #[arg(long)]
    follow: bool,

    /// Seconds between two looks with --follow
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, requires = "follow", value_parser = seconds)]
    interval: f64,
}

/// The states that flows have.
const STATES: [&str; 5] = ["opening", "answered", "established", "half-closed", "closing"];

/// A number of seconds that can be waited for.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text:?} is no number of seconds from 0.1 to 3600"))
}

#[derive(Serialize)]
struct Flows {
    flows: Vec<FlowRow>,
}

/// What became of a flow between two looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Change {
    /// `opened`, `changed` or `closed`
    change: &'static str,
    /// As it is now; of one that is gone, as it was
    #[serde(flatten)]
    flow: FlowRow,
}

impl FlowsArgs {
    pub(super) fn run(self) -> Result<()> {
        let read = || -> Result<Vec<FlowRow>> {
            // Opened each time: the agent may have made them anew.
            let mut flows = inspect::flows(&self.listing.tables()?, dataplane::now())?;
            flows.retain(|row| self.wants(row));
            Ok(flows)
        };
        let flows = read()?;
        if !self.follow {
            return self.listing.print(&Flows { flows }, text);
        }
        let mut known = BTreeMap::new();
        let mut flows = flows;
        loop {
            for change in changes(&mut known, flows) {
                if !listing::print_line(&self.line(&change)?)? {
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_secs_f64(self.interval));
            flows = read()?;
        }
    }

    fn line(&self, change: &Change) -> Result<String> {
        Ok(match self.listing.output() {
            Output::Table => line(change),
            Output::Json => serde_json::to_string(change)?,
            // A document each.
            Output::Yaml => format!("---\n{}", serde_yaml_ng::to_string(change)?.trim_end()),
        })
    }

    fn wants(&self, row: &FlowRow) -> bool {
        self.filter
            .wants(row.service.as_deref(), Some(row.client), Some(row.backend))
            && (self.state.is_empty() || self.state.iter().any(|state| state == row.state))
            && self.protocol.as_ref().is_none_or(|wanted| {
                row.protocol
                    .is_some_and(|protocol| protocol.to_string().eq_ignore_ascii_case(wanted))
            })
    }
}

/// What is different from the flows that were `known`, which are then those that there are.
fn changes(known: &mut BTreeMap<FlowIdentity, FlowRow>, flows: Vec<FlowRow>) -> Vec<Change> {
    let mut before = std::mem::take(known);
    let mut changes = Vec::new();
    for flow in flows {
        let change = match before.remove(&flow.identity()) {
            None => Some("opened"),
            Some(old) if (old.state, old.masquerade) != (flow.state, flow.masquerade) => Some("changed"),
            Some(_) => None,
        };
        changes.extend(change.map(|change| Change {
            change,
            flow: flow.clone(),
        }));
        known.insert(flow.identity(), flow);
    }
    let gone = before.into_values().map(|flow| Change { change: "closed", flow });
    changes.extend(gone);
    changes
}

/// A change for people.
fn line(Change { change, flow }: &Change) -> String {
    let masquerade = flow.masquerade.map(|address| format!(" as {address}"));
    format!(
        "{change:<7} {:<4} {}{} -> {} -> {} {} {}",
        or_dash::<Protocol>(flow.protocol),
        flow.client,
        masquerade.unwrap_or_default(),
        flow.frontend,
        backend(flow),
        flow.state,
        or_dash(flow.service.as_ref()),
    )
}

fn backend(flow: &FlowRow) -> String {
    if flow.conntrack {
        "by conntrack".to_owned()
    } else {
        flow.backend.to_string()
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
            backend(row),
            or_dash(row.masquerade),
            row.state.to_owned(),
            format!("{}s", row.idle_seconds),
            or_dash(row.service.as_ref()),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flows: FlowsArgs,
    }

    fn row(port: u16, state: &'static str) -> FlowRow {
        FlowRow {
            protocol: Some(Protocol::Tcp),
            client: ([10, 244, 0, 5], port).into(),
            frontend: ([10, 96, 0, 1], 80).into(),
            backend: ([10, 244, 1, 7], 8080).into(),
            masquerade: None,
            conntrack: false,
            state,
            idle_seconds: 3,
            service: Some("default/web:http".to_owned()),
        }
    }

    fn wants(arguments: &[&str]) -> bool {
        let command = Command::try_parse_from([&["flows"], arguments].concat()).expect("understood");
        command.flows.wants(&row(40_000, "established"))
    }

    #[test]
    fn every_filter_must_let_a_flow_through() {
        let all = [
            "--service",
            "default/web",
            "--client",
            "10.244.0.0/24",
            "--backend",
            "10.244.1.7:8080",
            "--state",
            "opening,established",
            "--protocol",
            "TCP",
        ];
        assert!(wants(&[]) && wants(&all));
        for other in [
            ["--service", "dns"],
            ["--client", "10.244.0.5:1"],
            ["--backend", "10.244.0.5"],
            ["--state", "closing"],
            ["--protocol", "udp"],
        ] {
            assert!(!wants(&other), "{other:?}");
        }
    }

    #[test]
    fn followers_are_told_what_changed() {
        let mut known = BTreeMap::new();
        let mut tell = |flows: &[FlowRow]| -> Vec<_> {
            let changes = changes(&mut known, flows.to_vec());
            changes
                .iter()
                .map(|change| (change.change, change.flow.client.port()))
                .collect()
        };
        let idle = FlowRow {
            idle_seconds: 9,
            ..row(1, "opening")
        };
        assert_eq!(
            tell(&[row(1, "opening"), row(2, "established")]),
            [("opened", 1), ("opened", 2)]
        );
        assert_eq!(tell(&[idle, row(2, "established")]), []);
        assert_eq!(tell(&[row(1, "established")]), [("changed", 1), ("closed", 2)]);
        assert_eq!(tell(&[]), [("closed", 1)]);
    }

    #[test]
    fn a_change_is_a_line_or_an_object() {
        let change = Change {
            change: "opened",
            flow: FlowRow {
                masquerade: Some(([192, 0, 2, 1], 5000).into()),
                ..row(40_000, "answered")
            },
        };
        assert_eq!(
            line(&change),
            "opened  TCP  10.244.0.5:40000 as 192.0.2.1:5000 -> 10.96.0.1:80 -> 10.244.1.7:8080 answered default/web:http"
        );
        let json = serde_json::to_value(&change).expect("plain");
        assert_eq!(
            (json["change"].as_str(), json["client"].as_str()),
            (Some("opened"), Some("10.244.0.5:40000"))
        );
    }
}
