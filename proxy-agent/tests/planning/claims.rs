//! Two Services that ask for one address, port and protocol.

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use proxy_agent::source::{Change, Event};
use serde_json::json;

use crate::world::{World, name, service, service_object, web};

/// A Service with port 80 of one address, created in this year.
fn aged(name: &str, year: u16) -> Event {
    let object = service_object(name, &json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}));
    let time = serde_json::from_value(json!(format!("{year}-01-01T00:00:00Z"))).expect("a time");
    Event::Service(Change::Apply(Box::new(Service {
        metadata: ObjectMeta {
            creation_timestamp: Some(time),
            ..object.metadata
        },
        ..object
    })))
}

fn deleted(service: &str) -> Event {
    Event::Service(Change::Delete(name(service)))
}

fn owner(world: &World) -> String {
    world
        .lines()
        .iter()
        .map(|line| line.split(' ').next().expect("a name"))
        .collect::<Vec<_>>()
        .join(",")
}

#[test]
fn the_older_service_keeps_the_address_and_both_are_named() {
    for order in [["young", "old"], ["old", "young"]] {
        let mut world = World::empty();
        world.apply(order.map(|name| aged(name, if name == "old" { 2020 } else { 2021 })));
        assert_eq!(owner(&world), "ns/old:");
        let problem = "Service ns/young: spec.clusterIPs: 10.96.0.1:80/TCP belongs to Service ns/old, which is older: it is not \
                       served for this one until it is free";
        assert_eq!(world.problems(), [problem]);
    }
}

#[test]
fn the_next_takes_over_when_the_owner_goes() {
    let mut world = World::with([aged("c", 2022), aged("a", 2020), aged("b", 2021)]);
    assert_eq!((owner(&world), world.problems().len()), ("ns/a:".to_owned(), 2));
    assert_eq!(
        world.apply([deleted("a")]),
        ["ns/a".to_owned(), "ns/b".to_owned()].into()
    );
    assert_eq!((owner(&world), world.problems().len()), ("ns/b:".to_owned(), 1));
    // An owner that moves away frees its address as well.
    world.apply([web("b", "10.96.0.2")]);
    assert_eq!((owner(&world), world.problems().len()), ("ns/b:,ns/c:".to_owned(), 0));
    // An older one takes back what is its own.
    assert_eq!(
        world.apply([aged("a", 2020)]),
        ["ns/a".to_owned(), "ns/c".to_owned()].into()
    );
    assert_eq!((owner(&world), world.problems().len()), ("ns/a:,ns/b:".to_owned(), 1));
}

#[test]
fn without_ages_the_name_decides_and_a_known_age_wins() {
    let mut world = World::with([web("b", "10.96.0.1"), web("a", "10.96.0.1")]);
    assert_eq!(owner(&world), "ns/a:");
    assert!(world.problems()[0].contains("ns/a, which comes first by name"));
    world.apply([aged("z", 2020)]);
    assert_eq!(owner(&world), "ns/z:");
}

#[test]
fn other_ports_and_protocols_are_no_clash() {
    let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"name": "a", "port": 80, "protocol": "UDP"}, {"name": "b", "port": 81}]});
    let world = World::with([web("web", "10.96.0.1"), service("other", spec)]);
    assert_eq!(owner(&world), "ns/other:a,ns/other:b,ns/web:");
    assert!(world.problems().is_empty());
}

#[test]
fn one_service_can_clash_with_itself() {
    let spec = json!({"clusterIPs": ["10.96.0.1"], "ports": [{"name": "b", "port": 80}, {"name": "a", "port": 80}]});
    let world = World::with([service("web", spec)]);
    assert_eq!(owner(&world), "ns/web:a");
    let problem = "Service ns/web: spec.clusterIPs: port \"b\" asks for 10.96.0.1:80/TCP, which port \"a\" of the same Service \
                   has: it is not served";
    assert_eq!(world.problems(), [problem]);
}
