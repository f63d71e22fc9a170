//! The metrics server: what kube-proxy's users find there, and what this proxy adds.

use std::{
    net::{SocketAddr, TcpListener},
    str::FromStr,
};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use proxy_tests::{
    lab::{AgentOptions, Family, Lab, PATIENCE, Protocol, wait_until},
    require_root,
};
use serde_json::{Value, json};

use crate::{
    cluster::{NODE, cluster, expect_answers, lab, web},
    http::{Page, get},
    log::Log,
};

/// Where it listens unless it is told otherwise (behaviour.md 8.7).
const DEFAULT: &str = "127.0.0.1:10249";

fn page(lab: &Lab, path: &str) -> Result<Page> {
    get(lab.node(NODE).namespace(), DEFAULT.parse()?, path)
}

/// The value of a metric, by name and labels as the text has them.
fn value<T: FromStr>(text: &str, name: &str) -> Option<T> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value?.parse().ok()
}

fn metric(text: &str, name: &str) -> Result<f64> {
    value(text, name).with_context(|| format!("no {name} in\n{text}"))
}

fn expect_count(text: &str, name: &str, expected: u64) -> Result<()> {
    ensure!(
        value(text, name) == Some(expected),
        "{name} is not {expected} in\n{text}"
    );
    Ok(())
}

/// behaviour.md 8.7: pages, types and words.
#[test]
fn rule_8_7_pages_are_those_of_kube_proxy() -> Result<()> {
    require_root!();
    lab(|lab| {
        let _agent = lab.start_agent(NODE)?;
        let is_plain = |page: &Page| {
            let is_text = |kind: &str| kind.starts_with("text/plain; charset=utf-8");
            page.header("content-type").is_some_and(is_text) && page.header("x-content-type-options") == Some("nosniff")
        };
        for (path, body) in [
            ("/healthz", "ok"),
            ("/healthz/ping", "ok"),
            ("/healthz?verbose", "[+]ping ok\nhealthz check passed\n"),
            ("/proxyMode", "ebpf"),
        ] {
            let page = page(lab, path)?;
            ensure!(
                (page.status, page.body.as_str()) == (200, body) && is_plain(&page),
                "{path}: {page:?}"
            );
        }
        let slis = page(lab, "/metrics/slis")?.body;
        for line in [
            r#"kubernetes_healthcheck{name="ping",type="healthz"} 1"#,
            r#"kubernetes_healthchecks_total{name="ping",status="success",type="healthz"} 2"#,
        ] {
            ensure!(slis.lines().any(|found| found == line), "{line} is not in\n{slis}");
        }
        let statusz = page(lab, "/statusz")?;
        ensure!(
            is_plain(&statusz) && statusz.body.contains("\nUp: 0 hr 00 min "),
            "{statusz:?}"
        );
        let flagz = page(lab, "/flagz")?;
        ensure!(
            is_plain(&flagz) && flagz.body.contains(&format!("\nnode-name={NODE}\n")),
            "{flagz:?}"
        );
        let configz = page(lab, "/configz")?;
        ensure!(
            configz.header("content-type") == Some("application/json"),
            "{configz:?}"
        );
        let configz: Value = serde_json::from_str(&configz.body)?;
        ensure!(
            configz["kubeproxy.config.k8s.io"]["metricsBindAddress"] == DEFAULT,
            "{configz}"
        );
        ensure!(page(lab, "/nothing")?.status == 404);
        Ok(())
    })
}

