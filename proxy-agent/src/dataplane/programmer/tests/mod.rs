//! The programmer against the in-memory twin.

mod damage;
mod kill;
mod node;
mod probe;
mod property;
mod refused;
mod view;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use proxy_common::layout::{
    Backend, Counter, Device, EndpointKey, RefusalKey, ServiceCounter, ServiceKey, ServiceValue, SlotKey, filter_bit,
    service_flags,
};

use self::view::{Views, expected, seen};
use super::{GRACE, Programmer, filter::bit_of};
use crate::{
    dataplane::{collect::FlowUsage, memory::Memory, table::Table as _},
    model::{ObjectName, Problem},
    plan::{Family, Frontend, Kind, Masquerade, Protocol, ServicePort, TrafficPolicy},
};

type Plan = BTreeMap<ObjectName, Vec<Frontend>>;

fn object(name: &str) -> ObjectName {
    ObjectName {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn service_port(service: &str, port_name: &str) -> ServicePort {
    ServicePort {
        namespace: "default".to_owned(),
        service: service.to_owned(),
        port_name: port_name.to_owned(),
        protocol: Protocol::Tcp,
    }
}

/// A frontend of the only port of `service`.
fn frontend(service: &str, address: &str, cluster: &[&str]) -> Frontend {
    let address: SocketAddr = address.parse().expect("an address and port");
    Frontend {
        service_port: service_port(service, ""),
        kind: Kind::ClusterIP,
        family: Family::of(address.ip()),
        address: Some(address.ip()),
        port: address.port(),
        cluster: Some(
            cluster
                .iter()
                .map(|endpoint| endpoint.parse().expect("an endpoint"))
                .collect(),
        ),
        local: None,
        has_endpoints: !cluster.is_empty(),
        serving: Vec::new(),
        policy: TrafficPolicy::Cluster,
        masquerade: Masquerade::Never,
        affinity: None,
        sources: Vec::new(),
    }
}

fn plan(frontends: &[Frontend]) -> Plan {
    let mut plan = Plan::new();
    for frontend in frontends {
        plan.entry(object(&frontend.service_port.service))
            .or_default()
            .push(frontend.clone());
    }
    plan
}

fn second(second: u64) -> Duration {
    Duration::from_secs(second)
}

fn start(memory: &Memory) -> Programmer {
    Programmer::load(memory.tables(), second(0)).expect("readable")
}

/// A programmer that has the plan, on empty tables.
fn programmed(memory: &Memory, frontends: &[Frontend]) -> Programmer {
    let mut programmer = start(memory);
    programmer.replace(plan(frontends), second(1));
    assert_eq!(programmer.problems(), []);
    programmer
}

/// No flow uses anything.
fn unused(began: Duration) -> FlowUsage {
    FlowUsage {
        began,
        ..FlowUsage::default()
    }
}

/// Counts the writes from now on, by table.
fn count_writes(memory: &Memory) -> Arc<Mutex<BTreeMap<&'static str, usize>>> {
    let writes = Arc::new(Mutex::new(BTreeMap::new()));
    let counted = Arc::clone(&writes);
    memory.observe(Box::new(move |table| {
        *counted.lock().expect("no panic").entry(table).or_default() += 1;
    }));
    writes
}

fn value(memory: &Memory, address: [u8; 4]) -> ServiceValue {
    memory
        .v4
        .services
        .get(&ServiceKey::new(address, 80, 6))
        .expect("readable")
        .expect("an entry")
}

const ENDPOINTS: [&str; 3] = ["10.244.0.1:8080", "10.244.0.2:8080", "10.244.0.3:8080"];

#[test]
fn frontends_of_a_service_port_share_id_and_set() {
    let memory = Memory::default();
    let frontends = [
        frontend("web", "10.96.0.1:80", &ENDPOINTS),
        frontend("web", "192.0.2.1:80", &ENDPOINTS),
    ];
    programmed(&memory, &frontends);
    assert_eq!(seen(&memory), expected(&plan(&frontends)));
    assert_eq!(value(&memory, [10, 96, 0, 1]), value(&memory, [192, 0, 2, 1]));
    assert_eq!(memory.v4.slots.entries().expect("readable").len(), ENDPOINTS.len());
}

/// behaviour.md 4.1, 4.2: an empty list has no set; the flag tells reject from drop.
#[test]
fn a_list_without_endpoints_has_no_set() {
    let memory = Memory::default();
    let mut local = frontend("web", "10.96.0.2:80", &[]);
    (local.cluster, local.local, local.has_endpoints) = (None, Some(Vec::new()), true);
    programmed(&memory, &[frontend("api", "10.96.0.1:80", &[]), local]);
    let rejecting = value(&memory, [10, 96, 0, 1]);
    assert_eq!(
        (rejecting.cluster_set, rejecting.cluster_count, rejecting.flags),
        (0, 0, 0)
    );
    let dropping = value(&memory, [10, 96, 0, 2]);
    assert_eq!(
        (dropping.local_set, dropping.local_count, dropping.flags),
        (0, 0, service_flags::HAS_ENDPOINTS)
    );
}

/// behaviour.md 1.7, 9.6
#[test]
fn what_is_unchanged_is_not_written() {
    let memory = Memory::default();
    let frontends = [
        frontend("web", "10.96.0.1:80", &ENDPOINTS),
        frontend("web6", "[fd00::1]:80", &["[fd01::1]:80"]),
    ];
    let mut programmer = programmed(&memory, &frontends);
    let writes = count_writes(&memory);
    programmer.apply(plan(&frontends), second(2));
    programmer.replace(plan(&frontends), second(3));
    let mut restarted = start(&memory);
    restarted.replace(plan(&frontends), second(4));
    restarted.tick(second(100));
    restarted.reclaim(&unused(second(100)));
    assert_eq!(*writes.lock().expect("no panic"), BTreeMap::new());
}

/// behaviour.md 9.5, 9.7
#[test]
fn one_changed_endpoint_rewrites_one_set() {
    let memory = Memory::default();
    let mut frontends: Vec<_> = (1..=100)
        .map(|host| frontend(&format!("s{host}"), &format!("10.96.0.{host}:80"), &ENDPOINTS))
        .collect();
    let mut programmer = programmed(&memory, &frontends);
    let writes = count_writes(&memory);
    frontends[7] = frontend("s8", "10.96.0.8:80", &ENDPOINTS[..2]);
    programmer.apply(plan(&frontends[7..8]), second(2));
    assert_eq!(
        *writes.lock().expect("no panic"),
        BTreeMap::from([("services_v4", 1), ("slots_v4", 2)])
    );
    assert_eq!(seen(&memory), expected(&plan(&frontends)));
    // The old set goes when nobody can be reading it.
    programmer.tick(second(1) + GRACE);
    assert_eq!(writes.lock().expect("no panic")["slots_v4"], 2);
    programmer.tick(second(2) + GRACE);
    assert_eq!(writes.lock().expect("no panic")["slots_v4"], 2 + 3);
}

#[test]
fn set_ids_are_never_reused() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[frontend("web", "10.96.0.1:80", &ENDPOINTS)]);
    let mut ids = BTreeSet::from([value(&memory, [10, 96, 0, 1]).cluster_set]);
    for step in 0..6 {
        let endpoints = if step % 2 == 0 { &ENDPOINTS[1..] } else { &ENDPOINTS[..] };
        programmer.apply(
            plan(&[frontend("web", "10.96.0.1:80", endpoints)]),
            second(10 * step + 10),
        );
        programmer.tick(second(10 * step + 19));
        assert!(ids.insert(value(&memory, [10, 96, 0, 1]).cluster_set));
        if step == 3 {
            programmer = start(&memory);
        }
    }
}

