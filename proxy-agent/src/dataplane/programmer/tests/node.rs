//! What the tables hold of the node itself, of clients that keep their endpoint, and of cluster addresses.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
};

use proxy_common::layout::{
    AffinityKey, AffinityValue, CLUSTER_LIST, LOCAL_PODS, MemberKey, ServiceKey, SourceKey, address_flags, filter_bit,
};

use super::{frontend, plan, programmed, second, start, unused};
use crate::{
    dataplane::{memory::Memory, programmer::Programmer, table::Table as _},
    plan::{Frontend, Kind, LocalSources, NodePlan, Protocol},
};

fn node(node_ports: &[&str], local: &[&str], pods: &[&str], services: &[&str]) -> NodePlan {
    let addresses = |texts: &[&str]| -> BTreeSet<IpAddr> {
        let parsed = texts.iter().map(|text| text.parse().expect("an address"));
        parsed.collect()
    };
    let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a range")).collect();
    NodePlan {
        node_port_addresses: addresses(node_ports),
        loopback_node_port_addresses: addresses(&["127.0.0.1", "::1"]),
        local_addresses: addresses(local),
        local_sources: LocalSources::Ranges(ranges(pods)),
        service_ranges: ranges(services),
    }
}

/// Whether packets to the address are looked at.
fn is_looked_up(memory: &Memory, address: [u8; 4]) -> bool {
    let (word, mask) = filter_bit(&address);
    memory.frontend_filter.get(&word).expect("readable").unwrap_or(0) & mask != 0
}

/// behaviour.md 3.6: addresses come and go.
#[test]
fn rule_3_6_node_addresses_follow_the_plan() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[]);
    let local = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
    programmer.set_node(node(&["192.0.2.1", "2001:db8::1"], &local, &[], &[]), second(1));
    let flags = |address: [u8; 4]| memory.v4.addresses.get(&address).expect("readable");
    let both = address_flags::LOCAL | address_flags::NODE_PORTS;
    assert_eq!(flags([192, 0, 2, 1]), Some(both));
    assert_eq!(flags([192, 0, 2, 2]), Some(address_flags::LOCAL));
    assert!(is_looked_up(&memory, [192, 0, 2, 1]));
    assert!(!is_looked_up(&memory, [192, 0, 2, 2]));
    let v6 = "2001:db8::1"
        .parse::<std::net::Ipv6Addr>()
        .expect("an address")
        .octets();
    assert_eq!(memory.v6.addresses.get(&v6).expect("readable"), Some(both));
    // The next agent finds them, and takes them away.
    let mut programmer = start(&memory);
    programmer.replace(plan(&[]), second(2));
    programmer.set_node(node(&["192.0.2.2"], &["192.0.2.2"], &[], &[]), second(2));
    assert_eq!(flags([192, 0, 2, 1]), None);
    assert_eq!(flags([192, 0, 2, 2]), Some(both));
    programmer.reclaim(&unused(second(10)));
    assert!(!is_looked_up(&memory, [192, 0, 2, 1]));
    assert!(is_looked_up(&memory, [192, 0, 2, 2]));
}

/// behaviour.md 5.8, 4.7.
#[test]
fn rule_5_8_ranges_of_pods_and_services_follow_the_plan() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[]);
    let tables = memory.tables();
    let is_pod = |address: [u8; 4]| {
        let key = SourceKey::exactly(LOCAL_PODS, address);
        tables.v4.sources.get(&key).expect("readable").is_some()
    };
    programmer.set_node(node(&[], &[], &["10.244.0.0/16"], &["10.96.0.0/12"]), second(1));
    assert!(is_pod([10, 244, 255, 255]) && !is_pod([10, 245, 0, 0]));
    let ranges = memory.service_ranges.get(&0).expect("readable").expect("an entry");
    assert_eq!(ranges.v4[0].network, [10, 96, 0, 0]);
    assert_eq!(ranges.v4[0].mask, [255, 240, 0, 0]);
    assert_eq!(ranges.v4[1].mask, [0; 4]);
    programmer.set_node(node(&[], &[], &["10.245.0.0/23"], &[]), second(2));
    assert!(!is_pod([10, 244, 0, 0]) && is_pod([10, 245, 1, 7]) && !is_pod([10, 245, 2, 0]));
    assert_eq!(programmer.problems(), []);
}

