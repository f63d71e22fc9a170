//! The ways that traffic takes from one pod to another on one node, each in a lab of its own.

use std::{
    fmt, fs,
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::{
    iptables, manifests, nftables,
    traffic::{self, Sample, Server},
    workload::Workload,
};
use crate::lab::{Agent, AgentOptions, Lab, address::POD_NETWORK_V4, wait_until};

/// How long a way may take until it is ready.
const PATIENCE: Duration = Duration::from_mins(2);

/// What stands between the pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Proxy {
    /// Nothing: pod to pod
    #[value(skip)]
    None,
    /// This proxy
    Ours,
    /// Rules as kube-proxy's nftables mode makes them
    Nftables,
    /// Rules as kube-proxy's iptables mode makes them
    Iptables,
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "direct",
            Self::Ours => "this proxy",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// A standing way. Fields are dropped in this order: nothing outlives the lab it is in.
#[derive(Debug)]
pub(super) struct Way {
    /// What stands between the pods
    pub(super) proxy: Proxy,
    /// How many Services there are
    pub(super) services: u32,
    target: SocketAddr,
    core: usize,
    _server: Server,
    _agent: Option<Agent>,
    lab: Lab,
}

impl Way {
    /// Builds the lab, starts the server and makes the Services, and waits until the measured one answers.
    ///
    /// # Errors
    /// A tool or the agent failed; the message says which.
    pub(super) fn build(proxy: Proxy, services: u32, core: usize) -> Result<Self> {
        let lab = Lab::builder().node("node", &["client", "server"]).build()?;
        let pod = lab.pod("server");
        let endpoints = [8080, 8081].map(|port| SocketAddrV4::new(pod.addresses().v4, port));
        let server = Server::start(pod.namespace(), endpoints, core)?;
        let workload = Workload { services, endpoints };
        let node = lab.node("node").namespace();
        let mut agent = None;
        match proxy {
            Proxy::None => (),
            Proxy::Ours => {
                fs::create_dir_all(lab.manifests())?;
                fs::write(lab.manifests().join("bench.yaml"), manifests::render(workload))?;
                agent = Some(start_agent(&lab, services)?);
            }
            Proxy::Nftables => {
                node.tool("nft", &["--file", "-"], &nftables::render(workload, POD_NETWORK_V4))?;
            }
            Proxy::Iptables => {
                node.tool(
                    "iptables-legacy-restore",
                    &["--wait"],
                    &iptables::render(workload, POD_NETWORK_V4),
                )?;
            }
        }
        let target = if proxy == Proxy::None {
            endpoints[0]
        } else {
            workload.frontend()
        };
        let way = Self {
            proxy,
            services,
            target: target.into(),
            core,
            _server: server,
            _agent: agent,
            lab,
        };
        let client = way.lab.pod("client").namespace();
        wait_until(&format!("{} answers through {proxy}", way.target), PATIENCE, || {
            client.run(|| traffic::connect_once(way.target)).ok()
        })?;
        Ok(way)
    }

    /// Measures once.
    ///
    /// # Errors
    /// A request failed.
    pub(super) fn measure(&self, time: Duration) -> Result<Sample> {
        let client = self.lab.pod("client").namespace();
        client
            .run(|| traffic::measure(self.target, time, self.core))
            .with_context(|| format!("{} with {} Services", self.proxy, self.services))
    }
}

/// Starts the agent and waits until its tables hold every Service.
fn start_agent(lab: &Lab, services: u32) -> Result<Agent> {
    let mut agent = lab.spawn_agent("node", AgentOptions::default())?;
    wait_until(&format!("the agent serves {services} Services"), PATIENCE, || {
        if let Some(status) = agent.ended().transpose() {
            return Some(status.and_then(|status| {
                bail!(
                    "the agent ended with {status}: {}",
                    fs::read_to_string(lab.agent_log("node")).unwrap_or_default()
                )
            }));
        }
        (served(lab)? >= services as usize).then_some(Ok(()))
    })??;
    Ok(agent)
}

/// How many frontends the tables hold; `None` while there are no tables.
fn served(lab: &Lab) -> Option<usize> {
    let listing = lab.ask_agent("node", "services", &["-o", "json"]).ok()?;
    let listing: serde_json::Value = serde_json::from_str(&listing).ok()?;
    Some(listing["services"].as_array()?.len())
}
