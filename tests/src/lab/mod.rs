//! Clusters of network namespaces on one machine: nodes, pods behind veths, a wire between the nodes, and the real agent
//! on each node.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use proxy_tests::lab::{Family, Lab, Protocol, Service, address};
//!
//! Lab::builder().node("node-a", &["client", "web-1"]).node("node-b", &["web-2"]).run(|lab| {
//!     lab.serve("web-1", 8080)?;
//!     lab.serve("web-2", 8080)?;
//!     let web = Service::new("default", "web", address::cluster(80))
//!         .port("http", Protocol::Tcp, 80, 8080)
//!         .pods(&[lab.pod("web-1"), lab.pod("web-2")]);
//!     lab.apply(&web)?;
//!     lab.start_agents()?;
//!     let answer = lab.tcp_request("client", web.frontend(Family::V4, 80))?;
//!     assert!(answer.backend.starts_with("web-"));
//!     Ok(())
//! })
//! # }
//! ```
//!
//! If [`Builder::shape`] says nothing else it is that of a point-to-point CNI with native routing (Calico, kindnet): a pod has
//! a /32 and a /128 address and a link-local gateway; its node has an address-less veth and a host route. See [`address`] for
//! who has which address.
//!
//! Traffic from outside takes a client there, Nodes for the agents to know their addresses by, and addresses that are
//! announced:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use proxy_tests::lab::{AgentOptions, Cni, Family, FrontendKind, Interconnect, Lab, Policy, Protocol, Service, Shape, address};
//!
//! let shape = Shape { cni: Cni::PointToPoint, interconnect: Interconnect::Vxlan };
//! let nodes = Lab::builder().node("node-a", &["web-1"]).node("node-b", &["web-2"]);
//! nodes.shape(shape).far_outside().run(|lab| {
//!     lab.serve("web-1", 8080)?;
//!     lab.serve("node-b", 8080)?;
//!     let web = Service::new("default", "web", address::cluster(80))
//!         .port("http", Protocol::Tcp, 80, 8080)
//!         .node_port("http", 30080)
//!         .balancer(address::balancer(80), None)
//!         .external_policy(Policy::Local)
//!         .pods(&[lab.pod("web-1")])
//!         .host(lab.node("node-b"));
//!     lab.announce(address::balancer(80), &["node-a", "node-b"])?;
//!     lab.apply(&web)?;
//!     lab.apply_nodes()?;
//!     let file = lab.write_configuration("proxy", &serde_json::json!({ "clusterCIDR": address::POD_NETWORK_V4 }))?;
//!     lab.start_agents_with(&AgentOptions::configured(&file))?;
//!     for kind in [FrontendKind::NodePort, FrontendKind::LoadBalancer] {
//!         let to = web.frontend_of(kind, Family::V6, "http", lab.node("node-a"));
//!         let answer = lab.tcp_request("outside", to)?;
//!         assert_eq!(answer.peer.ip(), address::OUTSIDE.v6);
//!     }
//!     Ok(())
//! })
//! # }
//! ```
//!
//! All that a lab made goes when it is dropped; what a killed process left goes when the next lab is built.

pub mod address;
mod agent;
mod builder;
mod cgroup;
mod client;
mod cni;
mod command;
pub mod example;
mod fabric;
mod flood;
mod interconnect;
pub mod kube_proxy;
mod load;
mod manifest;
mod namespace;
mod obstacle;
mod owner;
pub mod raw;
mod report;
pub mod server;
mod service;
mod shape;
mod standing;
mod statistics;
pub mod strict;
mod verify;
mod xdp;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

pub use address::{Addresses, Family};
pub use agent::{Agent, AgentOptions, agent_binary, other_agent_binary};
pub use builder::Builder;
use cgroup::Cgroups;
pub use client::{Answer, Connection, RequestError, UdpClient, request, tcp_request, udp_request};
use cni::Attachment;
use fabric::Fabric;
pub use fabric::Outside;
pub use flood::flood;
pub use kube_proxy::KubeProxy;
pub use load::{Load, LoadReport};
pub use namespace::Namespace;
pub use obstacle::obstacle;
use owner::Estate;
use report::Request;
use server::Server;
pub use service::{FrontendKind, IpMode, Policy, Protocol, Service, State};
pub use shape::{BridgeNetfilter, Cni, Interconnect, Shape};
pub use standing::{Standing, standing};
pub use statistics::{chi_square, percentile};
pub use xdp::{ForeignXdp, Xdp, under_xdp};

/// How long anything in a lab may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A pod: a namespace whose `eth0` leads to its node.
#[derive(Debug)]
pub struct Pod {
    name: String,
    node: String,
    node_number: u8,
    attachment: Attachment,
    addresses: Addresses,
    namespace: Namespace,
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its node.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its addresses.
    pub const fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Its namespace.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The device on its node that leads to it; a macvlan pod has none.
    pub fn host_device(&self) -> Option<String> {
        match self.attachment {
            Attachment::Shape => Some(format!("veth-{}", self.name)),
            Attachment::Macvlan => None,
        }
    }
}

