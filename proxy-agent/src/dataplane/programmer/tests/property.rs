//! Any sequence of changes keeps what packets see whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::layout::{ServiceKey, Source, SourceKey};

use super::{Plan, Views, expected, object, second, seen, service_port, start, unused};
use crate::{
    dataplane::{
        address::Address,
        memory::{Memory, MemoryFamily},
        programmer::Programmer,
        service_name,
        table::Table as _,
    },
    plan::{Family, Frontend, Kind, Masquerade, ServicePort, TrafficPolicy},
};

/// What may happen to a programmer.
#[derive(Clone, Debug)]
enum Step {
    Apply(Plan),
    Replace(Plan),
    Wait(u64),
    Restart,
}

/// Policy, masquerade, sources and kind of a frontend.
fn features(family: Family) -> impl Strategy<Value = (TrafficPolicy, Masquerade, Vec<IpNet>, Kind)> {
    let source = (1..4u8).prop_map(move |network| {
        let text = match family {
            Family::V4 => format!("192.0.{network}.0/24"),
            Family::V6 => format!("2001:db8:{network}::/48"),
        };
        text.parse().expect("a range")
    });
    (
        prop_oneof![
            Just(TrafficPolicy::Cluster),
            Just(TrafficPolicy::Local),
            Just(TrafficPolicy::LocalForOutsiders)
        ],
        prop_oneof![Just(Masquerade::Never), Just(Masquerade::Always)],
        proptest::collection::btree_set(source, 0..3).prop_map(|sources| sources.into_iter().collect()),
        prop_oneof![Just(Kind::ClusterIP), Just(Kind::LoadBalancer)],
    )
}

/// Services a, b and c, each with addresses of its own and two ports that may swap them.
pub(super) fn services() -> impl Strategy<Value = Plan> {
    let endpoint = |family: Family| {
        (1..5u8, 80..82u16).prop_map(move |(host, port)| {
            let address = match family {
                Family::V4 => IpAddr::from([10, 244, 0, host]),
                Family::V6 => IpAddr::from([0xfd01, 0, 0, 0, 0, 0, 0, u16::from(host)]),
            };
            SocketAddr::new(address, port)
        })
    };
    let list = move |family| {
        let endpoints = proptest::collection::btree_set(endpoint(family), 0..4);
        proptest::option::of(endpoints.prop_map(|endpoints| endpoints.into_iter().collect::<Vec<_>>()))
    };
    let frontend = move |service: u8, host: u8, family: Family| {
        let address = match family {
            Family::V4 => IpAddr::from([10, 96, service, host]),
            Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, u16::from(service), u16::from(host)]),
        };
        let name = char::from(b'a' + service).to_string();
        let port_name = prop_oneof!["p", "q"];
        let lists = (list(family), list(family), any::<bool>());
        (port_name, lists, features(family)).prop_map(
            move |(port_name, (cluster, local, has_endpoints), (policy, masquerade, sources, kind))| Frontend {
                service_port: service_port(&name, &port_name),
                kind,
                family,
                address: Some(address),
                port: 80,
                cluster,
                local,
                has_endpoints,
                serving: Vec::new(),
                policy,
                masquerade,
                affinity: None,
                sources,
            },
        )
    };
    let service = move |service: u8| {
        let frontends: Vec<_> = (0..3)
            .flat_map(|host| [Family::V4, Family::V6].map(|family| frontend(service, host, family)))
            .collect();
        let kept = proptest::collection::vec(any::<bool>(), 6);
        let affinity = prop_oneof![Just(None), Just(NonZeroU32::new(10))];
        (frontends, kept, affinity).prop_map(move |(frontends, kept, affinity)| {
            let kept = frontends.into_iter().zip(kept).filter(|(_, kept)| *kept);
            let frontends = kept.map(|(frontend, _)| Frontend { affinity, ..frontend });
            (
                object(&char::from(b'a' + service).to_string()),
                frontends.collect::<Vec<_>>(),
            )
        })
    };
    let services: Vec<_> = (0..3).map(|number| proptest::option::of(service(number))).collect();
    services.prop_map(|services| services.into_iter().flatten().collect())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => services().prop_map(Step::Apply),
        2 => services().prop_map(Step::Replace),
        3 => (0..4u64).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..12)
}

/// Sets in the tables, their ids left out.
fn slots<A: Address>(family: &MemoryFamily<A>) -> Vec<BTreeMap<u32, SocketAddr>> {
    let mut sets: BTreeMap<u32, BTreeMap<u32, SocketAddr>> = BTreeMap::new();
    for (key, backend) in family.slots.entries().expect("readable") {
        let endpoint = SocketAddr::new(backend.address.to_ip(), backend.port);
        sets.entry(key.set).or_default().insert(key.index, endpoint);
    }
    let mut sets: Vec<_> = sets.into_values().collect();
    sets.sort_unstable();
    sets
}

