//! What an operator sees of packets under way: `monitor`, `flows` and `top`.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Connection, Family, Lab, Load, PATIENCE, Policy, Protocol, agent_binary},
    require_root,
};
use serde_json::Value;

use super::{PORT, serve, service};

/// A command that goes on printing lines; killed (SIGKILL) when dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts a command on the tables of a node. Lines of its standard error come as well.
    fn start(lab: &Lab, node: &str, command: &str, arguments: &[&str]) -> Result<Self> {
        let binary = agent_binary()?;
        let pins = lab.pin_directory(node);
        let spawn = || {
            Command::new(binary)
                .args([command, "--pin-dir"])
                .arg(pins)
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
        };
        let mut child = lab.node(node).namespace().run(spawn)?;
        lab.adopt(&child)?;
        let (sender, lines) = channel();
        let (out, error) = (
            child.stdout.take().context("piped")?,
            child.stderr.take().context("piped")?,
        );
        let other = sender.clone();
        thread::spawn(move || {
            BufReader::new(error)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| other.send(line))
        });
        thread::spawn(move || {
            BufReader::new(out)
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Ok(Self { child, lines })
    }

    /// [`Running::start`] of a monitor that prints JSON, once it watches.
    fn monitor(lab: &Lab, node: &str, arguments: &[&str]) -> Result<Self> {
        let running = Self::start(lab, node, "monitor", &[&["-o", "json"], arguments].concat())?;
        running.line("it watches", |line| line.starts_with("watching").then_some(()))?;
        Ok(running)
    }

    /// Waits for the line that `find` takes.
    fn line<T>(&self, what: &str, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.with_context(|| format!("waited in vain until {what}; there was {seen:#?}"))?;
            if let Some(found) = find(&line) {
                return Ok(found);
            }
            seen.push(line);
        }
    }

    /// Waits for an object with these texts.
    fn object(&self, fields: &[(&str, &str)]) -> Result<Value> {
        self.line(&format!("there is {fields:?}"), |line| {
            let object: Value = serde_json::from_str(line).ok()?;
            fields
                .iter()
                .all(|(name, text)| object[*name] == *text)
                .then_some(object)
        })
    }

    /// The object that it prints before it ends.
    fn last_object(mut self) -> Result<Value> {
        self.child.wait()?;
        // The senders end with the child's output.
        let printed: Vec<String> = self.lines.iter().collect();
        serde_json::from_str(&printed.join("\n")).with_context(|| format!("no object: {printed:#?}"))
    }

    /// What has been printed so far.
    fn printed(&self) -> Vec<String> {
        self.lines.try_iter().collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// New flows of pods and of processes of the node, rejects and drops are told to all who watch, by what each wants; `flows` and
/// `top` show the same connections.
#[test]
fn monitor_flows_and_top_show_what_happens() -> Result<()> {
    require_root!();
    let cluster = Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"]);
    cluster.run(|lab| {
        let web = serve(lab, "web", 1, &["near"])?;
        let empty = service("empty", proxy_tests::lab::address::cluster(2));
        lab.apply(&empty)?;
        let elsewhere = service("elsewhere", proxy_tests::lab::address::cluster(3))
            .internal_policy(Policy::Local)
            .pods(&[lab.pod("far")]);
        lab.apply(&elsewhere)?;
        let _agent = lab.start_agent("node-a")?;
        let all = Running::monitor(lab, "node-a", &[])?;
        let refused = Running::monitor(lab, "node-a", &["--event", "reject", "--service", "empty"])?;
        let followed = Running::start(lab, "node-a", "flows", &["--follow", "--interval", "0.2", "-o", "json"])?;
        for family in Family::ALL {
            let [to_web, to_empty, to_elsewhere] =
                [&web, &empty, &elsewhere].map(|service| service.frontend(family, PORT));
            // Kept open, for `flows`.
            let connection = lab.namespace("client").run(|| Connection::open(to_web))?;
            let client = lab
                .pod("client")
                .addresses()
                .with_port(family, connection.local_port()?)
                .to_string();
            let backend = lab
                .pod("near")
                .addresses()
                .with_port(family, super::POD_PORT)
                .to_string();
            let event = all.object(&[("event", "new"), ("source", &client)])?;
            ensure!(
                event["destination"] == to_web.to_string() && event["backend"] == backend,
                "{event}"
            );
            ensure!(
                event["service"] == "default/web:tcp" && event["device"] == "veth-client",
                "{event}"
            );
            let opened = followed.object(&[("change", "opened"), ("client", &client)])?;
            ensure!(
                opened["backend"] == backend && opened["service"] == "default/web:tcp",
                "{opened}"
            );
            let listed = |more: &[&str]| -> Result<bool> {
                let filters = ["-o", "json", "--client", &client, "--service", "default/web"];
                let flows = lab.ask_agent("node-a", "flows", &[&filters[..], more].concat())?;
                let flows: Value = serde_json::from_str(&flows)?;
                Ok(flows["flows"].as_array().is_some_and(|flows| flows.len() == 1))
            };
            ensure!(
                listed(&["--protocol", "tcp", "--backend", &backend])?,
                "filters that let it through"
            );
            ensure!(
                !listed(&["--protocol", "udp"])? && !listed(&["--state", "closing"])?,
                "filters that don't"
            );
            let answer = lab.udp_request("client", to_empty);
            ensure!(
                answer.as_ref().is_err_and(proxy_tests::lab::RequestError::is_refused),
                "{answer:?}"
            );
            for monitor in [&all, &refused] {
                let event = monitor.object(&[("event", "reject"), ("destination", &to_empty.to_string())])?;
                ensure!(
                    event["reason"] == "NoEndpoints" && event["service"] == "default/empty:udp",
                    "{event}"
                );
            }
            // There is no answer to wait for.
            lab.namespace("client").run(|| {
                std::net::UdpSocket::bind(if to_elsewhere.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?
                    .send_to(&[1], to_elsewhere)
            })?;
            let event = all.object(&[("event", "drop"), ("destination", &to_elsewhere.to_string())])?;
            ensure!(
                event["reason"] == "NoLocalEndpoints" && event["service"] == "default/elsewhere:udp",
                "{event}"
            );
            lab.tcp_request("node-a", to_web)?;
            let event = all.object(&[("hook", "socket"), ("destination", &to_web.to_string())])?;
            ensure!(event["event"] == "new" && event["backend"] == backend, "{event}");
        }
        let others = refused.printed();
        ensure!(others.is_empty(), "not asked for: {others:#?}");
        trace_waits_for_a_packet(lab)?;
        // As many others as there is room for, one of which was killed.
        drop(refused);
        top_shows_the_load(
            lab,
            &[
                (Protocol::Tcp, web.frontend(Family::V4, PORT)),
                (Protocol::Udp, empty.frontend(Family::V6, PORT)),
            ],
        )
    })
}

/// The next packet like the described one is explained as the kernel dealt with it: from a pod, and from a process of the node. Before that
/// others come, and connections there are already.
fn trace_waits_for_a_packet(lab: &Lab) -> Result<()> {
    let both = serve(lab, "both", 4, &["near", "far"])?;
    lab.wait_for_service("node-a", &both)?;
    for family in Family::ALL {
        let to_both = both.frontend(family, PORT);
        for (from, sender) in [("pod", "client"), ("host", "node-a")] {
            lab.tcp_request(sender, to_both)?;
            let addresses = if from == "pod" {
                lab.pod(sender).addresses()
            } else {
                lab.node(sender).addresses()
            };
            let source = addresses.with_port(family, 0).ip().to_string();
            let described = [
                "--from",
                from,
                "--source",
                &source,
                "--destination",
                &to_both.to_string(),
            ]
            .map(String::from);
            let described: Vec<&str> = described.iter().map(String::as_str).collect();
            let wait = ["--protocol", "tcp", "--wait", "20s", "-o", "json"];
            let trace = Running::start(lab, "node-a", "trace", &[&described[..], &wait].concat())?;
            trace.line("it waits", |line| line.starts_with("waiting").then_some(()))?;
            // Another protocol.
            lab.udp_request(sender, to_both)?;
            let connection = lab.namespace(sender).run(|| Connection::open(to_both))?;
            let trace = trace.last_object()?;
            let seen = &trace["seen"];
            ensure!(
                seen["destination"] == to_both.to_string() && seen["protocol"] == "TCP",
                "{trace:#}"
            );
            if from == "pod" {
                let port = connection.local_port()?;
                ensure!(
                    seen["source"] == addresses.with_port(family, port).to_string(),
                    "{trace:#}"
                );
            }
            ensure!(
                trace["verdict"] == "forward" && trace["reason"] == seen["text"] && trace["backend"] == seen["backend"],
                "{trace:#}"
            );
            ensure!(
                trace["candidates"]
                    .as_array()
                    .is_some_and(|candidates| candidates.len() == 2),
                "{trace:#}"
            );
        }
    }
    let nothing = lab.ask_agent(
        "node-a",
        "trace",
        &[
            "--from",
            "pod",
            "--protocol",
            "tcp",
            "--source",
            "10.244.0.99",
            "--destination",
            &both.frontend(Family::V4, PORT).to_string(),
            "--wait",
            "1s",
            "-o",
            "json",
        ],
    )?;
    let nothing: Value = serde_json::from_str(&nothing)?;
    ensure!(
        nothing.get("seen").is_some_and(Value::is_null) && nothing["verdict"] == "forward",
        "{nothing:#}"
    );
    Ok(())
}

fn top_shows_the_load(lab: &Lab, targets: &[(Protocol, std::net::SocketAddr)]) -> Result<()> {
    let load = Load::start(lab.namespace("client"), 1, targets);
    load.wait_for(2)?;
    // Those of the load are closed at once, and then flows no more.
    let mut open = lab.namespace("client").run(|| Connection::open(targets[0].1))?;
    open.ask()?;
    let top = lab.ask_agent(
        "node-a",
        "top",
        &["--once", "--interval", "1", "--sort", "service", "-o", "json"],
    )?;
    drop(load);
    let top: Value = serde_json::from_str(&top)?;
    let row = |service: &str, protocol: &str| {
        let rows = top["services"].as_array();
        let mut rows = rows.into_iter().flatten();
        let found = rows.find(|row| row["service"] == service && row["protocol"] == protocol);
        found.with_context(|| format!("no {service} in {top:#}"))
    };
    let (web, empty) = (row("default/web:tcp", "TCP")?, row("default/empty:udp", "UDP")?);
    let positive = |value: &Value| value.as_f64().is_some_and(|rate| rate > 0.0);
    ensure!(
        ["connections", "packets", "bytes"]
            .iter()
            .all(|field| positive(&web[*field])),
        "{web:#}"
    );
    ensure!(
        web["endpoints"][0]["flows"].as_u64().is_some_and(|flows| flows > 0) && positive(&web["flows"]),
        "{web:#}"
    );
    ensure!(
        positive(&web["setup"]["p50"]) && positive(&web["setup"]["p99"]) && empty["setup"].is_null(),
        "{web:#} {empty:#}"
    );
    ensure!(
        web["refused"] == 0.0 && positive(&empty["refused"]) && empty["connections"] == 0.0,
        "{empty:#}"
    );
    ensure!(
        positive(&top["total"]["refused"]) && top["refusals"][0]["reason"] == "NoEndpoints",
        "{top:#}"
    );
    let listing = lab.listing("node-a", "services", &["--service", "default/empty"])?;
    let rows = listing["services"].as_array().context("no list `services`")?;
    ensure!(
        rows.iter()
            .any(|row| row["protocol"] == "UDP" && positive(&row["refused"])),
        "{listing:#}"
    );
    Ok(())
}
