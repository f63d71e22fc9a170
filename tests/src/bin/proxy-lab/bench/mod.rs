//! `bench`: latency and throughput from pod to pod directly, through this proxy, and through the rules that kube-proxy
//! would write, at several numbers of Services. All ways stand at once and are measured in turn, so that what else the
//! machine does meets them alike.

mod measure;
mod rules;

use std::{
    fmt::{self, Write as _},
    fs,
    net::{SocketAddr, SocketAddrV4},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use proxy_tests::lab::{Addresses, Agent, Lab, Protocol, Service, address};
use serde::Serialize;

use self::{measure::Round, rules::Rule};
use crate::table::{bold, table};

/// The measured Service
const SERVICE: Addresses = address::cluster(80);
/// Ports of the measured Service and of the pod behind it
const PORT: u16 = 80;
const POD_PORT: u16 = 8080;

/// What is measured
#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Numbers of Services
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000])]
    services: Vec<u16>,
    /// Ways to compare with the direct one
    #[arg(long, value_delimiter = ',', default_values_t = [Way::Proxy, Way::Nftables, Way::Iptables])]
    ways: Vec<Way>,
    /// Rounds; the table shows their medians
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Where to write the results as JSON
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
}

/// A way from client to server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// To the pod's own address, without any proxy
    Direct,
    /// Through this proxy
    Proxy,
    /// Through kube-proxy's nftables rules
    Nftables,
    /// Through kube-proxy's iptables rules
    Iptables,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Proxy => "proxy",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// Medians over all rounds; times in microseconds, ratios to the direct way of the same round.
#[derive(Debug, Serialize)]
struct Measurement {
    services: u16,
    way: Way,
    connect_p50: f64,
    connect_p99: f64,
    connect_ratio: f64,
    request_p50: f64,
    request_p99: f64,
    request_ratio: f64,
    connections_per_second: f64,
    gigabits_per_second: f64,
}

/// What the JSON file holds.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rounds: usize,
    measurements: Vec<Measurement>,
}

#[derive(Debug, Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    processors: usize,
}

impl Bench {
    pub(crate) fn run(&self) -> Result<()> {
        let machine = machine()?;
        println!(
            "{}",
            bold("TCP over IPv4 between two pods on one node, client and server on one core")
        );
        println!(
            "Linux {}, {} x {}\n",
            machine.kernel, machine.processors, machine.processor
        );
        let mut measurements = Vec::new();
        for &services in &self.services {
            let found = self
                .measure(services)
                .with_context(|| format!("with {services} Services"))?;
            println!(
                "{}",
                bold(&format!("{services} Services, medians of {} rounds", self.rounds))
            );
            println!("{}", show(&found));
            measurements.extend(found);
        }
        let report = Report {
            machine,
            rounds: self.rounds,
            measurements,
        };
        fs::write(&self.json, serde_json::to_string_pretty(&report)? + "\n")
            .with_context(|| format!("writing {}", self.json.display()))?;
        println!("As JSON: {}", self.json.display());
        Ok(())
    }

    fn measure(&self, services: u16) -> Result<Vec<Measurement>> {
        let mut ways = self.ways.clone();
        ways.retain(|&way| way != Way::Direct);
        ways.insert(0, Way::Direct);
        let stands = ways
            .iter()
            .map(|&way| Stand::raise(way, services))
            .collect::<Result<Vec<_>>>()?;
        // The first round fills caches and learns neighbours.
        for stand in &stands {
            stand.round()?;
        }
        let mut rounds: Vec<Vec<Round>> = vec![Vec::new(); stands.len()];
        for _ in 0..self.rounds {
            for (stand, rounds) in stands.iter().zip(&mut rounds) {
                rounds.push(stand.round()?);
            }
        }
        let direct = rounds[0].clone();
        let summaries = ways.into_iter().zip(&rounds);
        Ok(summaries
            .map(|(way, rounds)| summarize(services, way, rounds, &direct))
            .collect())
    }
}

/// One way, standing.
struct Stand {
    lab: Lab,
    target: SocketAddr,
    _agent: Option<Agent>,
}

