//! What a Service is reached at, and which lists lead from there (behaviour.md 1.4-1.8, 2.1-2.9, 3.1-3.4, 4).

use proxy_agent::{
    plan::{Kind, TrafficPolicy},
    source::Event,
};
use serde_json::{Value, json};

use crate::world::{NODE, World, balanced, service, slice, web_slice};

/// One endpoint here and one elsewhere.
fn two() -> Event {
    web_slice(
        "web-1",
        json!([{"addresses": ["10.0.0.1"], "nodeName": NODE}, {"addresses": ["10.0.0.2"], "nodeName": "b"}]),
    )
}

fn elsewhere(conditions: &Value) -> Event {
    web_slice(
        "web-1",
        json!([{"addresses": ["10.0.0.2"], "nodeName": "b", "conditions": conditions}]),
    )
}

/// A Service with all kinds of frontends and these policies.
fn every_kind(internal: &str, external: &str) -> Event {
    balanced(
        "web",
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1"],
            "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"port": 80, "nodePort": 30080}],
        }),
        json!([{"ip": "198.51.100.1"}]),
    )
}

/// What `world` serves, without endpoints: `Kind place`.
fn places(world: &World) -> Vec<String> {
    let place = |line: String| {
        let start = line.split(" -> ").next().expect("a frontend");
        start.split_once(' ').expect("a name").1.to_owned()
    };
    world.lines().into_iter().map(place).collect()
}

#[test]
fn rule_3_1_a_service_has_four_kinds_of_frontends() {
    let world = World::with([every_kind("Cluster", "Cluster"), two()]);
    let both = "-> 10.0.0.1:8080,10.0.0.2:8080 | -";
    let expected = [
        format!("ns/web: 10.96.0.1:80/TCP {both}"),
        format!("ns/web: ExternalIP 192.0.2.1:80/TCP {both}"),
        format!("ns/web: LoadBalancer 198.51.100.1:80/TCP {both}"),
        format!("ns/web: NodePort IPv4:30080/TCP {both}"),
    ];
    assert_eq!(world.lines(), expected);
    assert_eq!(world.problems(), [""; 0]);
}