#[test]
fn rule_4_7_surplus_ranges_are_told() {
    let memory = Memory::default();
    let mut programmer = programmed(&memory, &[]);
    let ranges = [
        "10.0.0.0/16",
        "10.2.0.0/16",
        "10.4.0.0/16",
        "10.6.0.0/16",
        "10.8.0.0/16",
    ];
    programmer.set_node(node(&[], &[], &[], &ranges), second(1));
    let problems = programmer.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].object, "ServiceCIDR 10.8.0.0/16");
}

/// behaviour.md 4.6, 4.8: with or without endpoints, as long as one port has the address.
#[test]
fn rule_4_6_cluster_addresses_have_a_wildcard() {
    let memory = Memory::default();
    let has_wildcard = |host| {
        let key = ServiceKey::wildcard([10, 96, 0, host]);
        memory.v4.services.get(&key).expect("readable").is_some()
    };
    let external = Frontend {
        kind: Kind::ExternalIP,
        ..frontend("b", "10.96.0.2:80", &[])
    };
    let one = frontend("a", "10.96.0.1:80", &[]);
    let other = frontend("c", "10.96.0.1:81", &[]);
    let mut programmer = programmed(&memory, &[one.clone(), external.clone(), other.clone()]);
    assert!(has_wildcard(1) && !has_wildcard(2));
    programmer.replace(plan(&[external.clone(), other]), second(2));
    assert!(has_wildcard(1));
    // The next agent knows what it is for.
    let mut programmer = start(&memory);
    programmer.replace(plan(&[external]), second(3));
    assert!(!has_wildcard(1));
    programmer.replace(plan(&[one]), second(4));
    assert!(has_wildcard(1));
}

/// behaviour.md 6.4, 6.5, 6.6: an endpoint's clients are known while it is there without a break, also over a restart.
#[test]
fn rule_6_4_endpoints_keep_the_time_they_came() {
    let memory = Memory::default();
    let with = |endpoints: &[&str]| Frontend {
        affinity: NonZeroU32::new(10),
        ..frontend("a", "10.96.0.1:80", endpoints)
    };
    let since = |host: u8| {
        let value = super::value(&memory, [10, 96, 0, 1]);
        let key = MemberKey::new(value.cluster_set, [10, 244, 0, host], 8080);
        memory
            .v4
            .members
            .get(&key)
            .expect("readable")
            .map(|member| member.since)
    };
    let [one, two, three] = super::ENDPOINTS;
    let mut programmer = programmed(&memory, &[with(&[one, two])]);
    let first = since(1).expect("a member");
    assert_eq!(since(2), Some(first));
    programmer.apply(plan(&[with(&[one, three])]), second(100));
    assert_eq!(since(1), Some(first));
    let later = since(3).expect("a member");
    assert!(later > first);
    let mut programmer = start(&memory);
    programmer.replace(plan(&[with(&[one, two, three])]), second(200));
    assert_eq!((since(1), since(3)), (Some(first), Some(later)));
    assert!(since(2) > Some(later));
    // Off and on again: everybody starts anew.
    programmer.apply(plan(&[frontend("a", "10.96.0.1:80", &[one, two, three])]), second(300));
    assert_eq!(since(1), None);
    programmer.apply(plan(&[with(&[one, two, three])]), second(400));
    assert!(since(1) > Some(later));
}

