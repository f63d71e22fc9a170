//! Whose addresses the endpoints don't see (behaviour.md 5).

use proxy_agent::{
    config::{LocalTraffic, ProxyConfig},
    model::Node,
    plan::{Family, Kind, Masquerade, PlanContext},
    source::Event,
};
use serde_json::json;

use crate::world::{World, balanced};

/// A dual-stack Service with all kinds of frontends.
fn service(internal: &str, external: &str) -> Event {
    balanced(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00:96::1"],
            "externalIPs": ["192.0.2.1", "2001:db8::1"],
            "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
        json!([{"ip": "198.51.100.1"}, {"ip": "2001:db8::2"}]),
    )
}

/// The masquerade of a kind, IPv4 and IPv6.
fn masquerade(world: &World, kind: Kind) -> [Masquerade; 2] {
    Family::ALL.map(|family| {
        let mut all = world.frontends.values().flatten();
        let found = all.find(|frontend| frontend.kind == kind && frontend.family == family);
        found.expect("a frontend of each kind and family").masquerade
    })
}

fn node(pod_ranges: &[&str]) -> Node {
    Node {
        pod_ranges: pod_ranges.iter().map(|range| range.parse().expect("a range")).collect(),
        ..Node::default()
    }
}

fn context(local_traffic: LocalTraffic, node: &Node) -> PlanContext {
    let config = ProxyConfig {
        local_traffic,
        ..ProxyConfig::default()
    };
    PlanContext::new(&config, node, &[])
}

fn cluster_ranges(ranges: &[&str]) -> LocalTraffic {
    LocalTraffic::ClusterCidr(ranges.iter().map(|range| range.parse().expect("a range")).collect())
}

#[test]
fn rule_5_3_a_cluster_address_hides_clients_that_are_no_pods() {
    use Masquerade::{Never, Outsiders};
    let nowhere = node(&[]);
    for (local_traffic, node, expected) in [
        (cluster_ranges(&[]), &nowhere, [Never, Never]),
        (cluster_ranges(&["10.244.0.0/16"]), &nowhere, [Outsiders, Never]),
        (cluster_ranges(&["fd00:10::/48"]), &nowhere, [Never, Outsiders]),
        (
            cluster_ranges(&["10.244.0.0/16", "fd00:10::/48"]),
            &nowhere,
            [Outsiders, Outsiders],
        ),
        (LocalTraffic::NodeCidr, &nowhere, [Never, Never]),
        (LocalTraffic::NodeCidr, &node(&["10.244.1.0/24"]), [Outsiders, Never]),
        (
            LocalTraffic::BridgeInterface("cni0".to_owned()),
            &nowhere,
            [Outsiders, Outsiders],
        ),
        (
            LocalTraffic::InterfaceNamePrefix("veth".to_owned()),
            &nowhere,
            [Outsiders, Outsiders],
        ),
    ] {
        // The policy does not change it.
        for internal in ["Cluster", "Local"] {
            let world = World::on(context(local_traffic.clone(), node), [service(internal, "Cluster")]);
            let found = masquerade(&world, Kind::ClusterIP);
            assert_eq!(found, expected, "{local_traffic:?} {internal}");
        }
    }
}

#[test]
fn rule_5_3_and_rule_5_7_masquerade_all_concerns_cluster_addresses_only() {
    let config = ProxyConfig {
        masquerade_all: true,
        ..ProxyConfig::default()
    };
    let context = PlanContext::new(&config, &node(&[]), &[]);
    let world = World::on(context, [service("Local", "Local")]);
    assert_eq!(masquerade(&world, Kind::ClusterIP), [Masquerade::Always; 2]);
    for kind in [Kind::ExternalIP, Kind::LoadBalancer, Kind::NodePort] {
        assert_eq!(masquerade(&world, kind), [Masquerade::Host; 2], "{kind}");
    }
}

#[test]
fn rule_5_4_external_traffic_of_policy_cluster_hides_every_client() {
    for ranges in [&[][..], &["10.244.0.0/16"]] {
        let context = context(cluster_ranges(ranges), &node(&[]));
        let world = World::on(context, [service("Local", "Cluster")]);
        for kind in [Kind::ExternalIP, Kind::LoadBalancer, Kind::NodePort] {
            assert_eq!(masquerade(&world, kind), [Masquerade::Always; 2], "{kind}");
        }
    }
}

/// Off-node clients keep their address, pods as well; only the host's own are hidden.
#[test]
fn rule_5_5_and_rule_5_6_external_traffic_of_policy_local_hides_the_host_only() {
    for ranges in [&[][..], &["10.244.0.0/16"]] {
        let context = context(cluster_ranges(ranges), &node(&[]));
        let world = World::on(context, [service("Cluster", "Local")]);
        for kind in [Kind::ExternalIP, Kind::LoadBalancer, Kind::NodePort] {
            assert_eq!(masquerade(&world, kind), [Masquerade::Host; 2], "{kind}");
        }
    }
}