impl Stand {
    fn raise(way: Way, services: u16) -> Result<Self> {
        let lab = Lab::builder().node("node-a", &["client", "server"]).build()?;
        let pod = SocketAddrV4::new(lab.pod("server").addresses().v4, POD_PORT);
        measure::serve(lab.namespace("server"), pod.into())?;
        // Closed connections must not use up the client's ports.
        lab.namespace("client")
            .sysctl(&[("ipv4/ip_local_port_range", "1024 65535"), ("ipv4/tcp_tw_reuse", "1")])?;
        let frontend = SocketAddrV4::new(SERVICE.v4, PORT);
        let mut rules: Vec<Rule> = (1..services).map(rules::filler).collect();
        // In the middle, where a rule of a list is found on average.
        rules.insert(
            rules.len() / 2,
            Rule {
                frontend,
                endpoint: pod,
            },
        );
        let node = lab.node("node-a").namespace();
        let mut agent = None;
        match way {
            Way::Direct => {}
            Way::Proxy => {
                lab.write_manifest("fillers.yaml", &fillers(services)?)?;
                let service = Service::new("bench", "measured", SERVICE).port("http", Protocol::Tcp, PORT, POD_PORT);
                lab.apply(&service.pods(&[lab.pod("server")]))?;
                agent = Some(lab.start_agent("node-a")?);
            }
            Way::Nftables => rules::nftables(node, &rules)?,
            Way::Iptables => rules::iptables(node, &rules)?,
        }
        let target = if way == Way::Direct { pod } else { frontend };
        Ok(Self {
            lab,
            target: target.into(),
            _agent: agent,
        })
    }

    fn round(&self) -> Result<Round> {
        measure::round(self.lab.namespace("client"), self.target)
    }
}

/// The other Services, as manifests.
fn fillers(services: u16) -> Result<String> {
    let mut text = String::new();
    for Rule { frontend, endpoint } in (1..services).map(rules::filler) {
        let name = frontend.ip().to_string().replace('.', "-");
        write!(
            text,
            "---
apiVersion: v1
kind: Service
metadata: {{namespace: bench, name: s-{name}}}
spec: {{clusterIP: {vip}, clusterIPs: [{vip}], ports: [{{name: http, protocol: TCP, port: {port}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{namespace: bench, name: s-{name}, labels: {{kubernetes.io/service-name: s-{name}}}}}
addressType: IPv4
ports: [{{name: http, protocol: TCP, port: {pod_port}}}]
endpoints: [{{addresses: [{pod}], conditions: {{ready: true}}}}]
",
            vip = frontend.ip(),
            port = frontend.port(),
            pod = endpoint.ip(),
            pod_port = endpoint.port(),
        )?;
    }
    Ok(text)
}

fn summarize(services: u16, way: Way, rounds: &[Round], direct: &[Round]) -> Measurement {
    let value = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect());
    let ratio = |of: fn(&Round) -> f64| {
        median(
            rounds
                .iter()
                .zip(direct)
                .map(|(round, direct)| of(round) / of(direct))
                .collect(),
        )
    };
    let connect_p50 = |round: &Round| round.connect_p50.as_secs_f64() * 1e6;
    let request_p50 = |round: &Round| round.request_p50.as_secs_f64() * 1e6;
    Measurement {
        services,
        way,
        connect_p50: value(connect_p50),
        connect_p99: value(|round| round.connect_p99.as_secs_f64() * 1e6),
        connect_ratio: ratio(connect_p50),
        request_p50: value(request_p50),
        request_p99: value(|round| round.request_p99.as_secs_f64() * 1e6),
        request_ratio: ratio(request_p50),
        connections_per_second: value(|round| round.connections_per_second),
        gigabits_per_second: value(|round| round.bits_per_second / 1e9),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn show(measurements: &[Measurement]) -> String {
    let row = |found: &Measurement| {
        vec![
            found.way.to_string(),
            format!("{:.1} us", found.connect_p50),
            format!("{:.1} us", found.connect_p99),
            format!("{:.3}", found.connect_ratio),
            format!("{:.1} us", found.request_p50),
            format!("{:.1} us", found.request_p99),
            format!("{:.3}", found.request_ratio),
            format!("{:.0}", found.connections_per_second),
            format!("{:.2}", found.gigabits_per_second),
        ]
    };
    let heading = [
        "WAY",
        "CONNECT P50",
        "P99",
        "RATIO",
        "REQUEST P50",
        "P99",
        "RATIO",
        "CONNECTIONS/S",
        "GBIT/S",
    ];
    table(&heading, 1, measurements.iter().map(row).collect())
}

fn machine() -> Result<Machine> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Ok(Machine {
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        processor: model.map_or("unknown processor", |(_, name)| name).to_owned(),
        processors: std::thread::available_parallelism()?.get(),
    })
}
