//! Which Services count (behaviour.md 1.1-1.8).

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use proxy_agent::source::{Change, Event};
use serde_json::json;

use crate::world::{NODE, World, service, service_object, slice, web, web_slice};

fn labelled(label: Option<&str>) -> Event {
    let object = service_object("web", &json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}));
    let labels = label.map(|label| [(label.to_owned(), String::new())].into());
    Event::Service(
        Change::Apply(Box::new(Service {
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
fn rule_1_1_a_labelled_service_is_invisible_while_it_is_labelled() {
    for label in [
        "service.kubernetes.io/service-proxy-name",
        "service.kubernetes.io/headless",
    ] {
        let mut world = World::with([labelled(None)]);
        assert_eq!(world.lines(), ["ns/web: 10.96.0.1:80/TCP ->  | - !"]);
        assert_eq!(world.apply([labelled(Some(label))]), ["ns/web".to_owned()].into());
        assert!(world.lines().is_empty(), "{label}");
        assert_eq!(world.apply([labelled(None)]), ["ns/web".to_owned()].into());
        assert_eq!(world.lines().len(), 1, "{label}");
    }
}

#[test]
fn rule_1_2_and_rule_1_3_headless_external_and_unallocated_services_are_skipped() {
    let ports = json!([{"port": 80}]);
    for spec in [
        json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": ports}),
        json!({"clusterIP": "None", "ports": ports}),
        json!({"clusterIP": "", "ports": ports}),
        json!({"ports": ports}),
        json!({"type": "ExternalName", "externalName": "example.org", "clusterIPs": ["10.96.0.1"], "ports": ports}),
    ] {
        let world = World::with([
            service("web", spec.clone()),
            web_slice("web-1", json!([{"addresses": ["10.0.0.1"]}])),
        ]);
        assert!(world.lines().is_empty(), "{spec}");
    }
}

#[test]
fn rule_1_3_a_service_that_becomes_an_external_name_is_no_longer_served() {
    let mut world = World::with([web("web", "10.96.0.1")]);
    let spec = json!({"type": "ExternalName", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]});
    world.apply([service("web", spec)]);
    assert!(world.lines().is_empty());
}

#[test]
fn a_service_without_an_address_is_a_problem_only_where_nothing_allocates_one() {
    let world = World::with([service("web", json!({"ports": [{"port": 80}]}))]);
    let expected = "Service ns/web: spec.clusterIP: no address is given (nothing allocates one here): the Service is not \
                    served";
    assert_eq!(world.problems(), [expected]);
}

#[test]
fn rule_1_4_the_first_address_of_each_family_counts() {
    let ports = json!([{"port": 80}]);
    let addresses = json!(["fd00:96::1", "10.96.0.1", "10.96.0.2", "fd00:96::2"]);
    let world = World::with([service("web", json!({"clusterIPs": addresses, "ports": ports}))]);
    assert_eq!(
        world.lines(),
        [
            "ns/web: 10.96.0.1:80/TCP ->  | - !",
            "ns/web: [fd00:96::1]:80/TCP ->  | - !"
        ]
    );
    let families = json!({"clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv6"], "ports": ports});
    assert_eq!(
        World::with([service("web", families)]).lines(),
        ["ns/web: 10.96.0.1:80/TCP ->  | - !"]
    );
}

#[test]
fn rule_1_5_name_and_protocol_are_a_ports_key() {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "dns-sctp", "port": 53, "protocol": "SCTP"},
        {"name": "dns", "port": 54, "protocol": "UDP"},
    ]);
    let slice_ports = json!([{"name": "dns", "port": 1053, "protocol": "UDP"}, {"name": "dns-tcp", "port": 1054}]);
    let world = World::with([
        service("dns", json!({"clusterIPs": ["10.96.0.1"], "ports": ports})),
        slice(
            "dns-1",
            "dns",
            "IPv4",
            slice_ports,
            json!([{"addresses": ["10.0.0.1"]}]),
        ),
    ]);
    let expected = [
        "ns/dns:dns 10.96.0.1:53/UDP -> 10.0.0.1:1053 | -",
        "ns/dns:dns-sctp 10.96.0.1:53/SCTP ->  | - !",
        "ns/dns:dns-tcp 10.96.0.1:53/TCP -> 10.0.0.1:1054 | -",
    ];
    assert_eq!(world.lines(), expected);
    let problem = "Service ns/dns: spec.ports[3].name: a UDP port before this one has the name \"dns\", too: this one is not \
                   served";
    assert_eq!(world.problems(), [problem]);
}

