//! Two Services that ask for one address, port and protocol.

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use proxy_agent::source::{Change, Event};
use serde_json::json;

use crate::world::{NODE, World, name, service, service_object, web};

/// A Service with port 80 of one address, created in this year.
fn aged(name: &str, year: u16) -> Event {
    let object = service_object(name, &json!({"clusterIPs": ["10.96.0.1"], "ports": [{"port": 80}]}));
    let time = serde_json::from_value(json!(format!("{year}-01-01T00:00:00Z"))).expect("a time");
    Event::Service(
        Change::Apply(Box::new(Service {
            metadata: ObjectMeta {
                creation_timestamp: Some(time),
                ..object.metadata
            },
            ..object
        }))
        .read(NODE),
    )
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

/// A Service with a nodePort and an external address, created in this year.
fn external(name: &str, year: u16, external_ip: &str, ingress: &str, node_port: u16) -> Event {
    let ports = json!([{"port": 80, "nodePort": node_port}]);
    let cluster_ip = format!("10.96.1.{}", name.len());
    let service: Service = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "ns", "name": name, "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
        "spec": {"type": "LoadBalancer", "clusterIPs": [cluster_ip], "externalIPs": [external_ip], "ports": ports},
        "status": {"loadBalancer": {"ingress": [{"ip": ingress}]}},
    }))
    .expect("a Service");
    Event::Service(Change::Apply(Box::new(service)).read(NODE))
}

/// Who serves what besides the cluster addresses: `place name`.
fn external_owners(world: &World) -> Vec<String> {
    let frontends = world.frontends.values().flatten();
    let mut owners: Vec<String> = frontends
        .filter(|frontend| frontend.kind != proxy_agent::plan::Kind::ClusterIP)
        .map(|frontend| format!("{} {}", frontend.vip(), frontend.service_port.service))
        .collect();
    owners.sort();
    owners
}

#[test]
fn rule_3_4_external_addresses_and_node_ports_have_one_owner_each() {
    let (old, young) = (
        external("old", 2020, "192.0.2.1", "198.51.100.1", 30080),
        external("young", 2021, "192.0.2.1", "198.51.100.1", 30080),
    );
    let owned = |name: &str| {
        [
            format!("192.0.2.1:80/TCP {name}"),
            format!("198.51.100.1:80/TCP {name}"),
            format!("IPv4 nodePort 30080/TCP {name}"),
        ]
    };
    for order in [[old.clone(), young.clone()], [young.clone(), old.clone()]] {
        let mut world = World::with(order);
        assert_eq!(external_owners(&world), owned("old"));
        let refused = |field: &str, vip: &str| {
            format!(
                "Service ns/young: {field}: {vip} belongs to Service ns/old, which is older: it is not served for this one \
                 until it is free"
            )
        };
        let mut problems = world.problems();
        problems.sort();
        let expected = [
            refused("spec.externalIPs", "192.0.2.1:80/TCP"),
            refused("spec.ports[].nodePort", "IPv4 nodePort 30080/TCP"),
            refused("status.loadBalancer.ingress", "198.51.100.1:80/TCP"),
        ];
        assert_eq!(problems, expected);
        // Its cluster address is served all the same.
        assert_eq!(world.lines().len(), 5);
        assert_eq!(
            world.apply([deleted("old")]),
            ["ns/old".to_owned(), "ns/young".to_owned()].into()
        );
        assert_eq!(external_owners(&world), owned("young"));
        assert!(world.problems().is_empty());
    }
}

/// One address for several Services on different ports is how load balancers share them.
#[test]
fn rule_3_4_an_address_can_be_shared_by_ports() {
    let shared = |name: &str, cluster_ip: &str, port: u16| {
        service(
            name,
            json!({"clusterIPs": [cluster_ip], "externalIPs": ["192.0.2.1"], "ports": [{"port": port}]}),
        )
    };
    let world = World::with([shared("a", "10.96.0.1", 80), shared("b", "10.96.0.2", 443)]);
    assert_eq!(external_owners(&world), ["192.0.2.1:443/TCP b", "192.0.2.1:80/TCP a"]);
    assert!(world.problems().is_empty());
}

/// Otherwise whoever may write a Service could take the traffic of any other.
#[test]
fn a_cluster_address_belongs_to_its_service_however_old_the_other_is() {
    let ports = json!([{"port": 80}]);
    let mut thief = service_object(
        "thief",
        &json!({"clusterIPs": ["10.96.0.2"], "externalIPs": ["10.96.0.1"], "ports": ports}),
    );
    thief.metadata.creation_timestamp = Some(serde_json::from_value(json!("2019-01-01T00:00:00Z")).expect("a time"));
    let thief = Event::Service(Change::Apply(Box::new(thief)).read(NODE));
    let mut world = World::with([thief]);
    assert_eq!(external_owners(&world), ["10.96.0.1:80/TCP thief"]);
    assert_eq!(
        world.apply([aged("web", 2024)]),
        ["ns/thief".to_owned(), "ns/web".to_owned()].into()
    );
    assert_eq!(external_owners(&world), [""; 0]);
    assert_eq!(owner(&world), "ns/thief:,ns/web:");
    let problem = "Service ns/thief: spec.externalIPs: 10.96.0.1:80/TCP belongs to Service ns/web, which has it as its cluster \
                   address: it is not served for this one until it is free";
    assert_eq!(world.problems(), [problem]);
}

/// An address that one Service lists twice is served once, as what guards it best.
#[test]
fn an_address_twice_in_a_service_is_one_frontend() {
    let spec = json!({"clusterIPs": ["10.96.0.1"], "externalIPs": ["10.96.0.1", "192.0.2.1", "192.0.2.1"], "ports": [{"port": 80}]});
    let world = World::with([crate::world::balanced(
        "web",
        spec,
        json!([{"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}]),
    )]);
    assert_eq!(
        world.lines(),
        [
            "ns/web: 10.96.0.1:80/TCP ->  | - !",
            "ns/web: LoadBalancer 192.0.2.1:80/TCP ->  | - !"
        ]
    );
    assert!(world.problems().is_empty());
}

#[test]
fn one_service_can_use_a_node_port_twice_only_by_mistake() {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "nodePort": 30080});
    let spec = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1"], "ports": [port("b", 80), port("a", 81)]});
    let world = World::with([service("web", spec)]);
    assert_eq!(world.the(proxy_agent::plan::Kind::NodePort).service_port.port_name, "a");
    let problem = "Service ns/web: spec.ports[].nodePort: port \"b\" asks for IPv4 nodePort 30080/TCP, which port \"a\" of the \
                   same Service has: it is not served";
    assert_eq!(world.problems(), [problem]);
}

/// behaviour.md 1.4: families are independent.
#[test]
fn node_ports_of_different_families_are_no_clash() {
    let of = |name: &str, address: &str| {
        service(
            name,
            json!({"type": "NodePort", "clusterIPs": [address], "ports": [{"port": 80, "nodePort": 30080}]}),
        )
    };
    let world = World::with([of("a", "10.96.0.1"), of("b", "fd00:96::1")]);
    assert_eq!(
        external_owners(&world),
        ["IPv4 nodePort 30080/TCP a", "IPv6 nodePort 30080/TCP b"]
    );
    assert!(world.problems().is_empty());
}
