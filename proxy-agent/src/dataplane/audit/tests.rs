//! Every kind of damage is told, with the entry, and nothing else is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    num::NonZeroU32,
    time::Duration,
};

use proxy_common::layout::{
    Backend, Device, LOCAL_PODS, Member, MemberKey, ServiceKey, ServiceRanges, ServiceValue, SlotKey, SourceKey,
    address_flags, filter_bit,
};

use super::{Difference, Severity, Wanted, differences};
use crate::{
    dataplane::{memory::Memory, programmer::Programmer, table::Table as _},
    model::ObjectName,
    plan::{Family, Frontend, Kind, LocalSources, Masquerade, NodePlan, Protocol, ServicePort, TrafficPolicy},
};

type Plan = BTreeMap<ObjectName, Vec<Frontend>>;

const NOW: Duration = Duration::from_secs(1);
const WEB: ServiceKey<[u8; 4]> = ServiceKey::new([192, 0, 2, 1], 80, 6);

/// A frontend of `default/web` for whom clients stay with their endpoint, and only some are let in.
fn frontend(kind: Kind, address: Option<&str>, endpoints: &[&str]) -> Frontend {
    let parse = |text: &&str| text.parse::<SocketAddr>().expect("an endpoint");
    Frontend {
        service_port: ServicePort {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port_name: "http".to_owned(),
            protocol: Protocol::Tcp,
        },
        kind,
        family: endpoints
            .first()
            .map_or(Family::V4, |first| Family::of(parse(first).ip())),
        address: address.map(|address| address.parse().expect("an address")),
        port: 80,
        cluster: Some(endpoints.iter().map(parse).collect()),
        local: None,
        has_endpoints: !endpoints.is_empty(),
        serving: Vec::new(),
        policy: TrafficPolicy::Cluster,
        masquerade: Masquerade::Never,
        affinity: NonZeroU32::new(10_800),
        sources: if kind == Kind::LoadBalancer {
            vec!["198.51.100.0/24".parse().expect("a range")]
        } else {
            Vec::new()
        },
    }
}

fn plan() -> (Plan, NodePlan, BTreeMap<u32, Device>) {
    let v4 = ["10.244.0.1:8080", "10.244.1.1:8080"];
    let name = ObjectName {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    };
    let frontends = vec![
        frontend(Kind::ClusterIP, Some("10.96.0.1"), &v4),
        frontend(Kind::LoadBalancer, Some("192.0.2.1"), &v4),
        frontend(Kind::NodePort, None, &v4),
        frontend(Kind::ClusterIP, Some("fd00:96::1"), &["[fd00:244::1]:8080"]),
        frontend(Kind::ExternalIP, Some("192.0.2.9"), &[]),
    ];
    let own = BTreeSet::from(["192.0.2.100".parse().expect("an address")]);
    let node = NodePlan {
        node_port_addresses: own.clone(),
        loopback_node_port_addresses: BTreeSet::from(["127.0.0.1".parse().expect("an address")]),
        local_addresses: own,
        local_sources: LocalSources::Ranges(vec!["10.244.0.0/16".parse().expect("a range")]),
        service_ranges: vec!["10.96.0.0/16".parse().expect("a range")],
    };
    let device = Device {
        masquerade_v4: [192, 0, 2, 100],
        ..Device::default()
    };
    (Plan::from([(name, frontends)]), node, BTreeMap::from([(7, device)]))
}

fn differing(memory: &Memory) -> Vec<Difference> {
    let (frontends, node, devices) = plan();
    let wanted = Wanted {
        frontends: &frontends,
        node: &node,
        devices: Some(&devices),
    };
    differences(&memory.tables(), &wanted).expect("readable")
}

fn programmed() -> Memory {
    let memory = Memory::default();
    let (frontends, node, devices) = plan();
    let mut programmer = Programmer::load(memory.tables(), NOW).expect("readable");
    programmer.replace(frontends, NOW);
    programmer.set_devices(&devices, NOW);
    programmer.set_node(node, NOW);
    assert_eq!(programmer.problems(), []);
    memory
}

