//! Which EndpointSlices count, and what in them (behaviour.md 1.1, 1.9-1.18).

use k8s_openapi::{api::discovery::v1::EndpointSlice, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use proxy_agent::source::{Change, Event};
use serde_json::{Value, json};

use crate::world::{NODE, World, name, service, slice, slice_object, web, web_slice};

/// Endpoints of Service `web`'s port, from slices.
fn endpoints(slices: impl IntoIterator<Item = Event>) -> String {
    let mut world = World::with([web("web", "10.96.0.1")]);
    world.apply(slices);
    let lines = world.lines();
    let [line] = lines.as_slice() else {
        panic!("{lines:?}");
    };
    let lists = line.split(" -> ").nth(1).expect("lists");
    lists.split(" |").next().expect("a list").to_owned()
}

fn ports() -> Value {
    json!([{"name": "", "port": 8080}])
}

fn one() -> Value {
    json!([{"addresses": ["10.0.0.1"]}])
}

/// A slice of Service `web` with these labels only.
fn labelled(labels: &Value) -> Event {
    let object = slice_object("web-1", "web", "IPv4", &ports(), &one());
    let labels = serde_json::from_value(labels.clone()).expect("labels");
    Event::EndpointSlice(
        Change::Apply(Box::new(EndpointSlice {
            metadata: ObjectMeta {
                labels,
                ..object.metadata
            },
            ..object
        }))
        .read(NODE),
    )
}

#[test]
fn rule_1_1_a_labelled_slice_is_invisible() {
    assert_eq!(
        endpoints([labelled(&json!({"kubernetes.io/service-name": "web"}))]),
        "10.0.0.1:8080"
    );
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        assert_eq!(
            endpoints([labelled(&json!({"kubernetes.io/service-name": "web", label: ""}))]),
            "",
            "{label}"
        );
    }
}

#[test]
fn rule_1_9_a_slice_serves_its_own_family_only() {
    let mut world = World::with([service(
        "web",
        json!({"clusterIPs": ["10.96.0.1", "fd00:96::1"], "ports": [{"port": 80}]}),
    )]);
    world.apply([
        slice(
            "v4",
            "web",
            "IPv4",
            ports(),
            json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["fd00::9"]}]),
        ),
        slice("v6", "web", "IPv6", ports(), json!([{"addresses": ["fd00::1"]}])),
        slice("names", "web", "FQDN", ports(), json!([{"addresses": ["example.org"]}])),
        slice("other", "web", "IPv5", ports(), one()),
    ]);
    let expected = [
        "ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080 | -",
        "ns/web: [fd00:96::1]:80/TCP -> [fd00::1]:8080 | -",
    ];
    assert_eq!(world.lines(), expected);
    let problems = [
        "EndpointSlice ns/other: addressType: \"IPv5\" is unknown: IPv4, IPv6 and FQDN are; the slice is ignored",
        "EndpointSlice ns/v4: endpoints[1].addresses[0]: \"fd00::9\" is no IPv4 address",
    ];
    assert_eq!(world.problems(), problems);
}

#[test]
fn rule_1_10_a_slice_needs_the_name_of_its_service() {
    for labels in [json!({}), json!({"kubernetes.io/service-name": ""}), json!(null)] {
        let world = World::with([web("web", "10.96.0.1"), labelled(&labels)]);
        assert_eq!(world.lines(), ["ns/web: 10.96.0.1:80/TCP ->  | - !"]);
        let problem = "EndpointSlice ns/web-1: metadata.labels[kubernetes.io/service-name]: missing: it names the Service; the \
                       slice is ignored";
        assert_eq!(world.problems(), [problem]);
    }
}

#[test]
fn rule_1_11_a_slice_waits_for_its_service() {
    let mut world = World::with([web_slice("web-1", one())]);
    assert!(world.lines().is_empty());
    world.apply([web("web", "10.96.0.1")]);
    assert_eq!(world.lines(), ["ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080 | -"]);
    world.apply([Event::Service(Change::Delete(name("web")))]);
    world.apply([web("web", "10.96.0.2")]);
    assert_eq!(world.lines(), ["ns/web: 10.96.0.2:80/TCP -> 10.0.0.1:8080 | -"]);
}

#[test]
fn rule_1_12_ports_match_by_name_and_protocol() {
    let unnamed = [
        slice("no-name", "web", "IPv4", json!([{"port": 8080}]), one()),
        slice("no-port", "web", "IPv4", json!([{"name": ""}]), one()),
        slice("zero", "web", "IPv4", json!([{"name": "", "port": 0}]), one()),
        slice("named", "web", "IPv4", json!([{"name": "http", "port": 80}]), one()),
        slice(
            "udp",
            "web",
            "IPv4",
            json!([{"name": "", "port": 80, "protocol": "UDP"}]),
            one(),
        ),
    ];
    assert_eq!(endpoints(unnamed), "");
    let mixed = [
        slice("a", "web", "IPv4", json!([{"name": "", "port": 8080}]), one()),
        slice(
            "b",
            "web",
            "IPv4",
            json!([{"name": "", "port": 9090}]),
            json!([{"addresses": ["10.0.0.2"]}]),
        ),
    ];
    assert_eq!(endpoints(mixed), "10.0.0.1:8080,10.0.0.2:9090");
}

