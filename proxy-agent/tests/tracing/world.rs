//! The Services, endpoints, clients and configurations that packets are traced through.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::trace::Tracer;

/// What kind of frontend a packet is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Cluster,
    External,
    LoadBalancer,
    NodePort,
}

pub(crate) const KINDS: [Kind; 4] = [Kind::Cluster, Kind::External, Kind::LoadBalancer, Kind::NodePort];

pub(crate) const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// An endpoint: those up to 10 are on this node.
    pub(crate) fn endpoint(self, number: u8) -> SocketAddr {
        let text = format!("{}:8080", self.written(&self.endpoint_address(number)));
        text.parse().expect("an address and port")
    }

    fn endpoint_address(self, number: u8) -> String {
        let node = if number <= 10 { 1 } else { 2 };
        match self {
            Self::V4 => format!("10.244.{node}.{number}"),
            Self::V6 => format!("fd00:10:244:{node}::{number:x}"),
        }
    }

    /// An address as it is written in front of a port.
    pub(crate) fn written(self, address: &str) -> String {
        match self {
            Self::V4 => address.to_owned(),
            Self::V6 => format!("[{address}]"),
        }
    }
}

/// The endpoints of a Service: number, conditions, zone that they are hinted for.
type Endpoint = (u8, State, &'static str);

#[derive(Clone, Copy, Debug)]
enum State {
    Ready,
    Draining,
    /// Serves, is not ready, does not terminate
    Unready,
    /// Terminates and does not serve
    Dead,
}
use State::{Dead, Draining, Ready, Unready};

/// Endpoints, and what behaviour.md 2 makes of them on this node, which is in zone `here`.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    endpoints: &'static [Endpoint],
    pub(crate) cluster: &'static [u8],
    pub(crate) local: &'static [u8],
}

const fn shape(
    name: &'static str,
    endpoints: &'static [Endpoint],
    cluster: &'static [u8],
    local: &'static [u8],
) -> Shape {
    Shape {
        name,
        endpoints,
        cluster,
        local,
    }
}

pub(crate) const SHAPES: [Shape; 9] = [
    shape("none", &[], &[], &[]),
    shape("remote", &[(11, Ready, ""), (12, Ready, "")], &[11, 12], &[]),
    shape("both", &[(1, Ready, ""), (11, Ready, "")], &[1, 11], &[1]),
    shape("local", &[(1, Ready, "")], &[1], &[1]),
    // 2.7: the Local list falls back by itself.
    shape("leaving", &[(1, Draining, ""), (11, Ready, "")], &[11], &[1]),
    // 2.6, 4.5
    shape(
        "draining",
        &[(1, Draining, ""), (11, Draining, "there")],
        &[1, 11],
        &[1],
    ),
    shape("elsewhere", &[(11, Draining, ""), (12, Dead, "")], &[11], &[]),
    // 2.10
    shape(
        "unusable",
        &[(1, Unready, ""), (2, Dead, ""), (11, Unready, "")],
        &[],
        &[],
    ),
    // 2.5, 2.7: hints choose for the Cluster list only, also where short-circuits lead there (5.6).
    shape(
        "hinted",
        &[(1, Ready, "there"), (2, Ready, "there"), (11, Ready, "here")],
        &[11],
        &[1, 2],
    ),
];

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Pod,
    Uplink,
    Host,
}

impl Origin {
    pub(crate) const fn argument(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Uplink => "uplink",
            Self::Host => "host",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: &'static str,
    pub(crate) origin: Origin,
    sources: [&'static str; 2],
    pub(crate) is_in_cluster_range: bool,
    pub(crate) is_in_node_range: bool,
}

impl Client {
    pub(crate) const fn source(&self, family: Family) -> &'static str {
        match family {
            Family::V4 => self.sources[0],
            Family::V6 => self.sources[1],
        }
    }
}

const fn client(
    name: &'static str,
    origin: Origin,
    sources: [&'static str; 2],
    is_in_cluster_range: bool,
    is_in_node_range: bool,
) -> Client {
    Client {
        name,
        origin,
        sources,
        is_in_cluster_range,
        is_in_node_range,
    }
}

pub(crate) const CLIENTS: [Client; 7] = [
    client("pod", Origin::Pod, ["10.244.1.200", "fd00:10:244:1::200"], true, true),
    // 5.2: one that may get itself.
    client("endpoint", Origin::Pod, ["10.244.1.1", "fd00:10:244:1::1"], true, true),
    // One that only the device tells.
    client("stray pod", Origin::Pod, ["10.9.0.9", "fd00:9::9"], false, false),
    client(
        "pod of another node",
        Origin::Uplink,
        ["10.244.2.200", "fd00:10:244:2::200"],
        true,
        false,
    ),
    client("outsider", Origin::Uplink, ["192.0.2.50", "2001:db8::50"], false, false),
    client("host", Origin::Host, ["172.30.0.1", "fd00:172:30::1"], false, false),
    // A process that uses the address of the pods' bridge: by its range, a pod.
    client(
        "host in the pods' range",
        Origin::Host,
        ["10.244.1.254", "fd00:10:244:1::254"],
        true,
        true,
    ),
];

/// How pods are told from others (behaviour.md 5.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detection {
    ClusterRange,
    /// Mode ClusterCIDR without a range
    Nothing,
    NodeRange,
    Bridge,
    InterfacePrefix,
}

pub(crate) const DETECTIONS: [Detection; 5] = [
    Detection::ClusterRange,
    Detection::Nothing,
    Detection::NodeRange,
    Detection::Bridge,
    Detection::InterfacePrefix,
];

impl Detection {
    const fn config(self) -> &'static str {
        match self {
            Self::ClusterRange => "detectLocalMode: ClusterCIDR\nclusterCIDR: 10.244.0.0/16,fd00:10:244::/56",
            Self::Nothing => "detectLocalMode: ClusterCIDR",
            Self::NodeRange => "detectLocalMode: NodeCIDR",
            Self::Bridge => "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            Self::InterfacePrefix => "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
        }
    }
}

