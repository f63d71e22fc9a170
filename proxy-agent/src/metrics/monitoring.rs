//! The dashboard and the alerts in `manifests/monitoring`, against what is told: a query for a metric or label that doesn't exist
//! would be silent for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use prometheus_client::registry::Registry;
use serde_json::Value;

use super::{SyncMetrics, WorkMetrics, Written, process::ProcessCollector, programs, services, tables, text};
use crate::{dataplane::observer::Observer as _, model::Family};

/// Labels that whoever scrapes adds.
const OF_SCRAPE: [&str; 2] = ["instance", "job"];
/// What whoever scrapes tells itself.
const SCRAPE: &str = "up";

/// A scrape with everything in it that there can be.
fn scrape() -> String {
    let (sync, work) = (SyncMetrics::default(), WorkMetrics::default());
    let second = Duration::from_secs(1);
    sync.services_changed(1);
    sync.endpoints_changed(1);
    for written in [Written::All, Written::Changed] {
        sync.written(written, second);
    }
    sync.complete();
    sync.programmed(Family::V4, second);
    sync.healthz_answered(200);
    sync.livez_answered(200);
    work.collected(second, Some(1));
    work.purged(Family::V4, second, 1);
    work.write_refused("slots_v4");
    work.compared(second);
    let mut registry = Registry::default();
    sync.register(&mut registry);
    work.register(&mut registry);
    registry.register_collector(Box::new(ProcessCollector));
    let of_agent = text::encode(&registry).expect("a string takes everything");
    [
        of_agent,
        tables::tests::sample(),
        services::tests::sample(),
        programs::tests::sample(),
    ]
    .concat()
}

/// The labels of each metric by its name; of a histogram the name is that of its parts.
fn told() -> BTreeMap<String, BTreeSet<String>> {
    let mut told: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in scrape().lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).expect("a name and a value");
        let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
        // No label's value here has a quote in it.
        let names = labels.split('"').step_by(2).filter_map(|name| name.strip_suffix('='));
        let names = names.map(|name| name.trim_start_matches(',').to_owned());
        told.entry(name.to_owned()).or_default().extend(names);
    }
    told
}

/// behaviour.md 8.8: what kube-proxy tells in any mode, by name, type and labels; those of iptables and nftables have no
/// counterpart.
#[test]
fn rule_8_8_every_metric_of_kube_proxy_is_told() {
    const OF_FAMILY: &[&str] = &["ip_family"];
    let told = told();
    let scrape = scrape();
    for (name, kind, labels) in [
        ("sync_proxy_rules_duration_seconds", "histogram", OF_FAMILY),
        ("sync_full_proxy_rules_duration_seconds", "histogram", OF_FAMILY),
        ("sync_partial_proxy_rules_duration_seconds", "histogram", OF_FAMILY),
        ("network_programming_duration_seconds", "histogram", OF_FAMILY),
        ("conntrack_reconciler_sync_duration_seconds", "histogram", OF_FAMILY),
        ("conntrack_reconciler_deleted_entries_total", "counter", OF_FAMILY),
        ("sync_proxy_rules_endpoint_changes_total", "counter", &[]),
        ("sync_proxy_rules_service_changes_total", "counter", &[]),
        ("proxy_healthz_total", "counter", &["code"]),
        ("proxy_livez_total", "counter", &["code"]),
        ("sync_proxy_rules_endpoint_changes_pending", "gauge", &[]),
        ("sync_proxy_rules_service_changes_pending", "gauge", &[]),
        ("sync_proxy_rules_last_timestamp_seconds", "gauge", OF_FAMILY),
        ("sync_proxy_rules_last_queued_timestamp_seconds", "gauge", OF_FAMILY),
        (
            "sync_proxy_rules_no_local_endpoints_total",
            "gauge",
            &["ip_family", "traffic_policy"],
        ),
    ] {
        let name = format!("kubeproxy_{name}");
        let line = format!("# TYPE {name} {kind}");
        assert!(scrape.lines().any(|found| found == line), "{line} is not in\n{scrape}");
        let sample = if kind == "histogram" {
            format!("{name}_count")
        } else {
            name
        };
        let expected: BTreeSet<_> = labels.iter().map(|label| (*label).to_owned()).collect();
        assert_eq!(told.get(&sample), Some(&expected), "{sample}");
    }
}

/// The metrics that a query asks for, and the labels that it names.
#[derive(Debug, Default)]
struct Asked {
    metrics: BTreeSet<String>,
    /// Labels of a metric that are compared
    matched: BTreeSet<(String, String)>,
    /// Labels by which is grouped
    grouped: BTreeSet<String>,
}

/// What PromQL has that is followed by a bracket, as far as the queries here need it.
const FUNCTIONS: [&str; 9] = [
    "clamp_min",
    "count",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "rate",
    "sum",
    "topk",
];

