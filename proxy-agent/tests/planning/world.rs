//! A model and a planner as the agent runs them, and short forms of objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use proxy_agent::{
    model::{Model, ObjectName, Problem},
    plan::{Frontend, Kind, PlanContext, Planner, Update},
    source::{Change, Event},
};
use serde_json::{Value, json};

/// Name of the node that is planned for.
pub(crate) const NODE: &str = "node-a";

pub(crate) struct World {
    pub(crate) model: Model,
    pub(crate) planner: Planner,
    pub(crate) frontends: BTreeMap<ObjectName, Vec<Frontend>>,
}

impl World {
    /// Nothing was listed yet.
    pub(crate) fn unlisted() -> Self {
        Self {
            model: Model::new(NODE),
            planner: Planner::default(),
            frontends: BTreeMap::new(),
        }
    }

    /// All is listed, and there is nothing.
    pub(crate) fn empty() -> Self {
        let mut world = Self::unlisted();
        world.model.apply(Event::Service(Change::Replace(Vec::new())));
        world.model.apply(Event::EndpointSlice(Change::Replace(Vec::new())));
        world.settle();
        world
    }

    /// All is listed, and these objects are there.
    pub(crate) fn with(events: impl IntoIterator<Item = Event>) -> Self {
        let mut world = Self::empty();
        world.apply(events);
        world
    }

    /// The same on a node where something else holds.
    pub(crate) fn on(context: PlanContext, events: impl IntoIterator<Item = Event>) -> Self {
        let mut world = Self::empty();
        world.planner.set_context(context);
        world.apply(events);
        world
    }

    /// Takes in events and plans; returns the names of the Services that were planned anew.
    pub(crate) fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> BTreeSet<String> {
        for event in events {
            self.model.apply(event);
        }
        self.settle()
    }

    /// Plans what changed; returns the names of the Services that were planned anew.
    pub(crate) fn settle(&mut self) -> BTreeSet<String> {
        let Some(changes) = self.model.take_changes() else {
            return BTreeSet::new();
        };
        let planned = match self.planner.update(&self.model, &changes) {
            Update::Everything(planned) => {
                self.frontends.clear();
                planned
            }
            Update::Services(planned) => planned,
        };
        let names = planned.keys().map(ToString::to_string).collect();
        self.frontends.extend(planned);
        self.frontends.retain(|_, frontends| !frontends.is_empty());
        names
    }

    /// The only frontend of a kind.
    pub(crate) fn the(&self, kind: Kind) -> &Frontend {
        let of_kind = |frontend: &&Frontend| frontend.kind == kind;
        let mut all = self.frontends.values().flatten().filter(of_kind);
        let found = all.next().unwrap_or_else(|| panic!("no {kind} in {:?}", self.lines()));
        assert_eq!(all.next(), None, "more than one {kind}");
        found
    }

    /// All frontends, each as `name:port_name address:port/protocol -> cluster | local`, sorted.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.frontends.values().flatten().map(line).collect();
        lines.sort();
        lines
    }

    /// All that is wrong with the input, as text.
    pub(crate) fn problems(&self) -> Vec<String> {
        let all = self.model.problems().into_iter().chain(self.planner.problems());
        all.map(|problem: Problem| problem.to_string()).collect()
    }
}

/// A frontend in one line; its kind is said where it isn't ClusterIP. A list that isn't used is `-`, `!` says that there is no endpoint anywhere.
fn line(frontend: &Frontend) -> String {
    let list = |addresses: &Option<Vec<std::net::SocketAddr>>| match addresses {
        None => "-".to_owned(),
        Some(addresses) => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    let kind = match frontend.kind {
        Kind::ClusterIP => String::new(),
        kind => format!("{kind} "),
    };
    let place = match frontend.address {
        Some(address) => std::net::SocketAddr::new(address, frontend.port).to_string(),
        None => format!("{}:{}", frontend.family, frontend.port),
    };
    format!(
        "{} {kind}{place}/{} -> {} | {}{}",
        frontend.service_port,
        frontend.service_port.protocol,
        list(&frontend.cluster),
        list(&frontend.local),
        if frontend.has_endpoints { "" } else { " !" },
    )
}

pub(crate) fn name(name: &str) -> ObjectName {
    ObjectName {
        namespace: "ns".to_owned(),
        name: name.to_owned(),
    }
}

/// A Service of this name and spec in namespace `ns`.
pub(crate) fn service_object(name: &str, spec: &Value) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name}, "spec": spec,
    }))
    .expect("a Service")
}

pub(crate) fn service(name: &str, spec: Value) -> Event {
    Event::Service(Change::Apply(Box::new(service_object(name, &spec))).read(NODE))
}

/// A Service of this name, spec and load balancer in namespace `ns`.
pub(crate) fn balanced(name: &str, spec: Value, ingress: Value) -> Event {
    let service: Result<Service, _> = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "ns", "name": name}, "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }));
    Event::Service(Change::Apply(Box::new(service.expect("a Service"))).read(NODE))
}

/// A Service with one cluster address and the unnamed TCP port 80.
pub(crate) fn web(name: &str, address: &str) -> Event {
    service(name, json!({"clusterIPs": [address], "ports": [{"port": 80}]}))
}

/// A slice of this name for a Service in namespace `ns`.
pub(crate) fn slice_object(
    name: &str,
    service: &str,
    addresses: &str,
    ports: &Value,
    endpoints: &Value,
) -> EndpointSlice {
    serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "ns", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": addresses, "ports": ports, "endpoints": endpoints,
    }))
    .expect("an EndpointSlice")
}

pub(crate) fn slice(name: &str, service: &str, addresses: &str, ports: Value, endpoints: Value) -> Event {
    Event::EndpointSlice(Change::Apply(Box::new(slice_object(name, service, addresses, &ports, &endpoints))).read(NODE))
}

/// A slice of Service `web` with the unnamed TCP port 8080 and these endpoints.
pub(crate) fn web_slice(name: &str, endpoints: Value) -> Event {
    slice(name, "web", "IPv4", json!([{"name": "", "port": 8080}]), endpoints)
}

/// The ranges that addresses of Services come from, by an object of this name.
pub(crate) fn service_range_object(name: &str, ranges: &[&str]) -> ServiceCIDR {
    serde_json::from_value(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": ranges},
    }))
    .expect("a ServiceCIDR")
}

pub(crate) fn service_range(name: &str, ranges: &[&str]) -> Event {
    Event::ServiceCIDR(Change::Apply(Box::new(service_range_object(name, ranges))).read(NODE))
}

/// This node with these labels.
pub(crate) fn node(labels: &Value) -> Event {
    let node: Node = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": labels},
    }))
    .expect("a Node");
    Event::Node(Change::Apply(Box::new(node)).read(NODE))
}
