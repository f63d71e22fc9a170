//! What is pinned, as it is and beside what `proxy-agent plan` wants.

use std::fmt::Debug;

use anyhow::{Context as _, Result};
use proxy_agent::dataplane::{kernel, pin::PinDirectory, table::BoxedTable};
use proxy_tests::lab::{Lab, PATIENCE, agent_binary, wait_until};
use serde_json::{Value, json};

/// Every entry of the tables that say what is served, as text; empty when nothing is, nor ever was.
///
/// Flows and counters are left out, the traffic writes those; and filters, which hold the devices' addresses as well.
pub(super) fn snapshot(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let tables = kernel::open(&PinDirectory::new(lab.pin_directory(node)))?;
    let mut all = Vec::new();
    collect("services_v4", &tables.v4.services, &mut all)?;
    collect("services_v6", &tables.v6.services, &mut all)?;
    collect("slots_v4", &tables.v4.slots, &mut all)?;
    collect("slots_v6", &tables.v6.slots, &mut all)?;
    collect("service_names", &tables.service_names, &mut all)?;
    all.sort_unstable();
    Ok(all)
}

fn collect<K: Debug, V: Debug>(name: &str, table: &BoxedTable<K, V>, all: &mut Vec<String>) -> Result<()> {
    all.extend(table.entries()?.into_iter().map(|entry| format!("{name} {entry:?}")));
    Ok(())
}

/// Waits until the tables of a node hold exactly what is planned for it from the lab's manifests.
pub(super) fn wait_for_plan(lab: &Lab, node: &str) -> Result<()> {
    let (mut planned, mut served) = (Vec::new(), Vec::new());
    wait_until("the tables hold the plan", PATIENCE, || {
        planned = plan(lab, node).ok()?;
        served = services(lab, node).ok()?;
        (planned == served).then_some(())
    })
    .with_context(|| format!("planned {planned:#?}\nserved {served:#?}"))
}

fn plan(lab: &Lab, node: &str) -> Result<Vec<String>> {
    let (binary, manifests) = (agent_binary()?, lab.manifests());
    let (binary, manifests) = (binary.to_string_lossy(), manifests.to_string_lossy());
    let arguments = ["plan", "--manifests", &manifests, "--node-name", node, "-o", "json"];
    frontends(&lab.node(node).namespace().tool(&binary, &arguments, "")?, "frontends")
}

fn services(lab: &Lab, node: &str) -> Result<Vec<String>> {
    frontends(&lab.ask_agent(node, "services", &["-o", "json"])?, "services")
}

/// What `plan` and `services` both say of each frontend, sorted.
fn frontends(listing: &str, list: &str) -> Result<Vec<String>> {
    let listing: Value = serde_json::from_str(listing)?;
    let rows = listing[list].as_array().with_context(|| format!("no list {list}"))?;
    let mut rows: Vec<String> = rows.iter().map(|row| row_text(row).to_string()).collect();
    rows.sort_unstable();
    Ok(rows)
}

fn row_text(row: &Value) -> Value {
    // A list that isn't used is null in a plan; the tables have no word for that.
    let endpoints = |list: &str| {
        let list = row[list].as_array();
        let mut endpoints: Vec<&str> = list.into_iter().flatten().filter_map(Value::as_str).collect();
        endpoints.sort_unstable();
        json!(endpoints)
    };
    let mut text = json!({"cluster": endpoints("cluster"), "local": endpoints("local")});
    for field in [
        "namespace",
        "service",
        "port_name",
        "protocol",
        "address",
        "port",
        "has_endpoints",
    ] {
        text[field] = row[field].clone();
    }
    text
}
