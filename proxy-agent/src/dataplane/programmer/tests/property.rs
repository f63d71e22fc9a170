//! Any sequence of changes keeps what packets see whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use proptest::prelude::*;

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

/// Services a, b and c, each with addresses of its own and two ports that may swap them.
fn services() -> impl Strategy<Value = Plan> {
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
        (prop_oneof!["p", "q"], list(family), list(family), any::<bool>()).prop_map(
            move |(port_name, cluster, local, has_endpoints)| Frontend {
                service_port: service_port(&name, &port_name),
                kind: Kind::ClusterIP,
                family,
                address: Some(address),
                port: 80,
                cluster,
                local,
                has_endpoints,
                policy: TrafficPolicy::Cluster,
                masquerade: Masquerade::Never,
                affinity: None,
                sources: Vec::new(),
            },
        )
    };
    let service = move |service: u8| {
        let frontends: Vec<_> = (0..3)
            .flat_map(|host| [Family::V4, Family::V6].map(|family| frontend(service, host, family)))
            .collect();
        let kept = proptest::collection::vec(any::<bool>(), 6);
        (frontends, kept).prop_map(move |(frontends, kept)| {
            let frontends = frontends
                .into_iter()
                .zip(kept)
                .filter_map(|(frontend, kept)| kept.then_some(frontend));
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
        prop_assert_eq!(names(&memory), names(&fresh));
        prop_assert_eq!(filters(&memory), filters(&fresh));
    }
}
