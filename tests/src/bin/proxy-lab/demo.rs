//! `demo`: the main job without a cluster.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use proxy_tests::lab::{
    Agent, AgentOptions, Connection, Family, Lab, Load, LoadReport, Protocol, Service, example, percentile,
};

use crate::{
    lab::{describe, start_servers},
    table::{bad, bold, good, table},
};

/// Requests to each frontend in the first part.
const REQUESTS: usize = 500;
/// Requests in each step of the second part.
const REQUESTS_IN_STEP: usize = 1000;

/// How the demo is run
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Leave the lab standing; `lab down --name demo` removes it
    #[arg(long)]
    keep: bool,
}

/// What was not as it must be.
#[derive(Default)]
struct Findings {
    requests: usize,
    problems: Vec<String>,
}

impl Findings {
    fn check(&mut self, holds: bool, problem: impl FnOnce() -> String) {
        if !holds {
            self.problems.push(problem());
        }
    }

    fn take_in(&mut self, what: &str, report: &LoadReport) {
        self.requests += report.ok() + report.failed;
        if let Err(error) = report.expect_no_loss() {
            self.problems.push(format!("{what}: {error}"));
        }
    }
}

impl Demo {
    pub(crate) fn run(&self) -> Result<()> {
        let lab = self.raise()?;
        lab.apply_examples()?;
        let options = AgentOptions {
            leave_running: self.keep,
            ..AgentOptions::default()
        };
        let start = |node: &str| lab.start_agent_with(node, options.clone());
        let mut agents = lab
            .nodes()
            .iter()
            .map(|node| start(node.name()))
            .collect::<Result<Vec<_>>>()?;
        introduce(&lab);

        let mut findings = Findings::default();
        show_requests(&lab, &mut findings)?;
        show_changes(&lab, &mut agents, &mut findings)?;

        if self.keep {
            println!("{}\n", describe(&lab, "demo")?);
        } else {
            println!("Look inside: `cargo xtask demo --keep` leaves all this standing and says how;");
            println!("`proxy-agent services`, `proxy-agent flows` and `bpftool map dump pinned` show the tables.\n");
        }
        conclude(&findings)
    }

    /// The lab, with servers in the pods that serve: in this process, unless they must outlive it.
    fn raise(&self) -> Result<Lab> {
        if self.keep {
            let mut lab = example::cluster().standing("demo").build()?;
            start_servers(&lab, "demo")?;
            lab.keep();
            return Ok(lab);
        }
        let lab = example::cluster().build()?;
        lab.remove_when_interrupted()?;
        example::servers().try_for_each(|(pod, port)| lab.serve(pod, port))?;
        Ok(lab)
    }
}

fn introduce(lab: &Lab) {
    println!("\n{}", bold("Two nodes, pods on both, and proxy-agent on each node"));
    let row = |pod: &proxy_tests::lab::Pod| {
        let node = lab.node(pod.node()).addresses();
        let [v4, v6] = pod.addresses().both();
        vec![
            pod.name().to_owned(),
            v4.to_string(),
            v6.to_string(),
            pod.node().to_owned(),
            node.v4.to_string(),
        ]
    };
    println!(
        "{}",
        table(
            &["POD", "IPV4", "IPV6", "NODE", "NODE IPV4"],
            5,
            lab.pods().iter().map(row).collect()
        )
    );
}

/// The frontends of the examples.
fn frontends() -> impl Iterator<Item = (Service, Protocol, Family, u16)> {
    let services = [(example::web(), Protocol::Tcp, 80), (example::dns(), Protocol::Udp, 53)];
    services
        .into_iter()
        .flat_map(|(service, protocol, port)| Family::ALL.map(|family| (service.clone(), protocol, family, port)))
}

fn show_requests(lab: &Lab, findings: &mut Findings) -> Result<()> {
    println!(
        "{}",
        bold(&format!("{REQUESTS} requests from pod `client` to each ClusterIP"))
    );
    let mut rows = Vec::new();
    for (service, protocol, family, port) in frontends() {
        let frontend = service.frontend(family, port);
        let load = Load::start(lab.namespace("client"), 1, &[(protocol, frontend)]);
        load.wait_for(REQUESTS)?;
        let report = load.stop();
        findings.take_in(&format!("{protocol} {frontend}"), &report);
        for pod in service.members() {
            let latencies = report.answered.get(pod).map(Vec::as_slice).unwrap_or_default();
            findings.check(!latencies.is_empty(), || {
                format!("{protocol} {frontend}: {pod} got no request")
            });
            let here = lab.pod(pod).node() == lab.pod("client").node();
            rows.push(vec![
                service.full_name(),
                format!("{protocol} {frontend}"),
                pod.to_owned(),
                if here { "same" } else { "other" }.to_owned(),
                latencies.len().to_string(),
                micros(percentile(latencies, 0.5)),
                micros(percentile(latencies, 0.99)),
            ]);
        }
    }
    let heading = ["SERVICE", "ADDRESS", "BACKEND", "NODE", "REQUESTS", "P50", "P99"];
    println!("{}", table(&heading, 4, rows));
    Ok(())
}