fn value(memory: &Memory) -> ServiceValue {
    memory.v4.services.get(&WEB).expect("readable").expect("an entry")
}

/// A damage is told as these differences: severity, table and entry.
fn expect(damage: impl FnOnce(&Memory), expected: &[(Severity, &str, &str)]) {
    let memory = programmed();
    assert_eq!(differing(&memory), [], "before");
    damage(&memory);
    let told = differing(&memory);
    let told: Vec<_> = told
        .iter()
        .map(|difference| (difference.severity, difference.table, difference.entry.as_str()))
        .collect();
    assert_eq!(told, expected);
}

fn change(memory: &Memory, change: impl FnOnce(&mut ServiceValue)) {
    let mut value = value(memory);
    change(&mut value);
    memory.v4.services.clone().insert(&WEB, &value).expect("room");
}

#[test]
fn damaged_frontends_are_told() {
    use Severity::{Leftover, Wrong};
    let web = "192.0.2.1:80/TCP";
    let aspect = |aspect: &str| format!("{web} {aspect}");
    expect(
        |memory| assert!(memory.v4.services.clone().remove(&WEB).expect("removed")),
        &[(Wrong, "services_v4", web)],
    );
    expect(
        |memory| change(memory, |value| value.flags ^= 1),
        &[(Wrong, "services_v4", &aspect("flags"))],
    );
    expect(
        |memory| change(memory, |value| value.affinity_timeout = 1),
        &[(Wrong, "services_v4", &aspect("affinity timeout"))],
    );
    expect(
        |memory| change(memory, |value| value.cluster_count = 1),
        &[(Wrong, "services_v4", &aspect("cluster"))],
    );
    expect(
        |memory| change(memory, |value| value.local_set = value.cluster_set),
        &[(Wrong, "services_v4", &aspect("local"))],
    );
    expect(
        |memory| change(memory, |value| value.service = 9),
        &[(Wrong, "service_names", "id 9"), (Wrong, "services_v4", &aspect("id"))],
    );
    expect(
        |memory| {
            let other = ServiceKey::new([10, 96, 0, 2], 80, 17);
            memory.v4.services.clone().insert(&other, &value(memory)).expect("room");
        },
        &[(Wrong, "services_v4", "10.96.0.2:80/UDP")],
    );
    expect(
        |memory| {
            let wildcard = ServiceKey::wildcard([10, 96, 0, 1]);
            assert!(memory.v4.services.clone().remove(&wildcard).expect("removed"));
        },
        &[(Wrong, "services_v4", "10.96.0.1 any port")],
    );
    expect(
        |memory| {
            let (set, backend) = (77, Backend::default());
            memory
                .v6
                .slots
                .clone()
                .insert(&SlotKey { set, index: 0 }, &backend)
                .expect("room");
        },
        &[(Leftover, "slots_v6", "set 77")],
    );
}

#[test]
fn damaged_endpoints_are_told() {
    use Severity::{Leftover, Wrong};
    let lists = [
        "10.96.0.1:80/TCP cluster",
        "192.0.2.1:80/TCP cluster",
        "nodePort 80/TCP cluster",
    ];
    let lists = lists.map(|entry| (Wrong, "services_v4", entry));
    let slot = |memory: &Memory| SlotKey {
        set: value(memory).cluster_set,
        index: 1,
    };
    // A hole, and a member that nobody leads to.
    expect(
        |memory| assert!(memory.v4.slots.clone().remove(&slot(memory)).expect("removed")),
        &[&lists[..], &[(Leftover, "members_v4", "set 1 10.244.1.1:8080")]].concat(),
    );
    expect(
        |memory| {
            let backend = Backend {
                address: [10, 244, 1, 1],
                port: 8081,
                reserved: 0,
            };
            memory.v4.slots.clone().insert(&slot(memory), &backend).expect("room");
        },
        &[
            &[(Wrong, "members_v4", "set 1 10.244.1.1:8081")],
            &lists[..],
            &[(Leftover, "members_v4", "set 1 10.244.1.1:8080")],
        ]
        .concat(),
    );
    let member = MemberKey::new(1, [10, 244, 0, 1], 8080);
    expect(
        |memory| assert!(memory.v4.members.clone().remove(&member).expect("removed")),
        &[(Wrong, "members_v4", "set 1 10.244.0.1:8080")],
    );
    expect(
        |memory| {
            let stray = MemberKey { set: 9, ..member };
            memory
                .v4
                .members
                .clone()
                .insert(&stray, &Member { since: 1 })
                .expect("room");
        },
        &[(Leftover, "members_v4", "set 9 10.244.0.1:8080")],
    );
}