/// A packet to a Service's port.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) shape: &'static Shape,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
    pub(crate) client: &'static Client,
    pub(crate) detection: Detection,
    pub(crate) masquerade_all: bool,
    pub(crate) family: Family,
    pub(crate) protocol: &'static str,
}

impl Case {
    /// A case of defaults.
    pub(crate) const fn plain(kind: Kind, shape: &'static Shape, client: &'static Client, family: Family) -> Self {
        Self {
            kind,
            shape,
            internal_local: false,
            external_local: false,
            client,
            detection: Detection::ClusterRange,
            masquerade_all: false,
            family,
            protocol: "tcp",
        }
    }

    /// Whether it is translated before there is a packet: then the kernel takes an address of the node towards the endpoint, and
    /// nobody needs to be masqueraded.
    pub(crate) fn is_by_socket(&self) -> bool {
        self.client.origin == Origin::Host && self.protocol != "sctp"
    }

    /// Name of its Service.
    pub(crate) fn service(&self) -> String {
        service_name(self.shape, self.internal_local, self.external_local)
    }

    /// Number of its Service.
    fn number(&self) -> usize {
        let shape = SHAPES
            .iter()
            .position(|shape| shape.name == self.shape.name)
            .expect("a shape");
        4 * shape + 2 * usize::from(self.internal_local) + usize::from(self.external_local) + 1
    }

    /// The port that it is to.
    pub(crate) fn port(&self) -> u16 {
        match self.kind {
            Kind::NodePort => node_port(self.number()),
            Kind::Cluster | Kind::External | Kind::LoadBalancer => 80,
        }
    }

    /// The arguments of a packet of a protocol to a port of its frontend's address.
    pub(crate) fn arguments(&self, protocol: &str, port: Option<u16>) -> Vec<String> {
        let address = self.family.written(&address(self.kind, self.family, 1, self.number()));
        let destination = port.map_or(address.clone(), |port| format!("{address}:{port}"));
        let origin = self.client.origin.argument();
        packet(origin, protocol, self.client.source(self.family), &destination)
    }
}

/// The arguments of a packet.
pub(crate) fn packet(from: &str, protocol: &str, source: &str, destination: &str) -> Vec<String> {
    let arguments = [
        "--from",
        from,
        "--protocol",
        protocol,
        "--source",
        source,
        "--destination",
        destination,
    ];
    arguments.map(str::to_owned).into()
}

fn service_name(shape: &Shape, internal_local: bool, external_local: bool) -> String {
    let policy = |is_local: bool| if is_local { "local" } else { "cluster" };
    format!("{}-{}-{}", shape.name, policy(internal_local), policy(external_local))
}

fn node_port(number: usize) -> u16 {
    30_100 + u16::try_from(number).expect("few Services")
}

/// A Service's address of a kind; `group` keeps those of different tests apart.
fn address(kind: Kind, family: Family, group: usize, number: usize) -> String {
    match (kind, family) {
        (Kind::Cluster, Family::V4) => format!("10.96.{group}.{number}"),
        (Kind::Cluster, Family::V6) => format!("fd00:96::{group}:{number}"),
        (Kind::External, Family::V4) => format!("203.0.113.{number}"),
        (Kind::External, Family::V6) => format!("2001:db8:1:{}::{number}", group - 1),
        (Kind::LoadBalancer, Family::V4) => format!("198.51.{}.{number}", 99 + group),
        (Kind::LoadBalancer, Family::V6) => format!("2001:db8:2:{}::{number}", group - 1),
        (Kind::NodePort, Family::V4) => "172.30.0.1".to_owned(),
        (Kind::NodePort, Family::V6) => "fd00:172:30::1".to_owned(),
    }
}

/// Manifests of clusters and configurations, in a directory.
pub(crate) struct World(TempDir);

