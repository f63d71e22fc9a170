//! Which Services are planned anew (behaviour.md 1.7, 9.1, 9.2, 9.5).

use proxy_agent::{
    model::Changes,
    source::{Change, Event},
};
use serde_json::json;

use crate::world::{NODE, World, name, node, service_object, slice, slice_object, web, web_slice};

#[test]
fn rule_9_1_nothing_is_said_before_both_kinds_are_listed() {
    let mut world = World::unlisted();
    let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]});
    world.model.apply(node(&json!({})));
    world.model.apply(web("early", "10.96.0.9"));
    assert!(!world.model.is_synced());
    world.model.apply(Event::Service(
        Change::Replace(vec![service_object("web", &spec)]).read(NODE),
    ));
    assert!(!world.model.is_synced());
    assert_eq!(world.model.take_changes(), None);
    let ports = json!([{"name": "", "port": 8080}]);
    let slice = slice_object("web-1", "web", "IPv4", &ports, &json!([{"addresses": ["10.0.0.1"]}]));
    world
        .model
        .apply(Event::EndpointSlice(Change::Replace(vec![slice]).read(NODE)));
    assert!(world.model.is_synced());
    assert_eq!(world.model.take_changes(), Some(Changes::Everything));
    assert_eq!(world.model.take_changes(), None);
}

/// What was never told is not gone; what was told and is deleted is.
#[test]
fn rule_9_1_while_something_is_unread_only_what_is_known_changes() {
    let unread = |has_unread| Event::Problems {
        origin: "a.yaml".to_owned(),
        problems: Vec::new(),
        has_unread,
    };
    let mut earlier = World::with([web("unread", "10.96.0.1")]);
    let mut world = World::unlisted();
    world.frontends.append(&mut earlier.frontends);
    world.apply([
        unread(true),
        Event::EndpointSlice(Change::Replace(Vec::new())),
        Event::Service(Change::Replace(Vec::new())),
    ]);
    world.apply([web("known", "10.96.0.2")]);
    assert_eq!(world.lines().len(), 2);
    world.apply([
        node(&json!({"topology.kubernetes.io/zone": "east"})),
        Event::Service(Change::Delete(name("known"))),
    ]);
    assert_eq!(world.lines(), ["ns/unread: 10.96.0.1:80/TCP ->  | - !"]);
    world.apply([unread(false)]);
    assert_eq!(world.lines(), [""; 0]);
    world.apply([unread(true), node(&json!({}))]);
    assert_eq!(world.model.take_changes(), None);
    world.model.apply(node(&json!({"topology.kubernetes.io/zone": "west"})));
    assert_eq!(
        world.model.take_changes(),
        Some(Changes::Everything),
        "all that there was is known by now"
    );
}

#[test]
fn rule_9_2_the_node_is_not_waited_for() {
    assert!(World::empty().model.is_synced());
}

#[test]
fn rule_9_5_only_what_changed_is_planned() {
    let one = |address: &str| json!([{"addresses": [address]}]);
    let mut world = World::with([
        web("web", "10.96.0.1"),
        web("other", "10.96.0.2"),
        web_slice("web-1", one("10.0.0.1")),
    ]);
    assert_eq!(
        world.apply([web_slice("web-1", one("10.0.0.2"))]),
        ["ns/web".to_owned()].into()
    );
    assert_eq!(
        world.apply([web_slice("web-2", one("10.0.0.3"))]),
        ["ns/web".to_owned()].into()
    );
    assert_eq!(
        world.apply([Event::EndpointSlice(Change::Delete(name("web-2")))]),
        ["ns/web".to_owned()].into()
    );
    assert_eq!(world.lines()[1], "ns/web: 10.96.0.1:80/TCP -> 10.0.0.2:8080 | -");
}

#[test]
fn a_slice_that_moves_changes_both_services() {
    let (ports, one) = (
        json!([{"name": "", "port": 8080}]),
        json!([{"addresses": ["10.0.0.1"]}]),
    );
    let mut world = World::with([
        web("web", "10.96.0.1"),
        web("other", "10.96.0.2"),
        web_slice("s", one.clone()),
    ]);
    let moved = world.apply([slice("s", "other", "IPv4", ports, one)]);
    assert_eq!(moved, ["ns/other".to_owned(), "ns/web".to_owned()].into());
    assert_eq!(
        world.lines(),
        [
            "ns/other: 10.96.0.2:80/TCP -> 10.0.0.1:8080 | -",
            "ns/web: 10.96.0.1:80/TCP ->  | - !"
        ]
    );
}

#[test]
fn a_list_replaces_all_that_was_there() {
    let one = json!([{"addresses": ["10.0.0.1"]}]);
    let mut world = World::with([
        web("web", "10.96.0.1"),
        web("other", "10.96.0.2"),
        web_slice("web-1", one),
    ]);
    let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]});
    let changed = world.apply([Event::Service(
        Change::Replace(vec![service_object("web", &spec)]).read(NODE),
    )]);
    assert_eq!(changed, ["ns/other".to_owned()].into());
    assert_eq!(
        world.apply([Event::EndpointSlice(Change::Replace(Vec::new()))]),
        ["ns/web".to_owned()].into()
    );
    assert_eq!(world.lines(), ["ns/web: 10.96.0.1:80/TCP ->  | - !"]);
}

#[test]
fn a_slice_without_a_service_changes_nothing() {
    let mut world = World::empty();
    assert!(
        world
            .apply([web_slice("web-1", json!([{"addresses": ["10.0.0.1"]}]))])
            .is_empty()
    );
}

#[test]
fn another_nodes_object_changes_nothing() {
    let mut world = World::with([web("web", "10.96.0.1")]);
    let other: Result<k8s_openapi::api::core::v1::Node, _> = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "node-b", "labels": {"topology.kubernetes.io/zone": "zone-b"}},
    }));
    world.apply([Event::Node(Change::Apply(Box::new(other.expect("a Node"))).read(NODE))]);
    assert_eq!(world.model.node().zone, None);
}
