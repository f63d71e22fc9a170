//! Choice of endpoints (behaviour.md 2).

use proxy_agent::source::{Change, Event};
use serde_json::{Value, json};

use crate::world::{NODE, World, node, service, web_slice};

/// The lists of a Service with these endpoints on a node in zone `zone-a`, as `cluster | local`.
fn lists(policy: &str, endpoints: Value) -> String {
    let zone = json!({"topology.kubernetes.io/zone": "zone-a"});
    let spec = json!({"clusterIPs": ["10.96.0.1"], "internalTrafficPolicy": policy, "ports": [{"port": 80}]});
    let world = World::with([node(&zone), service("web", spec), web_slice("web-1", endpoints)]);
    let lines = world.lines();
    lines[0].split(" -> ").nth(1).expect("lists").replace(":8080", "")
}

fn endpoint(address: &str, more: &Value) -> Value {
    let mut endpoint = json!({"addresses": [address]});
    for (field, value) in more.as_object().expect("fields") {
        endpoint[field] = value.clone();
    }
    endpoint
}

fn zones(zones: &[&str]) -> Value {
    json!({"hints": {"forZones": zones.iter().map(|zone| json!({"name": zone})).collect::<Vec<_>>()}})
}

fn nodes(nodes: &[&str]) -> Value {
    json!({"hints": {"forNodes": nodes.iter().map(|node| json!({"name": node})).collect::<Vec<_>>()}})
}

fn both(node: &str, zone: &str) -> Value {
    json!({"hints": {"forNodes": [{"name": node}], "forZones": [{"name": zone}]}})
}

fn draining(node: &str) -> Value {
    json!({"nodeName": node, "conditions": {"ready": false, "serving": true, "terminating": true}})
}

#[test]
fn rule_2_2_and_rule_2_4_the_internal_policy_decides_which_list_is_used() {
    let two = json!([
        endpoint("10.0.0.1", &json!({"nodeName": NODE})),
        endpoint("10.0.0.2", &json!({"nodeName": "b"}))
    ]);
    assert_eq!(lists("Cluster", two.clone()), "10.0.0.1,10.0.0.2 | -");
    assert_eq!(lists("Local", two), "- | 10.0.0.1");
}

#[test]
fn rule_2_5_node_hints_come_before_zone_hints() {
    let hinted = json!([
        endpoint("10.0.0.1", &both(NODE, "zone-b")),
        endpoint("10.0.0.2", &both("b", "zone-a"))
    ]);
    assert_eq!(lists("Cluster", hinted), "10.0.0.1 | -");
}

#[test]
fn rule_2_5_zone_hints_are_tried_when_node_hints_fail() {
    let elsewhere = json!([
        endpoint("10.0.0.1", &both("b", "zone-b")),
        endpoint("10.0.0.2", &both("b", "zone-a"))
    ]);
    assert_eq!(lists("Cluster", elsewhere), "10.0.0.2 | -");
    let one_missing = json!([
        endpoint("10.0.0.1", &both(NODE, "zone-b")),
        endpoint("10.0.0.2", &zones(&["zone-a"]))
    ]);
    assert_eq!(lists("Cluster", one_missing), "10.0.0.2 | -");
}

#[test]
fn rule_2_5_hints_count_only_if_every_ready_endpoint_has_one() {
    let missing = json!([
        endpoint("10.0.0.1", &zones(&["zone-a"])),
        endpoint("10.0.0.2", &json!({}))
    ]);
    assert_eq!(lists("Cluster", missing), "10.0.0.1,10.0.0.2 | -");
    let unready = json!({"conditions": {"ready": false, "serving": false}});
    let of_ready = json!([
        endpoint("10.0.0.1", &zones(&["zone-b", "zone-a"])),
        endpoint("10.0.0.2", &zones(&["zone-b"])),
        endpoint("10.0.0.3", &unready),
    ]);
    assert_eq!(lists("Cluster", of_ready), "10.0.0.1 | -");
    let node_missing = json!([endpoint("10.0.0.1", &nodes(&[NODE])), endpoint("10.0.0.2", &nodes(&[]))]);
    assert_eq!(lists("Cluster", node_missing), "10.0.0.1,10.0.0.2 | -");
}

#[test]
fn rule_2_5_hints_for_others_only_leave_all_endpoints() {
    let elsewhere = json!([
        endpoint("10.0.0.1", &zones(&["zone-b"])),
        endpoint("10.0.0.2", &zones(&["zone-c"]))
    ]);
    assert_eq!(lists("Cluster", elsewhere), "10.0.0.1,10.0.0.2 | -");
}

