//! Any sequence of events ends where a fresh start with the final objects ends, and names every Service whose plan
//! changed on the way.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
};
use proptest::prelude::*;
use proxy_agent::{
    config::{LocalTraffic, ProxyConfig},
    plan::{Kind, Masquerade, NodePlan, PlanContext, TrafficPolicy},
    source::{Change, Event},
};
use serde_json::{Value, json};

use crate::world::{NODE, World, name, service_object, service_range, slice_object};

/// Few names and addresses, so that they clash.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const ADDRESSES: [&str; 4] = ["10.96.0.1", "10.96.0.2", "None", "nowhere"];
const ADDRESSES_V6: [&str; 3] = ["fd00:96::1", "fd00:96::2", ""];
const EXTERNAL: [&str; 5] = ["192.0.2.1", "192.0.2.2", "10.96.0.1", "2001:db8::1", "fd00:96::2"];
const RANGES: [&str; 5] = ["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/32", "fd00::/8", "broken"];
const ZONES: [&str; 3] = ["zone-0", "zone-1", ""];

#[derive(Clone, Debug)]
enum Step {
    Service(Box<Service>),
    ServiceGone(&'static str),
    Services(Vec<Service>),
    Slice(Box<EndpointSlice>),
    SliceGone(&'static str),
    Slices(Vec<EndpointSlice>),
    Node(Box<Node>),
    NodeGone,
    ServiceRange(&'static str, &'static str),
    ServiceRangeGone(&'static str),
    Settle,
}

fn some_of(texts: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(texts), 0..3)
}

fn any_policy() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["Cluster", "Local"][..])
}

prop_compose! {
    /// Ports that clash with each other and with those of other Services now and then.
    fn any_port()(name in 0..2, port in 80..82, udp in any::<bool>(), node_port in prop::option::of(30080..30082)) -> Value {
        let protocol = if udp { "UDP" } else { "TCP" };
        let name = if name == 0 { "" } else { "named" };
        json!({"name": name, "port": port, "protocol": protocol, "nodePort": node_port})
    }
}

prop_compose! {
    fn any_spec()(
        kind in prop::sample::select(&["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "ExternalName"][..]),
        address in prop::sample::select(&ADDRESSES[..]),
        address_v6 in prop::sample::select(&ADDRESSES_V6[..]),
        ports in prop::collection::vec(any_port(), 0..3),
        external in some_of(&EXTERNAL),
        ranges in some_of(&RANGES),
        internal_policy in any_policy(),
        external_policy in any_policy(),
        affinity in prop::option::of(0..3),
    ) -> Value {
        let addresses: Vec<&str> = [address, address_v6].into_iter().filter(|address| !address.is_empty()).collect();
        json!({
            "type": kind, "clusterIPs": addresses, "ports": ports, "externalIPs": external,
            "loadBalancerSourceRanges": ranges, "internalTrafficPolicy": internal_policy,
            "externalTrafficPolicy": external_policy,
            "sessionAffinity": affinity.map(|_| "ClientIP"),
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": affinity}},
        })
    }
}

prop_compose! {
    fn any_service()(
        index in 0..NAMES.len(),
        spec in any_spec(),
        ingress in some_of(&EXTERNAL),
        proxy_mode in any::<bool>(),
        year in prop::option::of(2020..2023),
        headless in prop::bool::weighted(0.1),
    ) -> Service {
        let mut service = service_object(NAMES[index], &spec);
        let mode = if proxy_mode { "Proxy" } else { "VIP" };
        let ingress: Vec<Value> = ingress.into_iter().map(|ip| json!({"ip": ip, "ipMode": mode})).collect();
        let status = serde_json::from_value(json!({"loadBalancer": {"ingress": ingress}}));
        service.status = Some(status.expect("a status"));
        let time = year.map(|year| serde_json::from_value(json!(format!("{year}-01-01T00:00:00Z"))).expect("a time"));
        service.metadata.creation_timestamp = time;
        service.metadata.labels =
            headless.then(|| [("service.kubernetes.io/headless".to_owned(), String::new())].into());
        service
    }
}

prop_compose! {
    fn any_node()(
        zone in prop::sample::select(&ZONES[..]),
        pod_ranges in some_of(&RANGES),
        own in some_of(&EXTERNAL),
    ) -> Node {
        let own: Vec<Value> = own.into_iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": pod_ranges}, "status": {"addresses": own},
        }))
        .expect("a Node")
    }
}

