//! What has no room.

use proxy_common::datapath::Reason;

use super::{Advice, Case};
use crate::dataplane::inspect::TableFill;

/// A flow that can't be opened.
pub(super) fn flow(case: &Case<'_>) -> Advice {
    let table = if case.destination.is_ipv4() {
        "flows_v4"
    } else {
        "flows_v6"
    };
    match case.reason {
        Reason::NoMasqueradeAddress => Advice::new(
            format!("the device that leads to the endpoint has no {} address for the client to be hidden behind", case.family()),
            ["`proxy-agent status` lists the devices with theirs; give that one an address, or another device the route".to_owned()],
        ),
        Reason::PortsExhausted => Advice::new(
            "every source port that was tried towards the endpoint is another flow's",
            ["more endpoints, or another address on the device that leads to them, make for more ports".to_owned()],
        ),
        _ => Advice::new(
            format!("table {table} is full{}", filled(case, &[table])),
            [
                format!("`proxy-agent run --flow-table-size ENTRIES` makes a larger one: {table} is carried over at the next start"),
                "`proxy-agent flows` shows who has the flows; shorter --flow-timeout values end idle ones earlier".to_owned(),
            ],
        ),
    }
}

/// Which of the tables that a Service needs is full, as an addition to a sentence.
pub(super) fn services(case: &Case<'_>) -> String {
    let tables = if case.destination.is_ipv4() {
        ["services_v4", "slots_v4", "sources_v4", "service_names"]
    } else {
        ["services_v6", "slots_v6", "sources_v6", "service_names"]
    };
    filled(case, &tables)
}

fn filled(case: &Case<'_>, tables: &[&str]) -> String {
    let is_full = |fill: &&TableFill| {
        tables.contains(&fill.name) && u64::from(fill.max_entries).saturating_sub(fill.entries) == 0
    };
    let full = case.fills.iter().filter(is_full);
    let full: Vec<String> = full
        .map(|fill| {
            format!(
                "{} has {} of {} entries (--table-size {}=ENTRIES)",
                fill.name, fill.entries, fill.max_entries, fill.name
            )
        })
        .collect();
    if full.is_empty() {
        String::new()
    } else {
        format!(": {}", full.join(", "))
    }
}