/// behaviour.md 8.8, 9.8 and 9.9: kube-proxy's names; beside them the tables', packets' and Services' own.
#[test]
fn rule_8_8_a_scrape_tells_of_syncs_tables_and_traffic() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let service = web(lab, &["web-1"]);
        cluster.apply(&service)?;
        let options = AgentOptions {
            arguments: vec!["--metrics-endpoints=on".to_owned()],
            ..cluster.options()
        };
        let _agent = lab.start_agent_with(NODE, options)?;
        cluster.wait_for_plan()?;
        expect_answers(lab, &service, &["web-1"])?;
        let scrape = page(lab, "/metrics")?;
        let kind = scrape.header("content-type").unwrap_or_default();
        ensure!(kind == "text/plain; version=0.0.4; charset=utf-8", "{kind}");
        let text = scrape.body;
        // A request of TCP and one of UDP in each family, by this lab's only Service.
        let labels =
            |port, protocol| format!(r#"{{namespace="default",service="web",port="{port}",protocol="{protocol}"}}"#);
        for (port, protocol) in [("http", "TCP"), ("dns", "UDP")] {
            let connections = format!("proxy_agent_service_connections_total{}", labels(port, protocol));
            expect_count(&text, &connections, 2)?;
        }
        for family in ["v4", "v6"] {
            let entries = format!(r#"proxy_agent_table_entries{{table="flows_{family}"}}"#);
            ensure!(metric(&text, &entries)? >= 4.0, "{text}");
            let limit = format!(r#"proxy_agent_table_max_entries{{table="flows_{family}"}}"#);
            ensure!(metric(&text, &limit)? >= 131_072.0, "{text}");
        }
        // All of it by the only endpoint.
        for protocol in ["TCP", "UDP"] {
            let of_endpoint = |line: &&str| {
                line.starts_with("proxy_agent_endpoint_connections_total{")
                    && line.contains(protocol)
                    && line.ends_with(" 1")
            };
            ensure!(
                text.lines().filter(of_endpoint).count() == 2,
                "{protocol}, by family, in\n{text}"
            );
        }
        let new_flows = r#"proxy_agent_packets_total{verdict="Rewrite",reason="NewFlow"}"#;
        expect_count(&text, new_flows, 4)?;
        expect_count(&text, "proxy_agent_tables_readable", 1)?;
        ensure!(metric(&text, "process_resident_memory_bytes")? > 1e6);
        ensure!(text.contains("kubernetes_build_info{"), "{text}");
        for family in ["IPv4", "IPv6"] {
            let of_family = |name: &str| format!(r#"kubeproxy_{name}{{ip_family="{family}"}}"#);
            ensure!(metric(&text, &of_family("sync_proxy_rules_duration_seconds_count"))? >= 1.0);
            let last = metric(&text, &of_family("sync_proxy_rules_last_timestamp_seconds"))?;
            let queued = metric(&text, &of_family("sync_proxy_rules_last_queued_timestamp_seconds"))?;
            ensure!(last >= queued, "last {last}, queued {queued}");
        }
        let changes = "kubeproxy_sync_proxy_rules_endpoint_changes";
        expect_count(&text, &format!("{changes}_total"), 2)?;
        expect_count(&text, &format!("{changes}_pending"), 0)?;

        // What is told follows what happens.
        cluster.apply(&web(lab, &["web-2"]))?;
        cluster.wait_for_plan()?;
        wait_until("the changes are counted", PATIENCE, || {
            let text = page(lab, "/metrics").ok()?.body;
            (value(&text, &format!("{changes}_total")) == Some(4)).then_some(())
        })?;

        // What is refused is told by the service port that refuses it.
        let empty = web(lab, &[]);
        cluster.apply(&empty)?;
        cluster.wait_for_plan()?;
        let refused = lab.request("client", Protocol::Tcp, empty.frontend(Family::V4, 80));
        ensure!(refused.is_err(), "it has no endpoints: {refused:?}");
        let text = page(lab, "/metrics")?.body;
        let of_reason = labels("http", "TCP").replace('}', r#",verdict="Reject",reason="NoEndpoints"}"#);
        let refusals = metric(&text, &format!("proxy_agent_service_refused_packets_total{of_reason}"))?;
        ensure!(refusals >= 1.0, "{text}");

        // As the controller writes it: with the time of the change that it is for (behaviour.md 9.8).
        let mut slice = serde_json::to_value(web(lab, &["web-1", "web-2"]).slice(Family::V4))?;
        let annotation = "endpoints.kubernetes.io/last-change-trigger-time";
        slice["metadata"]["annotations"] = json!({annotation: Timestamp::now().to_string()});
        cluster.server.apply(slice);
        let observed = r#"kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"}"#;
        wait_until("its latency is told", PATIENCE, || {
            let text = page(lab, "/metrics").ok()?.body;
            (value(&text, observed) == Some(1)).then_some(())
        })
    })
}

#[test]
fn traffic_by_service_port_can_be_left_out() -> Result<()> {
    require_root!();
    lab(|lab| {
        let service = web(lab, &["web-1"]);
        lab.apply(&service)?;
        let address = "127.0.0.1:9249";
        let options = AgentOptions {
            arguments: ["--metrics-services=off", "--metrics-bind-address", address]
                .map(str::to_owned)
                .into(),
            ..AgentOptions::default()
        };
        let _agent = lab.start_agent_with(NODE, options)?;
        let text = get(lab.node(NODE).namespace(), address.parse()?, "/metrics")?.body;
        ensure!(!text.contains("proxy_agent_service_"), "{text}");
        expect_count(&text, r#"proxy_agent_table_entries{table="service_names"}"#, 2)?;
        Ok(())
    })
}

/// behaviour.md 8.6: the proxy works without its metrics, and they come when they can; unless that is to be fatal.
#[test]
fn rule_8_6_an_address_in_use_is_waited_for() -> Result<()> {
    require_root!();
    lab(|lab| {
        let address: SocketAddr = DEFAULT.parse()?;
        let taken = lab.node(NODE).namespace().run(|| TcpListener::bind(address))?;
        let log = Log::from_now(lab, NODE);
        let fatal = AgentOptions {
            arguments: vec!["--bind-address-hard-fail".to_owned()],
            ..AgentOptions::default()
        };
        let mut agent = lab.spawn_agent(NODE, fatal)?;
        let ended = wait_until("the agent ends", PATIENCE, || agent.ended().transpose())??;
        ensure!(ended.code() == Some(1), "it ended with {ended}");
        log.wait_for(&[
            "error: cannot serve metrics at 127.0.0.1:10249",
            "Address already in use",
        ])?;

        let log = Log::from_now(lab, NODE);
        let _agent = lab.start_agent(NODE)?;
        log.wait_for(&[
            "WARN",
            "cannot serve metrics at 127.0.0.1:10249",
            "Address already in use",
        ])?;
        drop(taken);
        log.wait_for(&["metrics at http://127.0.0.1:10249"])?;
        ensure!(page(lab, "/healthz")?.status == 200);
        Ok(())
    })
}