impl World {
    pub(crate) fn new() -> Self {
        let world = Self(tempfile::tempdir().expect("a directory"));
        for (index, shape) in SHAPES.iter().enumerate() {
            let mut objects = Vec::new();
            for policy in 0..4 {
                let (internal, external) = (policy & 2 != 0, policy & 1 != 0);
                let name = service_name(shape, internal, external);
                objects.push(service(&name, 4 * index + policy + 1, internal, external));
                objects.extend(slices(&name, &PROTOCOLS, shape.endpoints));
            }
            world.write(shape.name, objects);
        }
        let mut objects = Vec::new();
        for (number, name, endpoints) in [(1, "dns", 1), (2, "guarded", 1), (3, "guarded-none", 0)] {
            objects.push(dns(name, number));
            objects.extend(slices(name, &["udp"], &[(11, Ready, "")][..endpoints]));
        }
        world.write("dns", objects);
        for detection in DETECTIONS {
            for masquerade_all in [false, true] {
                let text = format!(
                    "{}\nmode: nftables\nnftables: {{masqueradeAll: {masquerade_all}}}",
                    detection.config()
                );
                write_config(&world.config(detection, masquerade_all), &text);
            }
        }
        world
    }

    fn config(&self, detection: Detection, masquerade_all: bool) -> PathBuf {
        self.0.path().join(format!("{detection:?}-{masquerade_all}"))
    }

    /// Writes manifests of a cluster.
    fn write(&self, cluster: &str, mut objects: Vec<Value>) {
        objects.extend([node(), ranges()]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let directory = self.0.path().join(cluster);
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("all.json"), list.to_string()).expect("a file");
    }

    /// A tracer of a cluster with this configuration, on a node that knows its addresses from its Node object. Clusters
    /// have the name of a [`Shape`], or `dns`.
    pub(crate) fn tracer(&self, cluster: &str, detection: Detection, masquerade_all: bool) -> Tracer {
        Tracer {
            manifests: self.0.path().join(cluster),
            config: self.config(detection, masquerade_all),
            node_addresses: Vec::new(),
        }
    }

    /// A tracer of cluster `dns` with this line in the configuration, on a node with these addresses.
    pub(crate) fn tracer_with(&self, config: &str, node_addresses: &[&str]) -> Tracer {
        let file = self.0.path().join("config");
        write_config(&file, config);
        Tracer {
            manifests: self.0.path().join("dns"),
            config: file,
            node_addresses: node_addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

fn write_config(file: &Path, text: &str) {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration";
    fs::write(file, format!("{head}\n{text}\n")).expect("a file");
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "here"}},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": "172.30.0.1"}, {"type": "InternalIP", "address": "fd00:172:30::1"},
        ]},
    })
}

fn ranges() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112", "fd00:96::200:0/112"]},
    })
}

fn both(kind: Kind, group: usize, number: usize) -> [String; 2] {
    [Family::V4, Family::V6].map(|family| address(kind, family, group, number))
}

/// A Service with every kind of frontend and a port of each protocol.
fn service(name: &str, number: usize, internal_local: bool, external_local: bool) -> Value {
    let policy = |is_local: bool| if is_local { "Local" } else { "Cluster" };
    let port = |protocol: &&str| json!({"name": protocol, "port": 80, "protocol": protocol.to_uppercase(), "nodePort": node_port(number)});
    let ingress = both(Kind::LoadBalancer, 1, number).map(|ip| json!({"ip": ip}));
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": both(Kind::Cluster, 1, number),
            "externalIPs": both(Kind::External, 1, number),
            "internalTrafficPolicy": policy(internal_local), "externalTrafficPolicy": policy(external_local),
            "ports": PROTOCOLS.iter().map(port).collect::<Vec<_>>(),
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// A Service with a UDP port, whose load balancer lets in some sources of IPv4.
fn dns(name: &str, number: usize) -> Value {
    let node_port = [30_053, 30_054, 30_055][number - 1];
    let ingress = both(Kind::LoadBalancer, 2, number).map(|ip| json!({"ip": ip}));
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": both(Kind::Cluster, 2, number),
            "loadBalancerSourceRanges": ["192.0.2.0/24", "172.30.0.0/24"],
            "ports": [{"name": "udp", "port": 53, "protocol": "UDP", "nodePort": node_port}],
        },
        "status": {"loadBalancer": {"ingress": ingress}},
    })
}

/// A slice of each family.
fn slices(service: &str, ports: &[&str], endpoints: &[Endpoint]) -> [Value; 2] {
    [Family::V4, Family::V6].map(|family| {
        let endpoints = endpoints.iter().map(|(number, state, zone)| {
            let (ready, serving, terminating) = match state {
                Ready => (true, true, false),
                Draining => (false, true, true),
                Unready => (false, true, false),
                Dead => (false, false, true),
            };
            let zones = [*zone].into_iter().filter(|zone| !zone.is_empty());
            json!({
                "addresses": [family.endpoint_address(*number)],
                "nodeName": if *number <= 10 { "node-a" } else { "node-b" },
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "hints": {"forZones": zones.map(|zone| json!({"name": zone})).collect::<Vec<_>>()},
            })
        });
        let port = |name: &&str| json!({"name": name, "port": 8080, "protocol": name.to_uppercase()});
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "ns", "name": format!("{service}-{family:?}").to_lowercase(),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": format!("IP{family:?}").replace("IPV", "IPv"),
            "ports": ports.iter().map(port).collect::<Vec<_>>(),
            "endpoints": endpoints.collect::<Vec<_>>(),
        })
    })
}