prop_compose! {
    fn any_slice()(
        index in 0..NAMES.len(),
        owner in 0..NAMES.len(),
        endpoints in prop::collection::vec((1..5, any::<bool>(), any::<bool>(), 0..3), 0..4),
        v6 in any::<bool>(),
    ) -> EndpointSlice {
        let (family, prefix) = if v6 { ("IPv6", "fd00::") } else { ("IPv4", "10.0.0.") };
        let endpoints: Vec<_> = endpoints.into_iter().map(|(octet, local, ready, zone)| json!({
            "addresses": [format!("{prefix}{octet}")],
            "nodeName": if local { NODE } else { "elsewhere" },
            "conditions": {"ready": ready, "terminating": !ready},
            "hints": {"forZones": [{"name": format!("zone-{zone}")}]},
        })).collect();
        let ports = json!([
            {"name": "", "port": 8080}, {"name": "named", "port": 8081}, {"name": "", "port": 8082, "protocol": "UDP"},
        ]);
        slice_object(NAMES[index], NAMES[owner], family, &ports, &json!(endpoints))
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let any_name = || prop::sample::select(&NAMES[..]);
    prop_oneof![
        6 => any_service().prop_map(|service| Step::Service(Box::new(service))),
        2 => any_name().prop_map(Step::ServiceGone),
        1 => prop::collection::vec(any_service(), 0..4).prop_map(Step::Services),
        6 => any_slice().prop_map(|slice| Step::Slice(Box::new(slice))),
        2 => any_name().prop_map(Step::SliceGone),
        1 => prop::collection::vec(any_slice(), 0..4).prop_map(Step::Slices),
        2 => any_node().prop_map(|node| Step::Node(Box::new(node))),
        1 => Just(Step::NodeGone),
        1 => (any_name(), prop::sample::select(&RANGES[..])).prop_map(|(name, range)| Step::ServiceRange(name, range)),
        1 => any_name().prop_map(Step::ServiceRangeGone),
        6 => Just(Step::Settle),
    ]
}

/// The objects that there are at the end.
#[derive(Default)]
struct Objects {
    services: BTreeMap<String, Service>,
    slices: BTreeMap<String, EndpointSlice>,
    node: Option<Node>,
    service_ranges: BTreeMap<&'static str, &'static str>,
}

impl Objects {
    fn follow(&mut self, step: &Step) -> Option<Event> {
        let service_name = |service: &Service| service.metadata.name.clone().expect("a name");
        let slice_name = |slice: &EndpointSlice| slice.metadata.name.clone().expect("a name");
        let without_namespace = |object: &str| {
            let mut name = name(object);
            name.namespace.clear();
            name
        };
        Some(match step.clone() {
            Step::Service(service) => {
                self.services.insert(service_name(&service), (*service).clone());
                Event::Service(Change::Apply(service).read(NODE))
            }
            Step::ServiceGone(gone) => {
                self.services.remove(gone);
                Event::Service(Change::Delete(name(gone)))
            }
            Step::Services(services) => {
                self.services = services
                    .iter()
                    .map(|service| (service_name(service), service.clone()))
                    .collect();
                Event::Service(Change::Replace(services).read(NODE))
            }
            Step::Slice(slice) => {
                self.slices.insert(slice_name(&slice), (*slice).clone());
                Event::EndpointSlice(Change::Apply(slice).read(NODE))
            }
            Step::SliceGone(gone) => {
                self.slices.remove(gone);
                Event::EndpointSlice(Change::Delete(name(gone)))
            }
            Step::Slices(slices) => {
                self.slices = slices.iter().map(|slice| (slice_name(slice), slice.clone())).collect();
                Event::EndpointSlice(Change::Replace(slices).read(NODE))
            }
            Step::Node(node) => {
                self.node = Some((*node).clone());
                Event::Node(Change::Apply(node).read(NODE))
            }
            Step::NodeGone => {
                self.node = None;
                Event::Node(Change::Delete(without_namespace(NODE)))
            }
            Step::ServiceRange(name, range) => {
                self.service_ranges.insert(name, range);
                service_range(name, &[range])
            }
            Step::ServiceRangeGone(gone) => {
                self.service_ranges.remove(gone);
                Event::ServiceCIDR(Change::Delete(without_namespace(gone)))
            }
            Step::Settle => return None,
        })
    }

    fn fresh(self) -> World {
        let mut world = World::unlisted();
        let ranges = self.service_ranges.into_iter();
        world
            .model
            .apply(Event::Node(Change::Replace(self.node.into_iter().collect()).read(NODE)));
        for (name, range) in ranges {
            world.model.apply(service_range(name, &[range]));
        }
        world.model.apply(Event::Service(
            Change::Replace(self.services.into_values().collect()).read(NODE),
        ));
        world.model.apply(Event::EndpointSlice(
            Change::Replace(self.slices.into_values().collect()).read(NODE),
        ));
        settle(&mut world);
        world
    }
}

fn config() -> ProxyConfig {
    ProxyConfig {
        local_traffic: LocalTraffic::NodeCidr,
        ..ProxyConfig::default()
    }
}

/// Plans what changed, as the agent does.
fn settle(world: &mut World) {
    let node = world.model.node();
    let context = PlanContext::new(&config(), node, &node.addresses);
    world.planner.set_context(context);
    world.settle();
}

fn node_plan(world: &World) -> NodePlan {
    let local: Vec<IpAddr> = EXTERNAL
        .iter()
        .map(|address| address.parse().expect("an address"))
        .collect();
    NodePlan::new(&config(), &world.model, &world.model.node().addresses, &local)
}

proptest! {
    #[test]
    fn any_way_leads_to_the_plan_of_a_fresh_start(steps in prop::collection::vec(any_step(), 0..60)) {
        let mut world = World::empty();
        let mut objects = Objects::default();
        for step in &steps {
            match objects.follow(step) {
                Some(event) => world.model.apply(event),
                None => settle(&mut world),
            }
        }
        settle(&mut world);
        let fresh = objects.fresh();
        prop_assert_eq!(&world.frontends, &fresh.frontends);
        prop_assert_eq!(node_plan(&world), node_plan(&fresh));
        prop_assert_eq!(world.problems(), fresh.problems());
    }

    /// What the datapath relies on, whatever the input.
    #[test]
    fn frontends_are_consistent(
        services in prop::collection::vec(any_service(), 0..6),
        slices in prop::collection::vec(any_slice(), 0..6),
        node in any_node(),
    ) {
        let mut world = World::empty();
        world.model.apply(Event::Node(Change::Apply(Box::new(node)).read(NODE)));
        for service in services {
            world.model.apply(Event::Service(Change::Apply(Box::new(service)).read(NODE)));
        }
        for slice in slices {
            world.model.apply(Event::EndpointSlice(Change::Apply(Box::new(slice)).read(NODE)));
        }
        settle(&mut world);
        let all: Vec<_> = world.frontends.values().flatten().collect();
        let mut vips: Vec<_> = all.iter().map(|frontend| frontend.vip()).collect();
        vips.sort();
        vips.dedup();
        prop_assert_eq!(vips.len(), all.len(), "each is served once");
        for frontend in all {
            let is_cluster_ip = frontend.kind == Kind::ClusterIP;
            prop_assert_eq!(frontend.cluster.is_some(), frontend.policy != TrafficPolicy::Local);
            prop_assert_eq!(frontend.local.is_some(), frontend.policy != TrafficPolicy::Cluster);
            prop_assert_eq!(frontend.policy == TrafficPolicy::LocalForOutsiders, frontend.masquerade == Masquerade::Host);
            prop_assert!(!is_cluster_ip || frontend.policy != TrafficPolicy::LocalForOutsiders);
            prop_assert!(is_cluster_ip || frontend.policy != TrafficPolicy::Local);
            prop_assert_eq!(frontend.address.is_none(), frontend.kind == Kind::NodePort);
            prop_assert!(frontend.sources.is_empty() || frontend.kind == Kind::LoadBalancer);
            prop_assert!(frontend.sources.is_sorted());
            let addresses = frontend.cluster.iter().chain(&frontend.local).flatten();
            let addresses = addresses.map(SocketAddr::ip).chain(frontend.address);
            let addresses: Vec<IpAddr> = addresses.chain(frontend.sources.iter().map(IpNet::addr)).collect();
            let family = frontend.family;
            prop_assert!(addresses.into_iter().all(|address| proxy_agent::plan::Family::of(address) == family));
            let has_any = frontend.cluster.iter().chain(&frontend.local).any(|list| !list.is_empty());
            prop_assert!(frontend.has_endpoints || !has_any);
            if let Some(cluster) = &frontend.cluster {
                prop_assert_eq!(frontend.has_endpoints, !cluster.is_empty());
            }
        }
    }
}