#[test]
fn ids_survive_a_restart_and_are_freed_when_no_flow_names_them() {
    let memory = Memory::default();
    let web = frontend("web", "10.96.0.1:80", &ENDPOINTS);
    let api = frontend("api", "10.96.0.2:80", &ENDPOINTS);
    programmed(&memory, &[web.clone(), api.clone()]);
    let (first, kept) = (
        value(&memory, [10, 96, 0, 1]).service,
        value(&memory, [10, 96, 0, 2]).service,
    );
    let traffic = ServiceCounter {
        connections: 9,
        packets: 9,
        bytes: 9,
    };
    memory.service_counts.clone().insert(&first, &traffic).expect("room");
    for service in [first, kept] {
        let refusal = RefusalKey { service, reason: 8 };
        let refused = Counter { packets: 9, bytes: 9 };
        memory.refusals.clone().insert(&refusal, &refused).expect("room");
        let endpoint = EndpointKey::new(service, &[10, 244, 0, 1], 8080);
        memory
            .endpoint_counts
            .clone()
            .insert(&endpoint, &traffic)
            .expect("room");
    }

    let mut programmer = start(&memory);
    programmer.replace(plan(std::slice::from_ref(&api)), second(1));
    assert_eq!(value(&memory, [10, 96, 0, 2]).service, kept);
    // A flow of the Service that is gone still needs its name.
    let using = FlowUsage {
        services: [first].into(),
        ..unused(second(10))
    };
    programmer.reclaim(&using);
    assert!(memory.service_names.get(&first).expect("readable").is_some());
    programmer.reclaim(&unused(second(20)));
    assert!(memory.service_names.get(&first).expect("readable").is_none());

    programmer.apply(plan(&[frontend("new", "10.96.0.3:80", &ENDPOINTS)]), second(21));
    assert_eq!(value(&memory, [10, 96, 0, 3]).service, first, "the smallest free id");
    let counted = memory.service_counts.get(&first).expect("readable");
    assert_eq!(counted, Some(ServiceCounter::default()), "counters start anew");
    let refusals = memory.tables().refusals.entries().expect("readable");
    let endpoints = memory.tables().endpoint_counts.entries().expect("readable");
    let left = refusals.iter().map(|(key, _)| key.service);
    let left: Vec<_> = left.chain(endpoints.iter().map(|(key, _)| key.service)).collect();
    assert_eq!(left, [kept, kept], "those by reason and endpoint, too");
}

