//! What all frontends of the node share (behaviour.md 3.6-3.8, 4.7, 5.8), and changes of the Node (2.12, 8.12).

use std::net::IpAddr;

use proxy_agent::{
    config::{LocalTraffic, NodePortAddresses, ProxyConfig},
    model::Model,
    plan::{Kind, LocalSources, Masquerade, NodePlan, PlanContext},
    source::{Change, Event},
};
use serde_json::{Value, json};

use crate::world::{NODE, World, balanced, name, service_range, service_range_object, web};

/// What the devices of the node have: loopback, two uplinks, a bridge.
const LOCAL: [&str; 8] = [
    "127.0.0.1",
    "127.0.0.53",
    "::1",
    "192.0.2.10",
    "198.51.100.10",
    "10.244.1.1",
    "2001:db8::10",
    "fe80::1",
];

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

fn plan(config: &ProxyConfig, model: &Model, own: &[&str]) -> NodePlan {
    NodePlan::new(config, model, &addresses(own), &addresses(&LOCAL))
}

/// Where nodePorts are served on a node with these addresses of its own.
fn node_ports(wanted: NodePortAddresses, own: &[&str]) -> Vec<String> {
    let config = ProxyConfig {
        node_port_addresses: wanted,
        ..ProxyConfig::default()
    };
    let plan = plan(&config, &Model::new(NODE), own);
    plan.node_port_addresses.iter().map(ToString::to_string).collect()
}

fn ranges(texts: &[&str]) -> NodePortAddresses {
    NodePortAddresses::Ranges(texts.iter().map(|text| text.parse().expect("a range")).collect())
}

fn node_object(spec: &Value, own: &[&str]) -> Event {
    let own: Vec<Value> = own
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address}))
        .collect();
    let node: Result<k8s_openapi::api::core::v1::Node, _> = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": spec, "status": {"addresses": own},
    }));
    Event::Node(Change::Apply(Box::new(node.expect("a Node"))).read(NODE))
}

fn local_sources(local_traffic: LocalTraffic, model: &Model) -> LocalSources {
    let config = ProxyConfig {
        local_traffic,
        ..ProxyConfig::default()
    };
    plan(&config, model, &[]).local_sources
}

fn sources(texts: &[&str]) -> LocalSources {
    LocalSources::Ranges(texts.iter().map(|text| text.parse().expect("a range")).collect())
}

#[test]
fn rule_3_6_primary_is_the_nodes_own_address_of_each_family() {
    let own = ["192.0.2.10", "2001:db8::10"];
    assert_eq!(node_ports(NodePortAddresses::Primary, &own), own);
    assert_eq!(ProxyConfig::default().node_port_addresses, NodePortAddresses::Primary);
    // Only the first of each family is primary, and only one that is there counts.
    let more = ["192.0.2.10", "198.51.100.10", "2001:db8::99"];
    assert_eq!(node_ports(NodePortAddresses::Primary, &more), ["192.0.2.10"]);
}

#[test]
fn rule_3_6_primary_opens_a_family_that_the_node_has_no_address_of() {
    assert_eq!(
        node_ports(NodePortAddresses::Primary, &["192.0.2.10"]),
        ["192.0.2.10", "2001:db8::10", "fe80::1"]
    );
    let all = ["10.244.1.1", "192.0.2.10", "198.51.100.10", "2001:db8::10", "fe80::1"];
    assert_eq!(node_ports(NodePortAddresses::Primary, &[]), all);
    // A loopback address is none of the node's own.
    assert_eq!(node_ports(NodePortAddresses::Primary, &["127.0.0.1", "::1"]), all);
}

#[test]
fn rule_3_6_ranges_choose_among_the_addresses_that_are_there() {
    let own = ["192.0.2.10", "2001:db8::10"];
    assert_eq!(
        node_ports(ranges(&["198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"]), &own),
        ["198.51.100.10", "2001:db8::10"]
    );
    // Nothing in them: no nodePorts in this family.
    assert_eq!(
        node_ports(ranges(&["203.0.113.0/24", "2001:db8:1::/48"]), &own),
        [""; 0]
    );
    // A family without a range is one that nothing was said about.
    assert_eq!(
        node_ports(ranges(&["198.51.100.0/24"]), &own),
        ["198.51.100.10", "2001:db8::10", "fe80::1"]
    );
}

