//! Who may use a load balancer's addresses (behaviour.md 3.10).

use proxy_agent::{
    config::ProxyConfig,
    model::Node,
    plan::{Kind, PlanContext},
};
use serde_json::{Value, json};

use crate::world::{World, balanced};

/// A dual-stack Service with all kinds of frontends and these ranges, on a node with these addresses.
fn world(ranges: Value, own: &[&str]) -> World {
    let spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
        "externalIPs": ["192.0.2.1", "2001:db8::1"], "loadBalancerSourceRanges": ranges,
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let context = PlanContext {
        own_addresses: own.iter().map(|address| address.parse().expect("an address")).collect(),
        ..PlanContext::default()
    };
    let ingress = json!([{"ip": "198.51.100.2"}, {"ip": "198.51.100.1"}, {"ip": "2001:db8::2"}]);
    World::on(context, [balanced("web", spec, ingress)])
}

/// The sources of the load balancer's frontends, by family.
fn sources(world: &World) -> [String; 2] {
    [true, false].map(|v4| {
        let mut all: Vec<String> = world
            .frontends
            .values()
            .flatten()
            .filter(|frontend| frontend.kind == Kind::LoadBalancer)
            .filter(|frontend| frontend.address.is_some_and(|address| address.is_ipv4() == v4))
            .map(|frontend| {
                let texts: Vec<String> = frontend.sources.iter().map(ToString::to_string).collect();
                texts.join(" ")
            })
            .collect();
        all.dedup();
        assert_eq!(all.len(), 1, "all addresses of a family have the same: {all:?}");
        all.remove(0)
    })
}

#[test]
fn rule_3_10_source_ranges_guard_the_load_balancer_only() {
    let world = world(
        json!(["203.0.113.0/24", "10.0.0.0/8", "10.1.2.3/8", "2001:db8:1::/48"]),
        &[],
    );
    assert_eq!(sources(&world), ["10.0.0.0/8 203.0.113.0/24", "2001:db8:1::/48"]);
    for frontend in world.frontends.values().flatten() {
        if frontend.kind != Kind::LoadBalancer {
            assert!(frontend.sources.is_empty(), "{frontend:?}");
        }
    }
}

#[test]
fn rule_3_10_a_family_without_a_range_is_open() {
    assert_eq!(sources(&world(json!(["10.0.0.0/8"]), &[])), ["10.0.0.0/8", ""]);
    assert_eq!(sources(&world(json!([]), &["192.0.2.10"])), ["", ""]);
}

/// A host that has such an address on a device of its own talks to itself from it.
#[test]
fn rule_3_10_with_the_node_come_the_addresses_of_the_load_balancer() {
    let ranges = json!(["192.0.2.0/24", "2001:db8:1::/48"]);
    assert_eq!(
        sources(&world(ranges.clone(), &["192.0.2.10", "2001:db8:9::1"])),
        ["192.0.2.0/24 198.51.100.1/32 198.51.100.2/32", "2001:db8:1::/48"]
    );
    assert_eq!(
        sources(&world(ranges.clone(), &["2001:db8:1::1"])),
        ["192.0.2.0/24", "2001:db8::2/128 2001:db8:1::/48"]
    );
    assert_eq!(
        sources(&world(ranges, &["203.0.113.1"])),
        ["192.0.2.0/24", "2001:db8:1::/48"]
    );
}

/// behaviour.md 3.10: of the node's addresses, only the first of each family is the node's own.
#[test]
fn rule_3_10_further_addresses_of_the_node_let_nobody_in() {
    let addresses = ["192.0.2.10", "2001:db8:9::1", "203.0.113.1", "2001:db8:1::1"];
    let parsed = addresses.map(|address| address.parse().expect("an address"));
    let context = PlanContext::new(&ProxyConfig::default(), &Node::default(), &parsed);
    assert_eq!(context.own_addresses, parsed[..2]);
}

#[test]
fn rule_1_6_ranges_are_trimmed_and_bad_ones_named() {
    let world = world(json!([" 010.0.0.1/8 ", "10.0.0.0", "fd00::/129", "all", " "]), &[]);
    assert_eq!(sources(&world), ["10.0.0.0/8", ""]);
    let expected: Vec<String> = ["10.0.0.0", "fd00::/129", "all"]
        .iter()
        .enumerate()
        .map(|(index, text)| {
            let index = index + 1;
            format!(
                "Service ns/web: spec.loadBalancerSourceRanges[{index}]: {text:?} is no address range such as 10.0.0.0/8 or \
                 fd00::/64; it lets nobody in, and keeps nobody out"
            )
        })
        .collect();
    assert_eq!(world.problems(), expected);
}

/// behaviour.md 3.10: a second name for the address must not open it.
#[test]
fn an_address_that_is_an_external_one_as_well_stays_guarded() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["198.51.100.1"],
        "loadBalancerSourceRanges": ["203.0.113.0/24"], "ports": [{"port": 80}],
    });
    let world = World::with([balanced("web", spec, json!([{"ip": "198.51.100.1"}]))]);
    assert_eq!(
        world.lines(),
        [
            "ns/web: 10.96.0.1:80/TCP ->  | - !",
            "ns/web: LoadBalancer 198.51.100.1:80/TCP ->  | - !"
        ]
    );
    assert_eq!(world.the(Kind::LoadBalancer).sources.len(), 1);
    assert_eq!(world.problems(), [""; 0]);
}