/// Which list a kind of frontend uses is said by the policy for its kind of address, whoever the client is.
#[test]
fn rule_2_2_and_rule_3_1_each_policy_governs_its_own_frontends() {
    let (all, here) = ("10.0.0.1:8080,10.0.0.2:8080", "10.0.0.1:8080");
    for (internal, external, inside, outside) in [
        ("Cluster", "Cluster", format!("{all} | -"), format!("{all} | -")),
        ("Local", "Cluster", format!("- | {here}"), format!("{all} | -")),
        ("Cluster", "Local", format!("{all} | -"), format!("{all} | {here}")),
        ("Local", "Local", format!("- | {here}"), format!("{all} | {here}")),
    ] {
        let world = World::with([every_kind(internal, external), two()]);
        let expected = [
            format!("ns/web: 10.96.0.1:80/TCP -> {inside}"),
            format!("ns/web: ExternalIP 192.0.2.1:80/TCP -> {outside}"),
            format!("ns/web: LoadBalancer 198.51.100.1:80/TCP -> {outside}"),
            format!("ns/web: NodePort IPv4:30080/TCP -> {outside}"),
        ];
        assert_eq!(world.lines(), expected, "{internal} {external}");
        let inside = match internal {
            "Local" => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let outside = match external {
            "Local" => TrafficPolicy::LocalForOutsiders,
            _ => TrafficPolicy::Cluster,
        };
        assert_eq!(world.the(Kind::ClusterIP).policy, inside, "{internal} {external}");
        for kind in [Kind::ExternalIP, Kind::LoadBalancer, Kind::NodePort] {
            assert_eq!(world.the(kind).policy, outside, "{internal} {external} {kind}");
        }
    }
}

/// Both policies Local: the Cluster list is there for those who are no outsiders (5.6). Without an external address
/// nobody needs it, nor the Local list if it is only external traffic that is Local.
#[test]
fn rule_2_1_and_rule_2_4_a_list_is_there_if_a_frontend_uses_it() {
    let lists = |spec: Value| {
        let world = World::with([service("web", spec), two()]);
        let used = |list: &Option<Vec<_>>| list.is_some();
        let frontends = world.frontends.values().flatten();
        let lists = frontends.map(|frontend| (frontend.kind, used(&frontend.cluster), used(&frontend.local)));
        lists.collect::<Vec<_>>()
    };
    let spec = |port: Value, external: Value| {
        json!({
            "type": "NodePort", "clusterIPs": ["10.96.0.1"], "internalTrafficPolicy": "Local",
            "externalTrafficPolicy": "Local", "externalIPs": external, "ports": [port],
        })
    };
    assert_eq!(
        lists(spec(json!({"port": 80}), json!([]))),
        [(Kind::ClusterIP, false, true)]
    );
    assert_eq!(
        lists(spec(json!({"port": 80, "nodePort": 30080}), json!([]))),
        [(Kind::ClusterIP, false, true), (Kind::NodePort, true, true)]
    );
    assert_eq!(
        lists(spec(json!({"port": 80}), json!(["192.0.2.1"]))),
        [(Kind::ClusterIP, false, true), (Kind::ExternalIP, true, true)]
    );
    // Of the other family: the Service isn't accessible in this one.
    assert_eq!(
        lists(spec(json!({"port": 80}), json!(["2001:db8::1"]))),
        [(Kind::ClusterIP, false, true)]
    );
}

#[test]
fn rule_2_3_the_external_policy_counts_by_type() {
    let external = |more: Value, kind: Kind| {
        let mut spec = json!({
            "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "Local", "ports": [{"port": 80, "nodePort": 30080}],
        });
        spec.as_object_mut()
            .expect("fields")
            .extend(more.as_object().expect("fields").clone());
        let world = World::with([balanced("web", spec, json!([{"ip": "198.51.100.1"}]))]);
        world.the(kind).policy
    };
    let local = TrafficPolicy::LocalForOutsiders;
    for kind in [Kind::NodePort, Kind::LoadBalancer] {
        assert_eq!(external(json!({"type": "LoadBalancer"}), kind), local);
        assert_eq!(external(json!({"type": "NodePort"}), kind), local);
        assert_eq!(external(json!({"type": "ClusterIP"}), kind), TrafficPolicy::Cluster);
        assert_eq!(external(json!({}), kind), TrafficPolicy::Cluster);
        let external_ips = json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]});
        assert_eq!(external(external_ips, kind), local);
        // The list itself counts, whichever family its addresses are of.
        let of_another_family = json!({"type": "ClusterIP", "externalIPs": ["2001:db8::1"]});
        assert_eq!(external(of_another_family, kind), local);
    }
}

/// The Cluster list of external traffic follows the hints, the Local list does not (2.5, 2.7, 5.6).
#[test]
fn rule_2_7_and_rule_5_6_the_lists_of_one_frontend_differ_in_hints() {
    let hinted = |address: &str, node: &str, hint: &str| json!({"addresses": [address], "nodeName": node, "hints": {"forNodes": [{"name": hint}]}});
    let endpoints = json!([hinted("10.0.0.1", NODE, "b"), hinted("10.0.0.2", "b", NODE)]);
    let world = World::with([every_kind("Cluster", "Local"), web_slice("web-1", endpoints)]);
    let expected = "ns/web: NodePort IPv4:30080/TCP -> 10.0.0.2:8080 | 10.0.0.1:8080";
    assert_eq!(world.lines()[3], expected);
}

#[test]
fn rule_1_4_without_a_cluster_address_there_is_nothing_in_a_family() {
    let spec = |addresses: Value| {
        json!({
            "type": "LoadBalancer", "clusterIPs": addresses, "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": ["2001:db8::1", "192.0.2.1"], "ports": [{"port": 80, "nodePort": 30080}],
        })
    };
    let ingress = json!([{"ip": "198.51.100.1"}, {"ip": "2001:db8::2"}]);
    let four = [
        "10.96.0.1:80/TCP",
        "ExternalIP 192.0.2.1:80/TCP",
        "LoadBalancer 198.51.100.1:80/TCP",
        "NodePort IPv4:30080/TCP",
    ];
    let six = [
        "[fd00:96::1]:80/TCP",
        "ExternalIP [2001:db8::1]:80/TCP",
        "LoadBalancer [2001:db8::2]:80/TCP",
        "NodePort IPv6:30080/TCP",
    ];
    for (addresses, mut expected) in [
        (json!(["10.96.0.1"]), four.to_vec()),
        (json!(["fd00:96::1"]), six.to_vec()),
        (json!(["fd00:96::1", "10.96.0.1"]), [four, six].concat()),
    ] {
        let world = World::with([balanced("web", spec(addresses.clone()), ingress.clone())]);
        let mut places = places(&world);
        places.sort();
        expected.sort_unstable();
        assert_eq!(places, expected, "{addresses}");
        assert_eq!(world.problems(), [""; 0], "{addresses}");
    }
}