#[test]
fn rule_3_6_a_zero_range_is_all_addresses_of_its_family() {
    assert_eq!(
        node_ports(
            ranges(&["203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32"]),
            &["192.0.2.10"]
        ),
        ["10.244.1.1", "192.0.2.10", "198.51.100.10", "2001:db8::10"]
    );
    assert_eq!(
        node_ports(ranges(&["192.0.2.0/24", "::/0"]), &["192.0.2.10"]),
        ["192.0.2.10", "2001:db8::10", "fe80::1"]
    );
}

#[test]
fn rule_3_7_node_ports_are_never_served_on_loopback_addresses() {
    let loopback = ranges(&["127.0.0.0/8", "::1/128"]);
    assert_eq!(node_ports(loopback, &["192.0.2.10"]), [""; 0]);
    let everything = node_ports(ranges(&["0.0.0.0/0", "::/0"]), &["192.0.2.10"]);
    assert!(
        !everything
            .iter()
            .any(|address| address.starts_with("127.") || address == "::1")
    );
}

/// behaviour.md 3.8: what isn't in the set is left alone. behaviour.md 5.6 ii: all addresses are the host's own, though.
#[test]
fn rule_3_8_and_rule_5_6_addresses_without_node_ports_are_still_local() {
    let plan = plan(
        &ProxyConfig::default(),
        &Model::new(NODE),
        &["192.0.2.10", "2001:db8::10"],
    );
    assert_eq!(plan.node_port_addresses.len(), 2);
    assert_eq!(plan.local_addresses, addresses(&LOCAL).into_iter().collect());
}

#[test]
fn rule_4_7_service_ranges_are_those_of_all_service_cidrs() {
    let mut world = World::empty();
    let ranges = |world: &World| {
        let plan = plan(&ProxyConfig::default(), &world.model, &[]);
        let texts: Vec<String> = plan.service_ranges.iter().map(ToString::to_string).collect();
        texts.join(" ")
    };
    assert_eq!(ranges(&world), "");
    let mut leaving = service_range_object("b", &["10.97.0.0/16"]);
    leaving.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time"));
    let changed = world.apply([
        service_range("kubernetes", &["fd00:96::/112", "10.96.0.0/16"]),
        // One that is about to go still has Services.
        Event::ServiceCIDR(Change::Apply(Box::new(leaving)).read(NODE)),
        service_range("c", &["10.96.7.0/24", "everywhere"]),
    ]);
    assert!(changed.is_empty(), "no Service depends on them");
    assert_eq!(ranges(&world), "10.96.0.0/15 fd00:96::/112");
    assert_eq!(
        world.problems(),
        ["ServiceCIDR c: spec.cidrs[1]: \"everywhere\" is no address range such as 10.0.0.0/8 or fd00::/64"]
    );
    let mut gone = name("b");
    gone.namespace.clear();
    world.apply([Event::ServiceCIDR(Change::Delete(gone))]);
    assert_eq!(ranges(&world), "10.96.0.0/16 fd00:96::/112");
    let left = service_range_object("d", &["10.98.0.0/16"]);
    world.apply([Event::ServiceCIDR(Change::Replace(vec![left]).read(NODE))]);
    assert_eq!(ranges(&world), "10.98.0.0/16");
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn rule_4_7_service_cidrs_are_not_waited_for() {
    assert!(World::empty().model.is_synced());
}

#[test]
fn rule_5_8_pods_are_told_by_range_or_interface() {
    let spec = json!({"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"], "podCIDR": "10.244.1.0/24"});
    let model = World::with([node_object(&spec, &[])]).model;
    let cluster = ["fd00:10:244::/56", "10.244.0.0/16", "10.244.3.0/24"];
    let cluster = LocalTraffic::ClusterCidr(cluster.map(|range| range.parse().expect("a range")).into());
    assert_eq!(
        local_sources(cluster, &model),
        sources(&["10.244.0.0/16", "fd00:10:244::/56"])
    );
    assert_eq!(
        local_sources(LocalTraffic::ClusterCidr(Vec::new()), &model),
        sources(&[])
    );
    assert_eq!(
        local_sources(LocalTraffic::NodeCidr, &model),
        sources(&["10.244.1.0/24", "fd00:10:244:1::/64"])
    );
    assert_eq!(
        local_sources(LocalTraffic::BridgeInterface("cni0".to_owned()), &model),
        LocalSources::Interface("cni0".to_owned())
    );
    assert_eq!(
        local_sources(LocalTraffic::InterfaceNamePrefix("veth".to_owned()), &model),
        LocalSources::InterfacePrefix("veth".to_owned())
    );
}