#[test]
fn damaged_names_ranges_and_filters_are_told() {
    use Severity::{Leftover, Spare, Wrong};
    // Once for each frontend.
    expect(
        |memory| assert!(memory.service_names.clone().remove(&1).expect("removed")),
        &[(Wrong, "service_names", "id 1"); 5],
    );
    expect(
        |memory| {
            let name = memory.service_names.get(&1).expect("readable").expect("a name");
            memory.service_names.clone().insert(&5, &name).expect("room");
        },
        &[(Spare, "service_names", "id 5")],
    );
    let source = |service, address| SourceKey::new(service, address, 24);
    expect(
        |memory| {
            memory
                .v4
                .sources
                .clone()
                .insert(&source(1, [203, 0, 113, 0]), &1)
                .expect("room");
        },
        &[(Wrong, "sources_v4", "id 1 203.0.113.0/24")],
    );
    expect(
        |memory| {
            memory
                .v4
                .sources
                .clone()
                .insert(&source(8, [203, 0, 113, 0]), &1)
                .expect("room");
        },
        &[(Leftover, "sources_v4", "id 8 203.0.113.0/24")],
    );
    expect(
        |memory| {
            let pods = SourceKey::new(LOCAL_PODS, [10, 244, 0, 0], 16);
            assert!(memory.v4.sources.clone().remove(&pods).expect("removed"));
        },
        &[(Wrong, "sources_v4", "id 0 10.244.0.0/16")],
    );
    for (filter, address) in [
        ("frontend_filter", [192, 0, 2, 100]),
        ("backend_filter", [10, 244, 0, 1]),
    ] {
        let (word, mask) = filter_bit(&address);
        let entry = format!("word {word}");
        expect(
            |memory| {
                let table = if filter == "frontend_filter" {
                    &memory.frontend_filter
                } else {
                    &memory.backend_filter
                };
                let bits = table.get(&word).expect("readable").expect("a word");
                table.clone().insert(&word, &(bits & !mask)).expect("room");
            },
            &[(Wrong, filter, &entry)],
        );
    }
    expect(
        |memory| memory.backend_filter.clone().insert(&3, &0b101).expect("room"),
        &[(Spare, "backend_filter", "all words")],
    );
}

#[test]
fn damage_to_what_the_node_is_is_told() {
    use Severity::Wrong;
    expect(
        |memory| {
            let flags = address_flags::LOCAL;
            memory
                .v4
                .addresses
                .clone()
                .insert(&[192, 0, 2, 100], &flags)
                .expect("room");
        },
        &[(Wrong, "addresses_v4", "192.0.2.100")],
    );
    expect(
        |memory| memory.v6.addresses.clone().insert(&[1; 16], &1).expect("room"),
        &[(Wrong, "addresses_v6", "101:101:101:101:101:101:101:101")],
    );
    expect(
        |memory| {
            memory
                .service_ranges
                .clone()
                .insert(&0, &ServiceRanges::default())
                .expect("room");
        },
        &[(Wrong, "service_ranges", "all")],
    );
    // The bit that its address needs is the node's, too.
    expect(
        |memory| assert!(memory.devices.clone().remove(&7).expect("removed")),
        &[(Wrong, "devices", "7")],
    );
    expect(
        |memory| memory.devices.clone().insert(&8, &Device::default()).expect("room"),
        &[(Wrong, "devices", "8")],
    );
}