#[test]
fn rule_1_5_a_node_port_belongs_to_its_port_and_protocol() {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "nodePort": 30053},
        {"name": "inside", "port": 54},
    ]);
    let spec = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": ports});
    let ports = json!([{"name": "dns", "port": 5353, "protocol": "UDP"}]);
    let world = World::with([
        service("web", spec),
        slice("web-1", "web", "IPv4", ports, json!([{"addresses": ["10.0.0.1"]}])),
    ]);
    let expected = [
        "ns/web:dns 10.96.0.1:53/UDP -> 10.0.0.1:5353 | -",
        "ns/web:dns NodePort IPv4:30053/UDP -> 10.0.0.1:5353 | -",
        "ns/web:dns-tcp 10.96.0.1:53/TCP ->  | - !",
        "ns/web:dns-tcp NodePort IPv4:30053/TCP ->  | - !",
        "ns/web:inside 10.96.0.1:54/TCP ->  | - !",
    ];
    assert_eq!(world.lines(), expected);
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn rule_1_6_external_addresses_are_read_sloppily_and_bad_ones_are_named() {
    let addresses = json!([
        "192.000.002.001",
        "192.0.2",
        "127.0.0.1",
        "2001:DB8:0::1",
        "192.0.2.1",
        "0.0.0.0",
        ""
    ]);
    let spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00:96::1"], "externalIPs": addresses,
        "ports": [{"port": 80, "nodePort": 70000}],
    });
    let ingress =
        json!([{"ip": "198.051.100.001"}, {"ip": "here"}, {"ip": "198.51.100.2", "ipMode": "vip"}, {"ip": ""}]);
    let world = World::with([balanced("web", spec, ingress)]);
    let expected = [
        "10.96.0.1:80/TCP",
        "ExternalIP 192.0.2.1:80/TCP",
        "ExternalIP [2001:db8::1]:80/TCP",
        "LoadBalancer 198.51.100.1:80/TCP",
        "[fd00:96::1]:80/TCP",
    ];
    assert_eq!(places(&world), expected);
    let expected = [
        "Service ns/web: spec.externalIPs[1]: \"192.0.2\" is no IP address",
        "Service ns/web: spec.externalIPs[2]: 127.0.0.1 can't be a Service's address",
        "Service ns/web: spec.externalIPs[5]: 0.0.0.0 can't be a Service's address",
        "Service ns/web: spec.ports[0].nodePort: 70000 is no port: 1 to 65535 are",
        "Service ns/web: status.loadBalancer.ingress[1].ip: \"here\" is no IP address",
        "Service ns/web: status.loadBalancer.ingress[2].ipMode: \"vip\" is no such mode: VIP and Proxy are; the address is \
         not served",
    ];
    assert_eq!(world.problems(), expected);
}

#[test]
fn bad_policies_and_types_are_named_and_the_default_holds() {
    let spec = json!({
        "type": "Nodeport", "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "local",
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let world = World::with([service("web", spec)]);
    assert_eq!(world.the(Kind::NodePort).policy, TrafficPolicy::Cluster);
    let expected = [
        "Service ns/web: spec.externalTrafficPolicy: \"local\" is no traffic policy: Cluster and Local are; taken for Cluster",
        "Service ns/web: spec.type: \"Nodeport\" is no type of Service: ClusterIP, NodePort, LoadBalancer and ExternalName \
         are; taken for ClusterIP",
    ];
    assert_eq!(world.problems(), expected);
}

#[test]
fn rule_1_7_what_leads_to_the_same_plan_changes_nothing() {
    let spec = |external: Value, ranges: Value, ports: Value| {
        json!({
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": external,
            "loadBalancerSourceRanges": ranges, "ports": ports,
        })
    };
    let (one, other) = (
        json!({"name": "a", "port": 80, "nodePort": 30080}),
        json!({"name": "b", "port": 81}),
    );
    let before = balanced(
        "web",
        spec(
            json!(["192.0.2.1", "192.0.2.2"]),
            json!(["10.0.0.0/8", "11.0.0.0/8"]),
            json!([one, other]),
        ),
        json!([{"ip": "198.51.100.1"}]),
    );
    let after = balanced(
        "web",
        spec(
            json!(["192.0.2.2", "192.000.2.1", "192.0.2.1", "2001:db8::1"]),
            json!([" 11.0.0.0/8", "10.1.2.3/8", "2001:db8::/32"]),
            json!([other, one]),
        ),
        json!([{"hostname": "example.org"}, {"ip": "198.51.100.1", "ipMode": "VIP"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}]),
    );
    let mut world = World::with([before]);
    assert!(world.apply([after]).is_empty());
}

#[test]
fn rule_1_7_each_derived_field_counts() {
    let spec = || json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]});
    let with = |field: &str, value: Value| {
        let mut spec = spec();
        spec[field] = value;
        balanced("web", spec, json!([]))
    };
    for changed in [
        with("externalIPs", json!(["192.0.2.1"])),
        with("externalTrafficPolicy", json!("Local")),
        with("internalTrafficPolicy", json!("Local")),
        with("loadBalancerSourceRanges", json!(["10.0.0.0/8"])),
        with("sessionAffinity", json!("ClientIP")),
        with("ports", json!([{"port": 80, "nodePort": 30080}])),
        balanced("web", spec(), json!([{"ip": "198.51.100.1"}])),
    ] {
        let mut world = World::with([balanced("web", spec(), json!([]))]);
        assert_eq!(world.apply([changed.clone()]).len(), 1, "{changed:?}");
        assert!(world.apply([changed]).is_empty());
    }
}