#[test]
fn rule_1_12_a_port_that_is_ignored_is_named() {
    let ports =
        json!([{"port": 8080}, {"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": 1, "protocol": "x"}]);
    let world = World::with([slice("web-1", "web", "IPv4", ports, one())]);
    let expected = [
        "EndpointSlice ns/web-1: ports[0].name: missing: the port is ignored; the name of an unnamed port is \"\"",
        "EndpointSlice ns/web-1: ports[1].port: missing: the port is ignored",
        "EndpointSlice ns/web-1: ports[2].port: 0 is no port: 1 to 65535 are",
        "EndpointSlice ns/web-1: ports[3].protocol: \"x\" is no protocol of a Service: TCP, UDP and SCTP are",
    ];
    assert_eq!(world.problems(), expected);
}

#[test]
fn rule_1_13_the_first_address_counts_and_is_canonical() {
    let several = json!([{"addresses": ["010.0.0.01", "10.0.0.2"]}, {"addresses": []}]);
    assert_eq!(endpoints([web_slice("web-1", several)]), "10.0.0.1:8080");
}

#[test]
fn addresses_that_no_packet_can_be_sent_to_are_refused() {
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "169.254.1.1",
        "x",
    ] {
        let mut world = World::with([web("web", "10.96.0.1")]);
        world.apply([web_slice(
            "web-1",
            json!([{"addresses": [address]}, {"addresses": ["10.0.0.1"]}]),
        )]);
        assert_eq!(
            world.lines(),
            ["ns/web: 10.96.0.1:80/TCP -> 10.0.0.1:8080 | -"],
            "{address}"
        );
        assert!(
            world.problems()[0].starts_with("EndpointSlice ns/web-1: endpoints[0].addresses[0]: "),
            "{address}"
        );
    }
}

#[test]
fn rule_1_14_conditions_have_defaults() {
    for (conditions, is_used) in [
        (json!(null), true),
        (json!({}), true),
        (json!({"ready": true, "serving": false, "terminating": true}), true),
        (json!({"ready": false}), false),
        (json!({"ready": false, "terminating": true}), true),
        (json!({"ready": false, "serving": true}), false),
        (json!({"ready": false, "serving": false, "terminating": true}), false),
    ] {
        let one = json!([{"addresses": ["10.0.0.1"], "conditions": conditions}]);
        assert_eq!(
            endpoints([web_slice("web-1", one)]) == "10.0.0.1:8080",
            is_used,
            "{conditions}"
        );
    }
}

#[test]
fn rule_1_15_local_is_what_names_this_node() {
    let spec = json!({"clusterIPs": ["10.96.0.1"], "internalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let three = json!([
        {"addresses": ["10.0.0.1"], "nodeName": NODE},
        {"addresses": ["10.0.0.2"], "nodeName": "node-b"},
        {"addresses": ["10.0.0.3"]},
    ]);
    let world = World::with([service("web", spec), web_slice("web-1", three)]);
    assert_eq!(world.lines(), ["ns/web: 10.96.0.1:80/TCP -> - | 10.0.0.1:8080"]);
}

#[test]
fn rule_1_16_of_duplicates_one_is_kept() {
    let twice = json!([{"addresses": ["10.0.0.2"]}, {"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]}]);
    assert_eq!(
        endpoints([web_slice("a", twice.clone()), web_slice("b", twice)]),
        "10.0.0.1:8080,10.0.0.2:8080"
    );
    // A terminating one and another beside it: whichever slice comes first, the one that isn't terminating counts.
    let draining =
        json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let broken = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": false}}]);
    for (first, second) in [(&draining, &broken), (&broken, &draining)] {
        assert_eq!(
            endpoints([web_slice("a", first.clone()), web_slice("b", second.clone())]),
            ""
        );
    }
    assert_eq!(endpoints([web_slice("a", draining)]), "10.0.0.1:8080");
}

#[test]
fn rule_1_17_a_pod_is_an_endpoint_of_each_port() {
    let ports = json!([{"name": "a", "port": 1}, {"name": "b", "port": 2}]);
    let slice_ports = json!([{"name": "a", "port": 8001}, {"name": "b", "port": 8002}]);
    let world = World::with([
        service("web", json!({"clusterIPs": ["10.96.0.1"], "ports": ports})),
        slice("web-1", "web", "IPv4", slice_ports, one()),
    ]);
    let expected = [
        "ns/web:a 10.96.0.1:1/TCP -> 10.0.0.1:8001 | -",
        "ns/web:b 10.96.0.1:2/TCP -> 10.0.0.1:8002 | -",
    ];
    assert_eq!(world.lines(), expected);
}

#[test]
fn rule_1_18_equal_content_and_unknown_deletions_change_nothing() {
    let mut world = World::with([web("web", "10.96.0.1"), web_slice("web-1", one())]);
    let explicit = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": true}, "targetRef": {"name": "pod"}}]);
    assert!(world.apply([web_slice("web-1", explicit)]).is_empty());
    assert!(
        world
            .apply([Event::EndpointSlice(Change::Delete(name("unknown")))])
            .is_empty()
    );
    assert!(
        world
            .apply([Event::Service(Change::Delete(name("unknown")))])
            .is_empty()
    );
}
