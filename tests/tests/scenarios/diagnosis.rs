//! What the reading commands tell of a node at work: what is known of Services, why a packet isn't served, what the node is like.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Connection, Family, ForeignXdp, KubeProxy, Lab, Policy, Service, State, address},
    require_root,
};
use serde_json::Value;

use super::{PORT, serve, service};

/// One lab for all of them: each looks at the same node, and changes nothing for the next.
#[test]
fn a_node_at_work_is_explained() -> Result<()> {
    require_root!();
    let lab = Lab::builder()
        .node("node-a", &["client", "web-1"])
        .node("node-b", &["web-2"]);
    lab.run(|lab| {
        let web = serve(lab, "web", 1, &["web-1", "web-2"])?;
        let _agents = lab.start_agents()?;
        let frontend = web.frontend(Family::V4, PORT);
        let mut open = lab.namespace("client").run(|| Connection::open(frontend))?;
        open.ask()?;
        status_tells_health(lab)?;
        services_tell_states_flows_and_rates(lab)?;
        trace_tells_live_connections(lab, &web)?;
        trace_ends_in_the_fix(lab)?;
        doctor_tells_what_the_node_means(lab)
    })
}

/// behaviour.md 8.4, 8.5: the same as the agent's health pages.
fn status_tells_health(lab: &Lab) -> Result<()> {
    let health = &lab.listing("node-a", "status", &[])?["health"];
    ensure!(
        health["node"] == "node-a" && health["synced"] == true && health["healthy"] == true,
        "{health}"
    );
    ensure!(
        health["services"].as_u64() > Some(0) && health["last_sync"].is_string(),
        "{health}"
    );
    let text = lab.ask_agent("node-a", "status", &[])?;
    for words in ["Health: healthy; node node-a", "Last sync: 2", "tcx"] {
        ensure!(text.contains(words), "no {words:?} in {text}");
    }
    // Nobody answers where no agent is.
    let alone = lab.listing("node-a", "status", &["--agent", "127.0.0.1:1"])?;
    ensure!(
        alone["health"].is_null() && alone["agent"]["running"] == true,
        "{alone}"
    );
    Ok(())
}

/// behaviour.md 1.14, 1.15
fn services_tell_states_flows_and_rates(lab: &Lab) -> Result<()> {
    let arguments = ["--service", "default/web", "--wide", "--rate", "10ms"];
    let listing = lab.listing("node-a", "services", &arguments)?;
    let rows = listing["services"].as_array().context("no list")?;
    let v4 = |row: &&Value| row["port_name"] == "tcp" && row["address"] == "10.96.0.1";
    let row = rows.iter().find(v4).context("no such frontend")?;
    ensure!(row["flows"] == 1 && row["rate"]["connections"] == 0.0, "{row}");
    let endpoints = row["endpoints"].as_array().context("no endpoints")?;
    let states: Vec<_> = endpoints
        .iter()
        .map(|endpoint| (endpoint["local"] == true, endpoint["ready"] == true))
        .collect();
    ensure!(states == [(true, true), (false, true)], "{row}");
    let text = lab.ask_agent("node-a", "services", &["--wide", "--agent", "127.0.0.1:1"])?;
    ensure!(text.contains("no agent answers at 127.0.0.1:1"), "{text}");
    Ok(())
}

fn trace(lab: &Lab, to: &str, more: &[&str]) -> Result<Value> {
    let client = lab.pod("client").addresses().of(Family::V4).to_string();
    let packet = [
        "--from",
        "pod",
        "--protocol",
        "tcp",
        "--source",
        &client,
        "--destination",
        to,
    ];
    lab.listing("node-a", "trace", &[&packet, more].concat())
}

fn trace_tells_live_connections(lab: &Lab, web: &Service) -> Result<()> {
    let trace = trace(lab, &web.frontend(Family::V4, PORT).to_string(), &["--live"])?;
    let flows = trace["flows"].as_array().context("no list")?;
    ensure!(flows.len() == 1 && flows[0]["state"] == "established", "{trace}");
    ensure!(trace["verdict"] == "forward" && trace["advice"].is_null(), "{trace}");
    Ok(())
}

