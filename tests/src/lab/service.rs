//! A short description of a Service and what is behind it.

mod object;

use std::{fmt, net::SocketAddr, time::Duration};

use super::{Addresses, Family, Node, Pod};

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP: for manifests and raw packets, since kernels for tests have no sockets for it
    Sctp,
}

impl Protocol {
    /// Those that clients and servers of a lab speak.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Which of its addresses a Service is used by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendKind {
    /// Its ClusterIP
    ClusterIp,
    /// A node's address and a nodePort
    NodePort,
    /// Its first external IP
    ExternalIp,
    /// The first address of its load balancer
    LoadBalancer,
}

impl FrontendKind {
    /// Those that clients outside the cluster use.
    pub const EXTERNAL: [Self; 3] = [Self::NodePort, Self::ExternalIp, Self::LoadBalancer];
}

/// Which endpoints a policy allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// All
    #[default]
    Cluster,
    /// Those of the node
    Local,
}

/// How packets to an address of a load balancer reach the node (`ipMode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpMode {
    /// With the address as destination; what no `ipMode` means as well
    Vip,
    /// With a node's address and a nodePort as destination
    Proxy,
}

/// What an endpoint's conditions say of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Ready and serving
    #[default]
    Ready,
    /// Serving, but about to end
    Terminating,
    /// About to end and no longer serving
    Ending,
    /// Neither ready nor serving
    Unready,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    number: u16,
    target: u16,
    target_name: Option<String>,
    on_nodes: Option<u16>,
}

#[derive(Clone, Debug)]
struct Member {
    pod: String,
    node: String,
    addresses: Addresses,
    state: State,
    zones: Vec<String>,
    nodes: Vec<String>,
}

/// Description of a dual-stack Service. Its type follows: LoadBalancer if it has addresses of a load balancer, else NodePort
/// if a port has a nodePort, else ClusterIP.
#[derive(Clone, Debug)]
pub struct Service {
    namespace: String,
    name: String,
    cluster: Addresses,
    ports: Vec<Port>,
    members: Vec<Member>,
    external: Vec<Addresses>,
    balancer: Vec<(Addresses, Option<IpMode>)>,
    source_ranges: Vec<String>,
    external_policy: Policy,
    internal_policy: Policy,
    affinity: Option<Duration>,
    slices: usize,
}