type Rest<A> = (BTreeSet<(ServicePort, SourceKey<A>)>, usize, BTreeSet<A>);

/// Ranges of sources by service port, number of members, and addresses with a wildcard entry.
fn rest<A: Address>(memory: &Memory, family: &MemoryFamily<A>) -> Rest<A> {
    let name = |id| memory.service_names.get(&id).expect("readable").expect("a name");
    let sources = family.sources.entries().expect("readable");
    let services = family.services.entries().expect("readable");
    let wildcards = services
        .iter()
        .filter(|(key, _)| *key == ServiceKey::wildcard(key.address));
    (
        sources
            .into_iter()
            .map(|(key, _)| {
                let port = service_name::decode(&name(key.source.service)).expect("a name");
                let source = Source {
                    service: 0,
                    ..key.source
                };
                (port, SourceKey { source, ..key })
            })
            .collect(),
        family.members.entries().expect("readable").len(),
        wildcards.map(|(key, _)| key.address).collect(),
    )
}

fn names(memory: &Memory) -> BTreeSet<ServicePort> {
    let names = memory.service_names.entries().expect("readable");
    names
        .iter()
        .map(|(_, name)| service_name::decode(name).expect("a name"))
        .collect()
}

fn filters(memory: &Memory) -> [BTreeMap<u32, u64>; 2] {
    [&memory.frontend_filter, &memory.backend_filter].map(|filter| {
        let words = filter.entries().expect("readable");
        words.into_iter().filter(|(_, word)| *word != 0).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// After every single write each frontend looks to packets as in the old or in the new plan; and in the end the
    /// tables hold what a new programmer would have written, but for ids.
    #[test]
    fn every_write_keeps_every_frontend_whole(steps in steps()) {
        let memory = Arc::new(Memory::default());
        let allowed = Arc::new(Mutex::new((Views::new(), Views::new())));
        let writes = Arc::new(AtomicUsize::new(0));
        let (watched, views, counted): (Weak<Memory>, _, _) =
            (Arc::downgrade(&memory), Arc::clone(&allowed), Arc::clone(&writes));
        memory.observe(Box::new(move |table| {
            counted.fetch_add(1, Ordering::Relaxed);
            let (old, new) = &*views.lock().expect("no panic");
            let seen = seen(&watched.upgrade().expect("alive"));
            for key in old.keys().chain(new.keys()).chain(seen.keys()) {
                let view = seen.get(key);
                assert!(view == old.get(key) || view == new.get(key), "after a write to {table}: {key:?}: {view:?}");
            }
        }));
        let mut programmer = start(&memory);
        programmer.replace(Plan::new(), second(0));
        let (mut current, mut now) = (Plan::new(), 0);
        for step in steps {
            let mut next = current.clone();
            match &step {
                Step::Apply(changes) => next.extend(changes.clone()),
                Step::Replace(plan) => next.clone_from(plan),
                Step::Wait(_) | Step::Restart => {}
            }
            *allowed.lock().expect("no panic") = (expected(&current), expected(&next));
            match step {
                Step::Apply(changes) => programmer.apply(changes, second(now)),
                Step::Replace(plan) => programmer.replace(plan, second(now)),
                Step::Wait(seconds) => {
                    now += seconds;
                    programmer.tick(second(now));
                    programmer.reclaim(&unused(second(now)));
                }
                Step::Restart => {
                    programmer = Programmer::load(memory.tables(), second(now)).expect("readable");
                    let before = writes.load(Ordering::Relaxed);
                    programmer.replace(next.clone(), second(now));
                    prop_assert_eq!(writes.load(Ordering::Relaxed), before, "a restart finds all as it should be");
                }
            }
            prop_assert_eq!(programmer.problems(), vec![]);
            prop_assert_eq!(seen(&memory), expected(&next));
            current = next;
        }
        *allowed.lock().expect("no panic") = (expected(&current), expected(&current));
        // Freed sets leave their filter bits stale: they go a while later.
        for later in [10, 20] {
            programmer.tick(second(now + later));
            programmer.reclaim(&unused(second(now + later + 5)));
        }
        let fresh = Memory::default();
        start(&fresh).replace(current, second(0));
        prop_assert_eq!(slots(&memory.v4), slots(&fresh.v4));
        prop_assert_eq!(slots(&memory.v6), slots(&fresh.v6));
        prop_assert_eq!(rest(&memory, &memory.v4), rest(&fresh, &fresh.v4));
        prop_assert_eq!(rest(&memory, &memory.v6), rest(&fresh, &fresh.v6));
        prop_assert_eq!(names(&memory), names(&fresh));
        prop_assert_eq!(filters(&memory), filters(&fresh));
    }
}