#[test]
fn rule_1_8_only_what_kube_proxy_reads_counts() {
    let spec = json!({
        "type": "ClusterIP", "clusterIPs": ["10.96.0.1"], "loadBalancerIP": "198.51.100.9",
        "loadBalancerClass": "example.org/other", "allocateLoadBalancerNodePorts": false, "trafficDistribution": "PreferClose",
        "healthCheckNodePort": 30081, "selector": {"app": "web"}, "ports": [{"port": 80, "nodePort": 30080}],
    });
    // A nodePort and the status count whatever the type.
    let world = World::with([balanced("web", spec, json!([{"ip": "198.51.100.1"}]))]);
    let expected = [
        "10.96.0.1:80/TCP",
        "LoadBalancer 198.51.100.1:80/TCP",
        "NodePort IPv4:30080/TCP",
    ];
    assert_eq!(places(&world), expected);
    assert_eq!(world.problems(), [""; 0]);
}

#[test]
fn rule_1_3_a_service_that_becomes_an_external_name_leaves_no_frontend_behind() {
    let mut world = World::with([every_kind("Cluster", "Cluster"), two()]);
    let spec = json!({
        "type": "ExternalName", "externalName": "example.org", "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1"],
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    world.apply([balanced("web", spec, json!([{"ip": "198.51.100.1"}]))]);
    assert_eq!(world.lines(), [""; 0]);
}

#[test]
fn rule_2_13_annotations_do_not_choose_endpoints() {
    let endpoints = json!([
        {"addresses": ["10.0.0.1"], "nodeName": NODE, "zone": "zone-a"},
        {"addresses": ["10.0.0.2"], "nodeName": "b", "zone": "zone-b"},
    ]);
    let mut object = crate::world::service_object(
        "web",
        &json!({"clusterIPs": ["10.96.0.1"], "trafficDistribution": "PreferSameNode", "ports": [{"port": 80}]}),
    );
    object.metadata.annotations = Some([("service.kubernetes.io/topology-mode".to_owned(), "Auto".to_owned())].into());
    let world = World::with([
        crate::world::node(&json!({"topology.kubernetes.io/zone": "zone-a"})),
        Event::Service(proxy_agent::source::Change::Apply(Box::new(object)).read(NODE)),
        web_slice("web-1", endpoints),
    ]);
    assert_eq!(
        world.lines(),
        ["ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080,10.0.0.2:8080 | -"]
    );
}

#[test]
fn rule_3_2_only_an_address_of_mode_vip_is_served() {
    let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let ingress = json!([
        {"ip": "198.51.100.1"},
        {"ip": "198.51.100.2", "ipMode": "VIP"},
        {"ip": "198.51.100.3", "ipMode": "Proxy"},
        {"hostname": "example.org"},
    ]);
    let world = World::with([balanced("web", spec.clone(), ingress)]);
    let expected = [
        "10.96.0.1:80/TCP",
        "LoadBalancer 198.51.100.1:80/TCP",
        "LoadBalancer 198.51.100.2:80/TCP",
    ];
    assert_eq!(places(&world), expected);
    // Nor does it make the Service accessible from outside.
    let proxied = json!([{"ip": "198.51.100.3", "ipMode": "Proxy"}, {"hostname": "example.org"}]);
    let world = World::with([balanced("web", spec, proxied), two()]);
    assert_eq!(
        world.lines(),
        ["ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080,10.0.0.2:8080 | -"]
    );
}

#[test]
fn rule_3_3_load_balancers_need_no_node_ports() {
    let spec = json!({
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "clusterIPs": ["10.96.0.1"],
        "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
    });
    let world = World::with([balanced("web", spec, json!([{"ip": "198.51.100.1"}])), two()]);
    let expected = [
        "ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080,10.0.0.2:8080 | -",
        "ns/web: LoadBalancer 198.51.100.1:80/TCP -> 10.0.0.1:8080,10.0.0.2:8080 | 10.0.0.1:8080",
    ];
    assert_eq!(world.lines(), expected);
}

/// behaviour.md 4.1, 4.8: frontends without endpoints are still served, and say so.
#[test]
fn rule_4_1_and_rule_4_8_without_endpoints_every_frontend_rejects() {
    for policy in ["Cluster", "Local"] {
        let world = World::with([every_kind(policy, policy)]);
        let frontends: Vec<_> = world.frontends.values().flatten().collect();
        assert_eq!(frontends.len(), 4);
        for frontend in frontends {
            assert!(!frontend.has_endpoints, "{policy} {frontend:?}");
            let lists = [&frontend.cluster, &frontend.local];
            assert!(lists.into_iter().flatten().all(Vec::is_empty), "{policy} {frontend:?}");
        }
    }
}

/// behaviour.md 2.9, 4.2, 4.3: nobody here, but somebody elsewhere. Those who are no outsiders still get there.
#[test]
fn rule_4_2_and_rule_4_3_endpoints_elsewhere_make_a_local_frontend_drop() {
    let world = World::with([every_kind("Local", "Local"), elsewhere(&json!({}))]);
    let expected = [
        "ns/web: 10.96.0.1:80/TCP -> - | ",
        "ns/web: ExternalIP 192.0.2.1:80/TCP -> 10.0.0.2:8080 | ",
        "ns/web: LoadBalancer 198.51.100.1:80/TCP -> 10.0.0.2:8080 | ",
        "ns/web: NodePort IPv4:30080/TCP -> 10.0.0.2:8080 | ",
    ];
    assert_eq!(world.lines(), expected);
}

#[test]
fn rule_4_5_draining_endpoints_elsewhere_turn_reject_into_drop() {
    let draining = json!({"ready": false, "serving": true, "terminating": true});
    let world = World::with([every_kind("Local", "Local"), elsewhere(&draining)]);
    assert!(world.the(Kind::ClusterIP).has_endpoints);
    assert!(world.the(Kind::NodePort).has_endpoints);
    let ended = json!({"ready": false, "serving": false, "terminating": true});
    let world = World::with([every_kind("Local", "Local"), elsewhere(&ended)]);
    assert!(!world.the(Kind::ClusterIP).has_endpoints);
    assert!(!world.the(Kind::NodePort).has_endpoints);
}

/// Which list is to be kept in mind for affinity and open flows: the union of those that are used.
#[test]
fn rule_2_8_what_can_be_reached_is_what_the_lists_hold() {
    let reachable = |internal, external| {
        let draining = json!({"ready": false, "serving": true, "terminating": true});
        let endpoints = json!([
            {"addresses": ["10.0.0.1"], "nodeName": NODE, "conditions": draining},
            {"addresses": ["10.0.0.2"], "nodeName": "b"},
            {"addresses": ["10.0.0.3"], "nodeName": "b", "conditions": draining},
        ]);
        let world = World::with([every_kind(internal, external), web_slice("web-1", endpoints)]);
        let lists = world
            .frontends
            .values()
            .flatten()
            .flat_map(|frontend| [&frontend.cluster, &frontend.local]);
        let all: std::collections::BTreeSet<String> = lists
            .flatten()
            .flatten()
            .map(|endpoint| endpoint.ip().to_string())
            .collect();
        all.into_iter().collect::<Vec<_>>().join(",")
    };
    assert_eq!(reachable("Cluster", "Cluster"), "10.0.0.2");
    assert_eq!(reachable("Cluster", "Local"), "10.0.0.1,10.0.0.2");
    assert_eq!(reachable("Local", "Local"), "10.0.0.1,10.0.0.2");
}