#[test]
fn a_service_that_returns_keeps_its_id() {
    let memory = Memory::default();
    let web = frontend("web", "10.96.0.1:80", &ENDPOINTS);
    let mut programmer = programmed(&memory, std::slice::from_ref(&web));
    let id = value(&memory, [10, 96, 0, 1]).service;
    programmer.apply(BTreeMap::from([(object("web"), Vec::new())]), second(2));
    assert_eq!(seen(&memory), Views::new());
    programmer.apply(plan(std::slice::from_ref(&web)), second(3));
    programmer.reclaim(&unused(second(100)));
    assert_eq!(value(&memory, [10, 96, 0, 1]).service, id);
    assert_eq!(seen(&memory), expected(&plan(&[web])));
}

#[test]
fn nothing_is_written_or_freed_before_the_whole_plan_is_known() {
    let memory = Memory::default();
    programmed(&memory, &[frontend("web", "10.96.0.1:80", &ENDPOINTS)]);
    let writes = count_writes(&memory);
    let mut restarted = start(&memory);
    restarted.tick(second(100));
    restarted.reclaim(&unused(second(100)));
    assert_eq!(*writes.lock().expect("no panic"), BTreeMap::new());
}

/// What is pinned may have been left by anything: a killed agent, or a hand.
#[test]
fn leftovers_are_removed_and_damaged_sets_rewritten() {
    let memory = Memory::default();
    let web = frontend("web", "10.96.0.1:80", &ENDPOINTS);
    programmed(&memory, std::slice::from_ref(&web));
    let set = value(&memory, [10, 96, 0, 1]).cluster_set;
    memory
        .v4
        .slots
        .clone()
        .remove(&SlotKey { set, index: 1 })
        .expect("removed");
    memory
        .v4
        .slots
        .clone()
        .insert(&SlotKey { set: 77, index: 0 }, &Backend::default())
        .expect("room");
    let nameless = ServiceValue {
        service: 55,
        ..ServiceValue::default()
    };
    memory
        .v4
        .services
        .clone()
        .insert(&ServiceKey::new([10, 96, 0, 9], 80, 6), &nameless)
        .expect("room");

    let mut programmer = start(&memory);
    programmer.replace(plan(std::slice::from_ref(&web)), second(1));
    programmer.tick(second(10));
    assert_eq!(seen(&memory), expected(&plan(&[web])));
    let slots = memory.v4.slots.entries().expect("readable");
    assert_eq!(slots.len(), ENDPOINTS.len());
    assert!(
        slots.iter().all(|(key, _)| key.set > 77),
        "ids go on above the highest found"
    );
}

#[test]
fn an_address_taken_is_refused_until_it_is_free() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[frontend("web", "10.96.0.1:80", &ENDPOINTS)]);
    let other = [
        frontend("api", "10.96.0.1:80", &ENDPOINTS[..1]),
        frontend("api", "10.96.0.2:80", &ENDPOINTS[..1]),
    ];
    programmer.apply(plan(&other), second(2));
    let problem = Problem {
        object: "Service default/api".to_owned(),
        field: "10.96.0.1 port 80 TCP".to_owned(),
        reason: "default/web: has the same address, port and protocol already".to_owned(),
    };
    assert_eq!(programmer.problems(), [problem]);
    assert_eq!(
        seen(&memory)[&("10.96.0.2:80".parse().expect("an address"), 6)]
            .cluster
            .len(),
        1,
        "the rest is served"
    );
    programmer.apply(BTreeMap::from([(object("web"), Vec::new())]), second(3));
    assert_eq!(programmer.problems(), []);
    assert_eq!(seen(&memory), expected(&plan(&other)));
}