#[test]
fn rule_5_8_a_node_may_name_one_range_only_and_bad_ones_are_named() {
    let world = World::with([node_object(&json!({"podCIDR": "10.244.1.0/24"}), &[])]);
    assert_eq!(
        local_sources(LocalTraffic::NodeCidr, &world.model),
        sources(&["10.244.1.0/24"])
    );
    let world = World::with([node_object(&json!({"podCIDRs": ["10.244.1.0", "fd00::/64"]}), &[])]);
    assert_eq!(
        local_sources(LocalTraffic::NodeCidr, &world.model),
        sources(&["fd00::/64"])
    );
    assert_eq!(
        world.problems(),
        [format!(
            "Node {NODE}: spec.podCIDRs[0]: \"10.244.1.0\" is no address range such as 10.0.0.0/8 or fd00::/64"
        )]
    );
}

/// A world on a node whose pods are told by its own ranges, and whose context follows its Node as the agent's does.
struct Following {
    world: World,
    config: ProxyConfig,
}

impl Following {
    fn apply(&mut self, event: Event) {
        self.world.model.apply(event);
        let node = self.world.model.node();
        let context = PlanContext::new(&self.config, node, &node.addresses);
        self.world.planner.set_context(context);
        self.world.settle();
    }
}

/// behaviour.md 2.12, 3.10, 5.3, 5.8: what depends on the Node follows it.
#[test]
fn rule_8_12_a_change_of_the_node_plans_what_depends_on_it() {
    let mut following = Following {
        world: World::empty(),
        config: ProxyConfig {
            local_traffic: LocalTraffic::NodeCidr,
            ..ProxyConfig::default()
        },
    };
    let spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ports": [{"port": 80}],
    });
    following.apply(balanced("web", spec, json!([{"ip": "198.51.100.1"}])));
    let state = |following: &Following| {
        (
            following.world.the(Kind::ClusterIP).masquerade,
            following.world.the(Kind::LoadBalancer).sources.len(),
        )
    };
    assert_eq!(state(&following), (Masquerade::Never, 1));
    following.apply(node_object(&json!({"podCIDR": "10.244.1.0/24"}), &[]));
    assert_eq!(state(&following), (Masquerade::Outsiders, 1));
    following.apply(node_object(&json!({"podCIDR": "10.244.1.0/24"}), &["192.0.2.10"]));
    assert_eq!(state(&following), (Masquerade::Outsiders, 2));
    following.apply(node_object(&json!({}), &["203.0.113.10"]));
    assert_eq!(state(&following), (Masquerade::Never, 1));
    let own = proxy_agent::model::ObjectName {
        namespace: String::new(),
        name: NODE.to_owned(),
    };
    following.apply(Event::Node(Change::Delete(own)));
    assert_eq!(state(&following), (Masquerade::Never, 1));
}

/// The context alone plans everything anew, those that are gone by the same change included.
#[test]
fn a_change_of_the_context_plans_everything() {
    let mut world = World::with([
        web("web", "10.96.0.1"),
        web("other", "10.96.0.2"),
        web("gone", "10.96.0.3"),
    ]);
    let context = PlanContext {
        masquerade_all: true,
        ..PlanContext::default()
    };
    assert!(world.planner.set_context(context.clone()));
    assert!(!world.planner.set_context(context));
    let names = world.apply([Event::Service(Change::Delete(name("gone")))]);
    assert_eq!(names, ["ns/gone", "ns/other", "ns/web"].map(str::to_owned).into());
    assert_eq!(world.frontends.len(), 2);
    for frontend in world.frontends.values().flatten() {
        assert_eq!(frontend.masquerade, Masquerade::Always);
    }
    assert_eq!(world.apply([web("web", "10.96.0.4")]), ["ns/web".to_owned()].into());
}