/// A node: a namespace with an uplink `eth0` on the wire, perhaps a second one `eth1`, and a veth to each of its pods.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    namespace: Namespace,
    shape: Shape,
    second_uplink: bool,
    pods: u8,
}

impl Node {
    /// Its name, the one its agent is told.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its addresses on the wire.
    pub const fn addresses(&self) -> Addresses {
        address::node(self.number)
    }

    /// Its addresses on the second wire.
    ///
    /// # Panics
    /// The lab has no second wire.
    pub fn second_addresses(&self) -> Addresses {
        assert!(self.second_uplink, "this lab has no second wire");
        address::node_on_second_wire(self.number)
    }

    /// Its addresses on each wire.
    pub fn wire_addresses(&self) -> Vec<Addresses> {
        let second = self.second_uplink.then(|| self.second_addresses());
        [self.addresses()].into_iter().chain(second).collect()
    }

    /// Whether an address is the node's own, on whichever device: what a server sees of the node itself, and of clients
    /// that the node masquerades (behaviour.md 5.1), depends on the shape.
    pub fn holds(&self, address: IpAddr) -> bool {
        let Shape { cni, interconnect } = self.shape;
        let inward = [cni.address(self.number), interconnect.address(self.number)];
        let mut own = self
            .wire_addresses()
            .into_iter()
            .chain(inward)
            .flat_map(Addresses::both);
        own.any(|held| held == address)
    }

    /// Its namespace.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

/// A standing cluster.
#[derive(Debug)]
pub struct Lab {
    // Servers end before the estate, which holds the namespaces they are in, is removed.
    servers: Mutex<Vec<Server>>,
    shape: Shape,
    xdp: Option<Xdp>,
    small_tables: bool,
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    fabric: Fabric,
    applied: Mutex<BTreeMap<String, Service>>,
    round: Mutex<u16>,
    /// The build that each node's agent was started with last
    binaries: Mutex<BTreeMap<String, PathBuf>>,
    last_failure: Mutex<Option<Request>>,
    findings: verify::Findings,
    // Cgroups can be removed when all that was in them is gone.
    estate: Estate,
    _cgroups: Option<Cgroups>,
    keep: bool,
}

impl Lab {
    /// Describes a lab.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// All nodes, in the order of the description.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All pods, in the order of the description.
    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// The node of a name; there must be one.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .unwrap_or_else(|| panic!("this lab has no node {name}"))
    }