/// What only the agent knows: the tables have no endpoint, and no reason for that (behaviour.md 4.1, 4.2, 4.6).
fn trace_ends_in_the_fix(lab: &Lab) -> Result<()> {
    let pods = [lab.pod("web-2")];
    let unready = service("unready", address::cluster(2))
        .pods(&pods)
        .state("web-2", State::Unready);
    let away = service("away", address::cluster(3))
        .pods(&pods)
        .internal_policy(Policy::Local);
    let empty = service("empty", address::cluster(4));
    for service in [&unready, &away, &empty] {
        lab.apply(service)?;
    }
    lab.settle("node-a")?;
    for (service, verdict, cause, fix) in [
        (&unready, "reject", "(not ready)", "readiness probe"),
        (
            &away,
            "drop",
            "internalTrafficPolicy of Service default/away is Local",
            "DaemonSet",
        ),
        (&empty, "reject", "of Service default/empty", "kubectl"),
    ] {
        let trace = trace(lab, &service.frontend(Family::V4, PORT).to_string(), &[])?;
        let advice = &trace["advice"];
        ensure!(trace["verdict"] == verdict && trace["decisions"].is_array(), "{trace}");
        let is_told = |part: &Value, words| part.to_string().contains(words);
        ensure!(
            is_told(&advice["cause"], cause) && is_told(&advice["fix"], fix),
            "{trace}"
        );
    }
    let other_port = trace(lab, "10.96.0.1:81", &[])?;
    ensure!(
        other_port["advice"]["cause"] == "Service default/web has no port 81/TCP: it has 80/TCP (tcp), 80/UDP (udp)",
        "{other_port}"
    );
    // Without an agent the tables alone are asked.
    let alone = trace(lab, "10.96.0.2:80", &["--agent", "127.0.0.1:1"])?;
    ensure!(
        alone["advice"]["cause"].to_string().contains("no agent answers"),
        "{alone}"
    );
    Ok(())
}

/// The findings of `doctor` about a thing.
fn finding(report: &Value, subject: &str) -> Result<Value> {
    let findings = report["findings"].as_array().context("no list")?;
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found
        .cloned()
        .with_context(|| format!("nothing about {subject}: {report}"))
}

fn doctor_tells_what_the_node_means(lab: &Lab) -> Result<()> {
    let node = lab.node("node-a").namespace();
    let report = lab.listing("node-a", "doctor", &[])?;
    for subject in [
        "sched_cls programs",
        "tcx",
        "bpffs",
        "CAP_BPF",
        "net/ipv4/ip_forward",
        "kube-proxy's rules",
    ] {
        let finding = finding(&report, subject)?;
        ensure!(finding["severity"] == "ok" && finding["fix"].is_null(), "{finding}");
    }
    let foreign = ForeignXdp::attach(node, "eth0")?;
    lab.program_kube_proxy("node-a", KubeProxy::Nftables, &[])?;
    let report = lab.listing("node-a", "doctor", &["--quiet"])?;
    foreign.detach();
    for (subject, words) in [
        ("eth0 XDP", "another owner's program, native"),
        ("kube-proxy's rules", "table ip kube-proxy"),
    ] {
        let finding = finding(&report, subject)?;
        ensure!(
            finding["severity"] == "warning"
                && finding["found"].to_string().contains(words)
                && finding["fix"].is_string(),
            "{finding}"
        );
    }
    // A problem is also told by the exit status.
    node.sysctl(&[("ipv4/ip_forward", "0")])?;
    let refused = lab.ask_agent("node-a", "doctor", &[]);
    node.sysctl(&[("ipv4/ip_forward", "1")])?;
    let refused = refused.err().context("a node that forwards nothing is fine")?;
    ensure!(format!("{refused:#}").contains("1 problem"), "{refused:#}");
    Ok(())
}