#[test]
fn rule_1_6_addresses_are_read_sloppily() {
    assert_eq!(
        World::with([web("web", "010.096.00.001")]).lines(),
        ["ns/web: 10.96.0.1:80/TCP ->  | - !"]
    );
}

#[test]
fn rule_1_7_what_is_not_derived_changes_nothing() {
    let mut world = World::with([web("web", "10.96.0.1")]);
    let spec = json!({
        "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "targetPort": "http"}],
        "selector": {"app": "web"}, "type": "ClusterIP", "trafficDistribution": "PreferClose",
    });
    assert!(world.apply([service("web", spec)]).is_empty());
}

#[test]
fn rule_1_7_what_returns_to_what_it_was_has_not_changed() {
    let mut world = World::with([web("web", "10.96.0.1"), web("other", "10.96.0.2")]);
    world.model.apply(web("web", "10.96.0.3"));
    world.model.apply(web("web", "10.96.0.1"));
    world
        .model
        .apply(Event::Service(Change::Delete(crate::world::name("other"))));
    world.model.apply(web("other", "10.96.0.2"));
    world.model.apply(web("fleeting", "10.96.0.4"));
    world
        .model
        .apply(Event::Service(Change::Delete(crate::world::name("fleeting"))));
    assert_eq!(world.model.take_changes(), None);
}

#[test]
fn rule_1_8_a_selector_does_not_matter() {
    let world = World::with([
        web("web", "10.96.0.1"),
        web_slice("by-hand", json!([{"addresses": ["192.0.2.1"]}])),
    ]);
    assert_eq!(world.lines(), ["ns/web: 10.96.0.1:80/TCP -> 192.0.2.1:8080 | -"]);
}

#[test]
fn a_bad_field_is_named_and_the_rest_is_served() {
    let spec = json!({
        "clusterIPs": ["10.96.0.256", "fd00:96::1", "0.0.0.0"],
        "internalTrafficPolicy": "local",
        "ports": [
            {"name": "a", "port": 0},
            {"name": "b", "port": 80, "protocol": "tcp"},
            {"name": "c", "port": 70000},
            {"name": "d", "port": 65535},
        ],
    });
    let world = World::with([service("web", spec)]);
    assert_eq!(world.lines(), ["ns/web:d [fd00:96::1]:65535/TCP ->  | - !"]);
    let expected = [
        "Service ns/web: spec.clusterIPs[0]: \"10.96.0.256\" is no IP address",
        "Service ns/web: spec.clusterIPs[2]: 0.0.0.0 can't be a Service's address",
        "Service ns/web: spec.internalTrafficPolicy: \"local\" is no traffic policy: Cluster and Local are; taken for Cluster",
        "Service ns/web: spec.ports[0].port: 0 is no port: 1 to 65535 are",
        "Service ns/web: spec.ports[1].protocol: \"tcp\" is no protocol of a Service: TCP, UDP and SCTP are",
        "Service ns/web: spec.ports[2].port: 70000 is no port: 1 to 65535 are",
    ];
    assert_eq!(world.problems(), expected);
}

#[test]
fn a_problem_ends_with_its_cause() {
    let mut world = World::with([web("web", "nowhere"), web("gone", "nowhere")]);
    assert_eq!(world.problems().len(), 2);
    world.apply([web("web", "10.96.0.1")]);
    assert_eq!(
        world.problems(),
        ["Service ns/gone: spec.clusterIPs[0]: \"nowhere\" is no IP address"]
    );
    world.apply([Event::Service(Change::Replace(Vec::new()))]);
    assert!(world.problems().is_empty());
}