/// behaviour.md 6.6: what clients used is the datapath's, and no start or change of plan takes it away.
#[test]
fn rule_6_6_what_clients_used_survives_a_restart() {
    let memory = Memory::default();
    let kept = Frontend {
        affinity: NonZeroU32::new(10),
        ..frontend("a", "10.96.0.1:80", &[super::ENDPOINTS[0]])
    };
    programmed(&memory, std::slice::from_ref(&kept));
    let before = super::value(&memory, [10, 96, 0, 1]);
    let key = AffinityKey {
        service: before.service,
        list: CLUSTER_LIST,
        client: [192, 0, 2, 1],
    };
    let used = AffinityValue {
        address: [10, 244, 0, 1],
        port: 8080,
        reserved: 0,
        last_used: 1,
    };
    memory.v4.affinity.clone().insert(&key, &used).expect("room");
    let mut programmer = start(&memory);
    programmer.replace(plan(&[kept]), second(100));
    assert_eq!(
        super::value(&memory, [10, 96, 0, 1]).service,
        before.service,
        "the same service port"
    );
    assert_eq!(memory.v4.affinity.get(&key).expect("readable"), Some(used));
}

/// behaviour.md 3.10: ranges are let in before they are asked for, and taken away after.
#[test]
fn rule_3_10_sources_follow_the_plan() {
    let memory = Memory::default();
    let with = |ranges: &[&str]| Frontend {
        kind: Kind::LoadBalancer,
        sources: ranges.iter().map(|range| range.parse().expect("a range")).collect(),
        ..frontend("a", "203.0.113.1:80", &["10.244.0.1:8080"])
    };
    let tables = memory.tables();
    let is_let_in = |address: [u8; 4]| {
        let service = super::value(&memory, [203, 0, 113, 1]).service;
        let found = tables.v4.sources.get(&SourceKey::exactly(service, address));
        found.expect("readable").is_some()
    };
    let mut programmer = programmed(&memory, &[with(&["192.0.2.0/24", "198.51.100.7/32"])]);
    assert!(is_let_in([192, 0, 2, 200]) && is_let_in([198, 51, 100, 7]) && !is_let_in([198, 51, 100, 8]));
    programmer.apply(plan(&[with(&["198.51.100.8/32"])]), second(2));
    assert!(!is_let_in([192, 0, 2, 200]) && is_let_in([198, 51, 100, 8]));
    let mut programmer = start(&memory);
    programmer.replace(plan(&[with(&[])]), second(3));
    assert_eq!(memory.v4.sources.entries().expect("readable"), []);
}

/// behaviour.md 7.2, 7.4, 7.7: what serves is compared with what served; a Service that is gone serves nothing.
#[test]
fn rule_7_2_changed_serving_endpoints_are_told_once() {
    let memory = Memory::default();
    let with = |serving: &[&str]| {
        let mut dns = frontend("dns", "10.96.0.10:53", &[]);
        dns.service_port.protocol = Protocol::Udp;
        dns.serving = serving.iter().map(|text| text.parse().expect("an endpoint")).collect();
        dns
    };
    let [one, two, _] = super::ENDPOINTS;
    let serving = |endpoints: &[&str]| {
        let endpoints = endpoints.iter().map(|text| text.parse().expect("an endpoint"));
        vec![endpoints.collect::<HashSet<SocketAddr>>()]
    };
    let taken = |programmer: &mut Programmer| programmer.take_changed_serving().into_values().collect::<Vec<_>>();
    let tcp = frontend("web", "10.96.0.1:80", &[one]);
    let mut programmer = programmed(&memory, &[with(&[one, two]), tcp.clone()]);
    assert_eq!(taken(&mut programmer), serving(&[one, two]));
    programmer.apply(plan(&[with(&[two, one])]), second(2));
    assert_eq!(taken(&mut programmer), vec![]);
    programmer.apply(plan(&[with(&[two])]), second(3));
    assert_eq!(taken(&mut programmer), serving(&[two]));
    programmer.apply(plan(&[with(&[])]), second(4));
    assert_eq!(taken(&mut programmer), serving(&[]));
    // A new agent doesn't know what served before it.
    let mut programmer = start(&memory);
    programmer.replace(plan(&[tcp]), second(5));
    assert_eq!(taken(&mut programmer), serving(&[]));
}