/// The words and signs of a query: names, texts with their quotes, numbers with their unit, and single signs.
fn tokens(query: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '.';
        let length = match first {
            '"' => rest[1..].find('"').expect("a text ends") + 2,
            _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

impl Asked {
    /// Reads a query: enough of PromQL to know a metric from a function, and a label from either.
    fn read(query: &str) -> Self {
        let (mut asked, mut open) = (Self::default(), Vec::new());
        let tokens = tokens(query);
        let mut last_metric = String::new();
        for (index, &token) in tokens.iter().enumerate() {
            let next = tokens.get(index + 1).copied().unwrap_or_default();
            let is_name = token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            match (token, open.last()) {
                ("(", _) => open.push(if index > 0 && tokens[index - 1] == "by" {
                    "labels"
                } else {
                    ")"
                }),
                ("{", _) => open.push("}"),
                ("[", _) => open.push("]"),
                (")", Some(&(")" | "labels"))) | ("}", Some(&"}")) | ("]", Some(&"]")) => _ = open.pop(),
                (")" | "}" | "]", _) => panic!("{query}: {token} closes nothing"),
                (_, Some(&"labels")) if is_name => _ = asked.grouped.insert(token.to_owned()),
                (_, Some(&"}")) if is_name => {
                    assert!(["=", "!"].contains(&next), "{query}: {token} is not compared");
                    asked.matched.insert((last_metric.clone(), token.to_owned()));
                }
                ("by", _) => assert_eq!(next, "(", "{query}"),
                _ if is_name && (next == "(" || next == "by") => {
                    assert!(FUNCTIONS.contains(&token), "{query}: {token}");
                }
                _ if is_name => {
                    token.clone_into(&mut last_metric);
                    asked.metrics.insert(token.to_owned());
                }
                _ => {}
            }
        }
        assert!(open.is_empty() && !asked.metrics.is_empty(), "{query}");
        asked
    }
}

fn manifest(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../manifests/monitoring")
        .join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Reads a query, and sees that everything it asks for is told, with the labels it names. Gives those that its result has.
fn check(query: &str, told: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let asked = Asked::read(query);
    let mut labels: BTreeSet<String> = OF_SCRAPE.map(str::to_owned).into();
    for metric in asked.metrics.iter().filter(|metric| *metric != SCRAPE) {
        let of_metric = told
            .get(metric)
            .unwrap_or_else(|| panic!("{query}: nothing tells {metric}"));
        labels.extend(of_metric.iter().cloned());
    }
    for (metric, label) in &asked.matched {
        let is_told = told.get(metric).is_some_and(|labels| labels.contains(label));
        assert!(
            is_told || OF_SCRAPE.contains(&label.as_str()),
            "{query}: {metric} has no label {label}"
        );
    }
    for label in &asked.grouped {
        assert!(labels.contains(label), "{query}: nothing there has a label {label}");
    }
    labels
}

/// The words between `start` and `end` in a text.
fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(start)
        .skip(1)
        .filter_map(move |rest| Some(rest.split_once(end)?.0.trim()))
}

#[test]
fn queries_are_read() {
    let query = r#"topk(10, sum by (a, b) (rate(x_total{c=~"d|e",f!="by (g)"}[5m]))) / max(y) > 0.5"#;
    let asked = Asked::read(query);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(asked.metrics, names(&["x_total", "y"]));
    assert_eq!(asked.grouped, names(&["a", "b"]));
    let matched: Vec<_> = asked
        .matched
        .iter()
        .map(|(metric, label)| (metric.as_str(), label.as_str()))
        .collect();
    assert_eq!(matched, [("x_total", "c"), ("x_total", "f")]);
}

#[test]
fn the_dashboard_asks_for_what_is_told() {
    let told = told();
    let dashboard: Value = serde_json::from_str(&manifest("grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    let mut queries = 0;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        for target in panel["targets"].as_array().expect("targets") {
            let text = |field: &str| target[field].as_str().unwrap_or_else(|| panic!("{panel}: {field}"));
            let labels = check(&text("expr").replace("$__rate_interval", "5m"), &told);
            for label in between(text("legendFormat"), "{{", "}}") {
                assert!(labels.contains(label), "{}: no label {label}", panel["title"]);
            }
            queries += 1;
        }
    }
    assert!(queries > 40, "{queries} queries");
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let Some(query) = variable["query"]["query"].as_str() else {
            continue;
        };
        let (selector, label) = query
            .strip_prefix("label_values(")
            .and_then(|query| query.strip_suffix(')')?.rsplit_once(", "))
            .unwrap_or_else(|| panic!("{query}"));
        assert!(check(selector, &told).contains(label), "{query}");
    }
}

#[test]
fn alerts_ask_for_what_is_told() {
    let told = told();
    let rule: Value = serde_yaml_ng::from_str(&manifest("prometheus-rule.yaml")).expect("YAML");
    assert_eq!(rule["kind"], "PrometheusRule");
    let mut names = BTreeSet::new();
    let groups = rule["spec"]["groups"].as_array().expect("groups");
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md")).expect("docs");
    for alert in groups
        .iter()
        .flat_map(|group| group["rules"].as_array().expect("rules"))
    {
        let name = alert["alert"].as_str().expect("a name");
        assert!(names.insert(name), "{name} twice");
        assert!(
            docs.contains(&format!("| `{name}` |")),
            "docs/metrics.md doesn't tell of {name}"
        );
        let labels = check(alert["expr"].as_str().expect("an expression"), &told);
        let severity = alert["labels"]["severity"].as_str();
        assert!(
            matches!(severity, Some("critical" | "warning" | "info")),
            "{name}: {severity:?}"
        );
        for text in ["summary", "description"] {
            let text = alert["annotations"][text]
                .as_str()
                .unwrap_or_else(|| panic!("{name}: {text}"));
            for label in between(text, "$labels.", " ") {
                let label = label.trim_end_matches('}');
                assert!(labels.contains(label), "{name}: no label {label}");
            }
        }
    }
    assert!(names.len() > 10, "{names:?}");
}