fn show_changes(lab: &Lab, agents: &mut Vec<Agent>, findings: &mut Findings) -> Result<()> {
    println!("{}", bold("Changes while requests to all of them go on"));
    let web = example::web();
    let pods: Vec<&str> = web.members().collect();
    let targets: Vec<_> = frontends()
        .map(|(service, protocol, family, port)| (protocol, service.frontend(family, port)))
        .collect();
    let mut open = connection_to(lab, "web-3", &web)?;
    let load = Load::start(lab.namespace("client"), 2, &targets);
    let mut rows = Vec::new();
    let mut step = |what: &str, took: Option<Duration>, excluded: Option<&str>| -> Result<()> {
        // Requests under way when the change was made may still end at the old place.
        load.wait_for(8)?;
        let on_the_way = load.take();
        load.wait_for(REQUESTS_IN_STEP)?;
        let mut report = load.take();
        let count = |pod: &str| report.answered.get(pod).map_or(0, Vec::len);
        for &pod in &pods {
            let wanted = excluded != Some(pod);
            let but = if wanted {
                "got no request"
            } else {
                "still got new requests"
            };
            findings.check((count(pod) > 0) == wanted, || format!("{what}: {pod} {but}"));
        }
        let counts = pods.iter().map(|pod| count(pod).to_string());
        let took = took.map_or("-".to_owned(), |took| format!("{} ms", took.as_millis()));
        let mut row = vec![what.to_owned(), took];
        row.extend(counts);
        row.push(micros(percentile(&report.latencies(), 0.99)));
        report.add(on_the_way);
        row.push((report.ok() + report.failed).to_string());
        row.push(report.failed.to_string());
        rows.push(row);
        findings.take_in(what, &report);
        Ok(())
    };

    step("as described", None, None)?;
    step(
        "web scaled down: web-3 gone",
        Some(scale(lab, &web.clone().without("web-3"))?),
        Some("web-3"),
    )?;
    let still = open.ask();
    step("web scaled up: web-3 back", Some(scale(lab, &web)?), None)?;
    let (agent, took) = restart(lab, agents.remove(0))?;
    agents.insert(0, agent);
    step("agent on node-a killed, started again", Some(took), None)?;
    findings.take_in("while the load stopped", &load.stop());
    findings.check(still.as_ref().is_ok_and(|answer| answer.backend == "web-3"), || {
        format!("the connection to web-3 that was open when it was removed: {still:?}")
    });
    let heading: Vec<&str> = ["WHAT HAPPENED", "WITHIN"]
        .into_iter()
        .chain(pods)
        .chain(["P99", "REQUESTS", "LOST"])
        .collect();
    println!("{}", table(&heading, 1, rows));
    if still.is_ok() {
        println!("  A connection that was open to web-3 went on while web-3 was gone from the Service.\n");
    }
    Ok(())
}

/// A connection through the Service that fell on a given pod.
fn connection_to(lab: &Lab, pod: &str, service: &Service) -> Result<Connection> {
    lab.namespace("client").run(|| {
        for _ in 0..200 {
            let mut connection = Connection::open(service.frontend(Family::V4, 80))?;
            if connection.ask()?.backend == pod {
                return Ok(connection);
            }
        }
        bail!("none of 200 connections to {} reached {pod}", service.full_name())
    })
}

/// Changes a Service; the time is that until the tables of both nodes show it, reading them included.
fn scale(lab: &Lab, service: &Service) -> Result<Duration> {
    let start = Instant::now();
    lab.apply(service)?;
    lab.wait_for_service_everywhere(service)?;
    Ok(start.elapsed())
}

fn restart(lab: &Lab, agent: Agent) -> Result<(Agent, Duration)> {
    let (node, options) = (agent.node().to_owned(), agent.options().clone());
    let start = Instant::now();
    agent.kill()?;
    let agent = lab.start_agent_with(&node, options)?;
    Ok((agent, start.elapsed()))
}

fn conclude(findings: &Findings) -> Result<()> {
    if findings.problems.is_empty() {
        println!(
            "{}",
            good(&format!(
                "All as it must be: {} requests, none lost.",
                findings.requests
            ))
        );
        return Ok(());
    }
    for problem in &findings.problems {
        println!("{}", bad(problem));
    }
    bail!("{} things were not as they must be", findings.problems.len())
}

fn micros(duration: Duration) -> String {
    format!("{} us", duration.as_micros())
}