    /// The pod of a name; there must be one.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods
            .iter()
            .find(|pod| pod.name == name)
            .unwrap_or_else(|| panic!("this lab has no pod {name}"))
    }

    /// Namespace of a pod, a node, the `router`, the `border`, or the client `outside`, by name; there must be one.
    pub fn namespace(&self, name: &str) -> &Namespace {
        let pods = self.pods.iter().map(|pod| (pod.name.as_str(), &pod.namespace));
        let nodes = self.nodes.iter().map(|node| (node.name.as_str(), &node.namespace));
        pods.chain(nodes)
            .chain(self.fabric.namespaces())
            .find_map(|(found, namespace)| (found == name).then_some(namespace))
            .unwrap_or_else(|| panic!("this lab has no {name}"))
    }

    /// Where this lab keeps its files, below /run.
    pub fn directory(&self) -> PathBuf {
        self.estate.directory()
    }

    /// The directory that the agents read Services from.
    pub fn manifests(&self) -> PathBuf {
        self.estate.manifests()
    }

    /// Where the agent of a node pins its maps and links.
    pub fn pin_directory(&self, node: &str) -> PathBuf {
        self.estate.bpffs().join(node)
    }

    /// Where a table of a node is pinned.
    ///
    /// # Errors
    /// It isn't: no agent has run there.
    pub fn pinned_table(&self, node: &str, table: &str) -> Result<PathBuf> {
        let directory = self.pin_directory(node);
        let versions = fs::read_dir(&directory).into_iter().flatten().flatten();
        let mut paths = versions.map(|version| version.path().join("maps").join(table));
        paths
            .find(|path| path.exists())
            .with_context(|| format!("no table {table} below {}", directory.display()))
    }

    /// What the agent of a node printed.
    pub fn agent_log(&self, node: &str) -> PathBuf {
        self.estate.logs().join(format!("{node}.log"))
    }

    /// Starts a server in a pod or node that answers on a port, TCP and UDP, on all its addresses. See [`server`] for what
    /// it can be asked. It ends with the lab, or by [`Self::stop_serving`]. One that listens there already goes on.
    pub fn serve(&self, name: &str, port: u16) -> Result<()> {
        let mut servers = self.servers.lock().expect("no server panicked");
        if servers.iter().any(|server| server.is_at(name, port)) {
            return Ok(());
        }
        let pod = self.pods.iter().find(|pod| pod.name == name).map(Pod::addresses);
        let addresses = match pod {
            Some(addresses) => vec![addresses],
            None if name == "outside" => vec![address::OUTSIDE],
            None => self.node(name).wire_addresses(),
        };
        servers.push(Server::start(self.namespace(name), name, &addresses, port)?);
        Ok(())
    }

    /// Gives a pod of point-to-point veths whole networks of addresses, and starts a server that answers TCP at all of them. It
    /// stands for many pods, to clients of its own node.
    pub fn serve_networks(&self, name: &str, port: u16, networks: &[&str]) -> Result<()> {
        let pod = self.pod(name);
        let device = pod.host_device().context("a pod with a device of its own")?;
        pod.namespace.sysctl(&[("ipv6/bindv6only", "1")])?;
        for network in networks {
            let own = pod
                .addresses
                .of(if network.contains(':') { Family::V6 } else { Family::V4 });
            pod.namespace.ip(&format!("route add local {network} dev lo\n"))?;
            let node = &self.node(&pod.node).namespace;
            node.ip(&format!("route add {network} via {own} dev {device} onlink\n"))?;
        }
        let server = Server::start(&pod.namespace, name, &[address::UNSPECIFIED], port)?;
        self.servers.lock().expect("no server panicked").push(server);
        Ok(())
    }

    /// Ends all servers in a pod.
    pub fn stop_serving(&self, name: &str) {
        self.servers
            .lock()
            .expect("no server panicked")
            .retain(|server| server.name() != name);
    }

    /// One TCP request from a pod (or node, or `outside`): connect, ask, close. A failed one is explained by the report.
    pub fn tcp_request(&self, from: &str, to: SocketAddr) -> Result<Answer, RequestError> {
        self.request(from, Protocol::Tcp, to)
    }

    /// One UDP request from a pod (or node, or `outside`), with a socket of its own.
    pub fn udp_request(&self, from: &str, to: SocketAddr) -> Result<Answer, RequestError> {
        self.request(from, Protocol::Udp, to)
    }

    /// One request of either protocol.
    pub fn request(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Result<Answer, RequestError> {
        let outcome = self.namespace(from).run(|| request(protocol, to));
        self.remember(from, protocol, to, outcome.as_ref().err());
        outcome
    }

    fn remember(&self, from: &str, protocol: Protocol, to: SocketAddr, failure: Option<&RequestError>) {
        if failure.is_some() {
            let from = from.to_owned();
            *self.last_failure.lock().expect("nobody panics here") = Some(Request { from, protocol, to });
        }
    }

    /// Switches checksum and segmentation offloads of every pod's and node's devices on or off, as ethtool -K does.
    pub fn set_offloads(&self, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let switch = |namespace: &Namespace, device: &str| {
            let features = ["tx", "rx", "sg", "tso", "gso", "gro"].map(|feature| [feature, state]);
            let arguments: Vec<&str> = ["-K", device]
                .into_iter()
                .chain(features.into_iter().flatten())
                .collect();
            namespace.tool("ethtool", &arguments, "").map(drop)
        };
        for pod in &self.pods {
            switch(&pod.namespace, "eth0")?;
            if let Some(device) = pod.host_device() {
                switch(&self.node(&pod.node).namespace, &device)?;
            }
        }
        self.nodes.iter().try_for_each(|node| switch(&node.namespace, "eth0"))
    }

    /// Rules of strict nodes that packets met, though no packet between a client, a ClusterIP and a pod may meet them.
    pub fn offended_rules(&self) -> Result<Vec<String>> {
        let rules = self.nodes.iter().map(strict::offended).collect::<Result<Vec<_>>>()?;
        Ok(rules.concat())
    }

    /// Leaves namespaces, agents and files standing when this value is dropped (servers end all the same).
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A poisoned lock is no reason to leave servers behind.
        self.servers
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clear();
        if self.keep {
            return;
        }
        if let Err(error) = self.estate.remove() {
            eprintln!("lab: removing {}: {error:#}", self.estate.prefix());
        }
    }
}

/// Waits until `check` gives a value, looking again every few milliseconds; one that takes long gets pauses as long, for what is
/// waited for needs the processor, too.
///
/// # Errors
/// It didn't within `patience`; the message says what was waited for.
pub fn wait_until<T>(what: &str, patience: Duration, mut check: impl FnMut() -> Option<T>) -> Result<T> {
    const SHORTEST: Duration = Duration::from_millis(2);
    const LONGEST: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + patience;
    loop {
        let start = Instant::now();
        if let Some(value) = check() {
            return Ok(value);
        }
        let now = Instant::now();
        if now >= deadline {
            bail!("waited {patience:?} in vain until {what}");
        }
        thread::sleep((now - start).clamp(SHORTEST, LONGEST));
    }
}