impl Service {
    /// A Service without ports and endpoints.
    pub fn new(namespace: &str, name: &str, cluster: Addresses) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster,
            ports: Vec::new(),
            members: Vec::new(),
            external: Vec::new(),
            balancer: Vec::new(),
            source_ranges: Vec::new(),
            external_policy: Policy::Cluster,
            internal_policy: Policy::Cluster,
            affinity: None,
            slices: 1,
        }
    }

    /// Adds a port and the port of the pods behind it.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, number: u16, target: u16) -> Self {
        self.ports.push(Port {
            name: name.to_owned(),
            protocol,
            number,
            target,
            target_name: None,
            on_nodes: None,
        });
        self
    }

    /// Gives a port, by name, a nodePort.
    ///
    /// # Panics
    /// It has no port of that name.
    #[must_use]
    pub fn node_port(mut self, name: &str, number: u16) -> Self {
        self.port_mut(name).on_nodes = Some(number);
        self
    }

    /// Gives the pods' port behind a port, by name, a name of its own: the Service says the name, the slices the number.
    ///
    /// # Panics
    /// It has no port of that name.
    #[must_use]
    pub fn target_name(mut self, name: &str, target: &str) -> Self {
        self.port_mut(name).target_name = Some(target.to_owned());
        self
    }

    fn port_mut(&mut self, name: &str) -> &mut Port {
        let port = self.ports.iter_mut().find(|port| port.name == name);
        port.expect("a port of that name")
    }

    /// Takes a port from it, by name.
    #[must_use]
    pub fn without_port(mut self, name: &str) -> Self {
        self.ports.retain(|port| port.name != name);
        self
    }

    /// Adds an external IP of each family.
    #[must_use]
    pub fn external(mut self, addresses: Addresses) -> Self {
        self.external.push(addresses);
        self
    }

    /// Adds addresses of a load balancer; `None` leaves `ipMode` out.
    #[must_use]
    pub fn balancer(mut self, addresses: Addresses, mode: Option<IpMode>) -> Self {
        self.balancer.push((addresses, mode));
        self
    }

    /// Sets `loadBalancerSourceRanges`.
    #[must_use]
    pub fn source_ranges(mut self, ranges: &[&str]) -> Self {
        self.source_ranges = ranges.iter().map(|&range| range.to_owned()).collect();
        self
    }

    /// Sets `externalTrafficPolicy`.
    #[must_use]
    pub const fn external_policy(mut self, policy: Policy) -> Self {
        self.external_policy = policy;
        self
    }

    /// Sets `internalTrafficPolicy`.
    #[must_use]
    pub const fn internal_policy(mut self, policy: Policy) -> Self {
        self.internal_policy = policy;
        self
    }

    /// Lets clients stay with their endpoint (`sessionAffinity: ClientIP`) for this time, whole seconds.
    #[must_use]
    pub const fn affinity(mut self, timeout: Duration) -> Self {
        self.affinity = Some(timeout);
        self
    }

    /// Spreads the endpoints of each family over this many slices.
    ///
    /// # Panics
    /// That many is none.
    #[must_use]
    pub const fn slices(mut self, count: usize) -> Self {
        assert!(count > 0, "endpoints are in slices");
        self.slices = count;
        self
    }

    /// Sets the pods behind it, in place of those it had.
    #[must_use]
    pub fn pods(mut self, pods: &[&Pod]) -> Self {
        self.members.clear();
        pods.iter().fold(self, |service, pod| {
            service.member(pod.name(), pod.node(), pod.addresses())
        })
    }

    /// Adds a pod in the host network of a node, by the node's name.
    #[must_use]
    pub fn host(self, node: &Node) -> Self {
        self.member(node.name(), node.name(), node.addresses())
    }

    /// Adds a pod behind it, by name, node and addresses.
    #[must_use]
    pub fn member(mut self, pod: &str, node: &str, addresses: Addresses) -> Self {
        self.members.push(Member {
            pod: pod.to_owned(),
            node: node.to_owned(),
            addresses,
            state: State::Ready,
            zones: Vec::new(),
            nodes: Vec::new(),
        });
        self
    }

    /// Takes a pod from behind it, by name.
    #[must_use]
    pub fn without(mut self, pod: &str) -> Self {
        self.members.retain(|member| member.pod != pod);
        self
    }

    /// Sets what the conditions of a pod behind it say.
    ///
    /// # Panics
    /// No such pod is behind it.
    #[must_use]
    pub fn state(mut self, pod: &str, state: State) -> Self {
        self.member_mut(pod).state = state;
        self
    }

    /// Sets the hints of a pod behind it: zones, and nodes, whose clients are to use it.
    ///
    /// # Panics
    /// No such pod is behind it.
    #[must_use]
    pub fn hints(mut self, pod: &str, zones: &[&str], nodes: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let member = self.member_mut(pod);
        (member.zones, member.nodes) = (owned(zones), owned(nodes));
        self
    }

    fn member_mut(&mut self, pod: &str) -> &mut Member {
        let mut members = self.members.iter_mut();
        members
            .find(|member| member.pod == pod)
            .expect("a pod behind the Service")
    }

    /// Its name with the namespace.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Names of the pods behind it.
    pub fn members(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|member| member.pod.as_str())
    }

    /// Its namespace and name.
    pub fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// The address and port that clients in the cluster use.
    pub const fn frontend(&self, family: Family, port: u16) -> SocketAddr {
        self.cluster.with_port(family, port)
    }

    /// The address and port that clients use a port by, given by its name; a nodePort at a given node.
    ///
    /// # Panics
    /// It has no such port, or the port no frontend of this kind.
    pub fn frontend_of(&self, kind: FrontendKind, family: Family, port: &str, node: &Node) -> SocketAddr {
        let port = self.ports.iter().find(|found| found.name == port);
        let port = port.expect("a port of that name");
        let (addresses, number) = match kind {
            FrontendKind::ClusterIp => (Some(self.cluster), Some(port.number)),
            FrontendKind::NodePort => (Some(node.addresses()), port.on_nodes),
            FrontendKind::ExternalIp => (self.external.first().copied(), Some(port.number)),
            FrontendKind::LoadBalancer => (
                self.balancer.first().map(|(addresses, _)| *addresses),
                Some(port.number),
            ),
        };
        let (addresses, number) = (addresses.expect("an address"), number.expect("a nodePort"));
        addresses.with_port(family, number)
    }

    /// The endpoints that clients of the whole cluster may fall on, in both families, sorted: those that are ready, or, where
    /// none is, those that still serve (behaviour.md 2.6, without hints).
    pub fn endpoints(&self) -> Vec<SocketAddr> {
        let in_state = |state| self.members.iter().filter(move |member| member.state == state);
        let ready = in_state(State::Ready).next().is_some();
        let state = if ready { State::Ready } else { State::Terminating };
        let of_port = |port: &Port| {
            let target = port.target;
            let sockets = move |member: &Member| Family::ALL.map(|family| member.addresses.with_port(family, target));
            in_state(state).flat_map(sockets).collect::<Vec<_>>()
        };
        let mut endpoints: Vec<SocketAddr> = self.ports.iter().flat_map(of_port).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints
    }

    /// Whether clients of each node may fall on exactly [`Self::endpoints`], by ClusterIPs alone.
    pub(super) fn is_plain(&self) -> bool {
        let hinted = |member: &Member| !member.zones.is_empty() || !member.nodes.is_empty();
        !self.members.iter().any(hinted)
            && self.kind() == "ClusterIP"
            && self.external.is_empty()
            && self.internal_policy == Policy::Cluster
            && self.affinity.is_none()
    }

    fn kind(&self) -> &'static str {
        if !self.balancer.is_empty() {
            "LoadBalancer"
        } else if self.ports.iter().any(|port| port.on_nodes.is_some()) {
            "NodePort"
        } else {
            "ClusterIP"
        }
    }
}
