//! One node with pods, and a test API server that its agent watches.

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use proxy_tests::{
    api_server::{ApiServer, Resource},
    lab::{Agent, AgentOptions, Family, Lab, Load, Protocol, Service, address},
};
use serde_json::json;

use crate::{log::Log, tables};

pub(super) const NODE: &str = "node-a";
/// Port that the pods listen on
pub(super) const PORT: u16 = 8080;
/// Threads of a load: enough that a moment's gap is met.
const LOAD: usize = 2;

/// A lab with one node, and a pod `client` and two that serve.
pub(super) fn lab(scenario: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    Lab::builder().node(NODE, &["client", "web-1", "web-2"]).run(|lab| {
        lab.serve("web-1", PORT)?;
        lab.serve("web-2", PORT)?;
        scenario(lab)
    })
}

/// `default/web`, TCP and UDP, in both families, with these pods.
pub(super) fn web(lab: &Lab, pods: &[&str]) -> Service {
    let pods: Vec<_> = pods.iter().map(|pod| lab.pod(pod)).collect();
    Service::new("default", "web", address::cluster(80))
        .port("http", Protocol::Tcp, 80, PORT)
        .port("dns", Protocol::Udp, 53, PORT)
        .pods(&pods)
}

/// The frontends of [`web`].
pub(super) fn frontends(web: &Service) -> Vec<(Protocol, SocketAddr)> {
    let of_family = |family| {
        [
            (Protocol::Tcp, web.frontend(family, 80)),
            (Protocol::Udp, web.frontend(family, 53)),
        ]
    };
    Family::ALL.into_iter().flat_map(of_family).collect()
}

/// Requests from the client to all frontends of [`web`] until stopped.
pub(super) fn load(lab: &Lab, web: &Service) -> Load {
    Load::start(lab.namespace("client"), LOAD, &frontends(web))
}

/// Sends a request to each frontend of [`web`]; only one of these pods may answer.
pub(super) fn expect_answers(lab: &Lab, web: &Service, pods: &[&str]) -> Result<()> {
    for (protocol, frontend) in frontends(web) {
        let answer = lab.request("client", protocol, frontend)?;
        ensure!(
            pods.contains(&answer.backend.as_str()),
            "{protocol} {frontend}: {answer:?}"
        );
    }
    Ok(())
}

/// The lab and its API server.
pub(super) struct Cluster<'a> {
    pub(super) lab: &'a Lab,
    pub(super) server: ApiServer,
    kubeconfig: PathBuf,
}

/// Runs a scenario in a cluster.
pub(super) fn cluster(scenario: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
    cluster_of(ApiServer::on, scenario)
}

/// Runs a scenario in a cluster whose API server takes TLS and a token.
pub(super) fn secure_cluster(scenario: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
    cluster_of(ApiServer::secure, scenario)
}

fn cluster_of(
    start: fn(TcpListener) -> std::io::Result<ApiServer>,
    scenario: impl FnOnce(&mut Cluster<'_>) -> Result<()>,
) -> Result<()> {
    lab(|lab| {
        let listener = lab.node(NODE).namespace().run(|| TcpListener::bind("127.0.0.1:0"))?;
        let server = start(listener)?;
        let kubeconfig = server.kubeconfig(&lab.directory())?;
        scenario(&mut Cluster {
            lab,
            server,
            kubeconfig,
        })
    })
}

impl Cluster<'_> {
    /// Creates or changes a Service and its EndpointSlices; the lab's manifests follow, for [`tables::wait_for_plan`].
    pub(super) fn apply(&self, service: &Service) -> Result<()> {
        self.lab.apply(service)?;
        // As the controllers do: the Service first.
        self.server.apply(service.service());
        for family in Family::ALL {
            self.server.apply(service.slice(family));
        }
        Ok(())
    }

    /// Deletes a Service and its EndpointSlices.
    pub(super) fn delete(&self, service: &Service) -> Result<()> {
        self.lab.delete(service)?;
        let (namespace, name) = service.key();
        self.server.delete(Resource::Services, namespace, name);
        for family in Family::ALL {
            let name = service.slice(family).metadata.name.unwrap_or_default();
            self.server.delete(Resource::EndpointSlices, namespace, &name);
        }
        Ok(())
    }

    /// Creates or changes the Node object of a node, with its addresses in the lab or others.
    pub(super) fn apply_node(&self, name: &str, addresses: &[String]) {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        self.server.apply(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses},
        }));
    }

    /// Starts the agent and waits until it serves all that was applied.
    pub(super) fn start_agent(&self) -> Result<Agent> {
        self.lab.start_agent_with(NODE, self.options())
    }

    /// Starts the agent without waiting.
    pub(super) fn spawn_agent(&self) -> Result<Agent> {
        self.lab.spawn_agent(NODE, self.options())
    }

    pub(super) fn options(&self) -> AgentOptions {
        AgentOptions {
            kubeconfig: Some(self.kubeconfig.clone()),
            ..AgentOptions::default()
        }
    }

    /// The agent's log from now on.
    pub(super) fn log(&self) -> Log {
        Log::from_now(self.lab, NODE)
    }

    /// See [`tables::snapshot`].
    pub(super) fn snapshot(&self) -> Result<Vec<String>> {
        tables::snapshot(self.lab, NODE)
    }

    /// See [`tables::wait_for_plan`].
    pub(super) fn wait_for_plan(&self) -> Result<()> {
        tables::wait_for_plan(self.lab, NODE)
    }

    /// Lets the API server listen again at its address in the node.
    pub(super) fn restart_server(&mut self) -> Result<()> {
        let server = &mut self.server;
        Ok(self.lab.node(NODE).namespace().run(|| server.restart())?)
    }
}