#[test]
fn rule_2_5_without_a_zone_there_is_no_zone_mode() {
    for labels in [json!({}), json!({"topology.kubernetes.io/zone": ""})] {
        let hinted = json!([
            endpoint("10.0.0.1", &zones(&[""])),
            endpoint("10.0.0.2", &zones(&["zone-a"]))
        ]);
        let world = World::with([
            node(&labels),
            crate::world::web("web", "10.96.0.1"),
            web_slice("web-1", hinted),
        ]);
        assert_eq!(
            world.lines(),
            ["ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080,10.0.0.2:8080 | -"]
        );
    }
}

#[test]
fn rule_2_6_draining_endpoints_are_used_when_nothing_is_ready() {
    let hinted = |address, hints: &Value| {
        let mut endpoint = endpoint(address, &draining("b"));
        endpoint["hints"] = hints["hints"].clone();
        endpoint
    };
    let none_ready = json!([
        hinted("10.0.0.1", &zones(&["zone-a"])),
        hinted("10.0.0.2", &zones(&["zone-b"]))
    ]);
    assert_eq!(lists("Cluster", none_ready), "10.0.0.1,10.0.0.2 | -");
    let one_ready = json!([endpoint("10.0.0.1", &draining("b")), endpoint("10.0.0.2", &json!({}))]);
    assert_eq!(lists("Cluster", one_ready), "10.0.0.2 | -");
}

#[test]
fn rule_2_7_the_local_list_falls_back_by_itself_and_knows_no_hints() {
    let hinted = json!([
        endpoint(
            "10.0.0.1",
            &json!({"nodeName": NODE, "hints": {"forZones": [{"name": "zone-b"}]}})
        ),
        endpoint(
            "10.0.0.2",
            &json!({"nodeName": NODE, "hints": {"forZones": [{"name": "zone-a"}]}})
        ),
    ]);
    assert_eq!(lists("Local", hinted), "- | 10.0.0.1,10.0.0.2");
    let remote_ready = json!([
        endpoint("10.0.0.1", &draining(NODE)),
        endpoint("10.0.0.2", &json!({"nodeName": "b"})),
    ]);
    assert_eq!(lists("Local", remote_ready.clone()), "- | 10.0.0.1");
    assert_eq!(lists("Cluster", remote_ready), "10.0.0.2 | -");
}

#[test]
fn rule_2_9_has_endpoints_looks_beyond_the_node() {
    assert_eq!(
        lists("Local", json!([endpoint("10.0.0.1", &json!({"nodeName": "b"}))])),
        "- | "
    );
    assert_eq!(lists("Local", json!([endpoint("10.0.0.1", &draining("b"))])), "- | ");
    assert_eq!(lists("Local", json!([])), "- |  !");
    assert_eq!(lists("Cluster", json!([])), " | - !");
}

#[test]
fn rule_2_10_what_only_serves_or_only_terminates_is_never_used() {
    let serving = json!({"nodeName": NODE, "conditions": {"ready": false, "serving": true, "terminating": false}});
    let terminating = json!({"nodeName": NODE, "conditions": {"ready": false, "serving": false, "terminating": true}});
    for conditions in [serving, terminating] {
        assert_eq!(lists("Cluster", json!([endpoint("10.0.0.1", &conditions)])), " | - !");
        assert_eq!(lists("Local", json!([endpoint("10.0.0.1", &conditions)])), "- |  !");
    }
}

#[test]
fn rule_2_12_a_change_of_zone_plans_everything_anew() {
    let hinted = json!([
        endpoint("10.0.0.1", &zones(&["zone-a"])),
        endpoint("10.0.0.2", &zones(&["zone-b"]))
    ]);
    let mut world = World::with([
        crate::world::web("web", "10.96.0.1"),
        crate::world::web("other", "10.96.0.2"),
        web_slice("web-1", hinted),
    ]);
    let everything = ["ns/other".to_owned(), "ns/web".to_owned()];
    let line = |world: &World| world.lines()[1].split(" -> ").nth(1).map(str::to_owned).expect("lists");
    for (zone, expected) in [("zone-a", "10.0.0.1:8080 | -"), ("zone-b", "10.0.0.2:8080 | -")] {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        assert_eq!(world.apply([node(&labels)]), everything.clone().into());
        assert_eq!(line(&world), expected);
        assert!(world.apply([node(&labels)]).is_empty(), "nothing changed");
    }
    world.apply([Event::Node(Change::Replace(Vec::new()))]);
    assert_eq!(line(&world), "10.0.0.1:8080,10.0.0.2:8080 | -");
}