#[test]
fn an_address_that_changes_hands_is_never_absent() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[frontend("web", "10.96.0.1:80", &ENDPOINTS)]);
    let writes = count_writes(&memory);
    let mut changes = plan(&[frontend("api", "10.96.0.1:80", &ENDPOINTS)]);
    changes.insert(object("web"), Vec::new());
    programmer.apply(changes, second(2));
    assert_eq!(writes.lock().expect("no panic")["services_v4"], 1, "one update");
    assert_eq!(
        seen(&memory),
        expected(&plan(&[frontend("api", "10.96.0.1:80", &ENDPOINTS)]))
    );
}

#[test]
fn a_full_table_is_told_and_the_rest_is_served() {
    let memory = Memory::new(&|table| (table == "slots_v4").then_some(4));
    let mut programmer = start(&memory);
    let web = frontend("web", "10.96.0.1:80", &ENDPOINTS);
    let api = frontend("api", "10.96.0.2:80", &ENDPOINTS);
    let six = frontend("six", "[fd00::1]:80", &["[fd01::1]:80"]);
    programmer.replace(plan(&[web.clone(), api.clone(), six.clone()]), second(1));
    let problem = Problem {
        object: "Service default/web".to_owned(),
        field: "10.96.0.1 port 80 TCP".to_owned(),
        reason: "table slots_v4 is full: it has room for 4 entries".to_owned(),
    };
    assert_eq!(programmer.problems(), [problem]);
    assert_eq!(seen(&memory), expected(&plan(&[api, six.clone()])));
    assert_eq!(
        memory.v4.slots.entries().expect("readable").len(),
        3,
        "no half a set stays"
    );
    // Room comes; nobody needs to ask again.
    programmer.apply(BTreeMap::from([(object("api"), Vec::new())]), second(2));
    programmer.tick(second(10));
    assert_eq!(programmer.problems(), []);
    assert_eq!(seen(&memory), expected(&plan(&[web, six])));
}

#[test]
fn filter_bits_stay_while_a_flow_uses_the_address() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[frontend("web", "10.96.0.1:80", &ENDPOINTS)]);
    programmer.replace(Plan::new(), second(10));
    programmer.tick(second(20));
    let bit = |address: [u8; 4]| {
        let (word, mask) = filter_bit(&address);
        memory.frontend_filter.get(&word).expect("readable").unwrap_or(0) & mask != 0
    };
    // A scan that began before nobody could start a flow any more proves nothing.
    programmer.reclaim(&unused(second(11)));
    assert!(bit([10, 96, 0, 1]));
    let using = FlowUsage {
        frontend_bits: [bit_of(&[10u8, 96, 0, 1])].into(),
        ..unused(second(30))
    };
    programmer.reclaim(&using);
    assert!(bit([10, 96, 0, 1]));
    programmer.reclaim(&unused(second(40)));
    assert!(!bit([10, 96, 0, 1]));
    let set = memory
        .backend_filter
        .entries()
        .expect("readable")
        .iter()
        .filter(|(_, word)| *word != 0)
        .count();
    assert_eq!(set, 0);
}

#[test]
fn devices_come_and_go_with_their_masquerade_addresses() {
    let memory = Memory::default();
    let mut programmer = start(&memory);
    let device = Device {
        flags: 0,
        masquerade_v4: [10, 244, 0, 1],
        ..Device::default()
    };
    programmer.set_devices(&BTreeMap::from([(3, device), (4, device)]), second(1));
    let (word, mask) = filter_bit(&[10u8, 244, 0, 1]);
    assert_ne!(
        memory.frontend_filter.get(&word).expect("readable").unwrap_or(0) & mask,
        0
    );
    programmer.set_devices(&BTreeMap::from([(4, device)]), second(2));
    assert_eq!(memory.devices.entries().expect("readable"), [(4, device)]);
    programmer.replace(Plan::new(), second(3));
    programmer.reclaim(&unused(second(10)));
    assert_ne!(
        memory.frontend_filter.get(&word).expect("readable").unwrap_or(0) & mask,
        0,
        "device 4 has it, too"
    );
}
