//! Tables that something else has changed: the agent at work makes them good, and so does one that starts.

use std::{fmt::Debug, hash::Hash};

use proptest::prelude::*;
use proxy_common::layout::ServiceValue;

use super::{
    kill::{planned, states},
    property::services,
    unused,
    world::{State, World},
};
use crate::dataplane::{
    address::Address,
    audit::{Difference, Severity},
    faults::Faults,
    memory::{Memory, MemoryFamily, MemoryTable},
    programmer::Programmer,
    table::Table as _,
};

/// What is done to an entry, and to which, counted over the table's length.
#[derive(Clone, Copy, Debug)]
struct Damage {
    table: u8,
    entry: usize,
    kind: u8,
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let damage = (0..14u8, any::<usize>(), 0..4u8).prop_map(|(table, entry, kind)| Damage { table, entry, kind });
    proptest::collection::vec(damage, 1..12)
}

/// Removes an entry, writes it under another's key, or changes it.
fn harm<K, V>(table: &MemoryTable<K, V>, damage: Damage, change: impl Fn(&mut V))
where
    K: Copy + Debug + Eq + Hash + Send,
    V: Copy + Send,
{
    let mut entries = table.entries().expect("readable");
    if entries.is_empty() {
        return;
    }
    entries.sort_unstable_by_key(|(key, _)| format!("{key:?}"));
    let (key, mut value) = entries[damage.entry % entries.len()];
    let (_, other) = entries[damage.entry / 7 % entries.len()];
    let mut table = table.clone();
    match damage.kind {
        0 => {
            table.remove(&key).expect("removed");
        }
        1 => table.insert(&key, &other).expect("room"),
        _ => {
            change(&mut value);
            table.insert(&key, &value).expect("room");
        }
    }
}

fn harm_family<A: Address>(family: &MemoryFamily<A>, damage: Damage, table: u8) {
    match table {
        0 => harm(&family.services, damage, |value: &mut ServiceValue| match damage.kind {
            2 => value.flags ^= 1 << (damage.entry % 12),
            _ => value.cluster_count ^= 1,
        }),
        1 => harm(&family.slots, damage, |backend| backend.port ^= 1),
        2 => harm(&family.members, damage, |_| {}),
        3 => harm(&family.sources, damage, |_| {}),
        _ => harm(&family.addresses, damage, |flags| *flags ^= 3),
    }
}

fn harm_any(memory: &Memory, damage: Damage) {
    match damage.table {
        table @ 0..5 => harm_family(&memory.v4, damage, table),
        table @ 5..10 => harm_family(&memory.v6, damage, table - 5),
        10 => harm(&memory.service_names, damage, |name| name.port_name[0] ^= 1),
        11 => harm(&memory.frontend_filter, damage, |word| *word = 0),
        12 => harm(&memory.backend_filter, damage, |word| *word = 0),
        _ => harm(&memory.devices, damage, |device| device.masquerade_v4[3] ^= 1),
    }
}

/// What may matter to a packet: what else is left goes by itself.
fn wrong(world: &World) -> Vec<Difference> {
    let mut differences = world.differences();
    differences.retain(|difference| difference.severity == Severity::Wrong);
    differences
}

fn world(state: &State) -> (World, Programmer) {
    let mut world = World::new();
    let programmer = world.sync(state, &Faults::kill_at(u64::MAX)).expect("alive");
    world.state = state.clone();
    assert_eq!(wrong(&world), []);
    (world, programmer)
}

/// Issue 4, 3: each entry of the tables in turn is lost.
#[test]
fn each_lost_entry_is_restored() {
    let states = states();
    let state = &states
        .iter()
        .find(|(step, _)| *step == "let some in")
        .expect("a step")
        .1;
    let (mut world, mut programmer) = world(state);
    let mut lost = 0;
    for table in 0..14 {
        for entry in 0..20 {
            harm_any(&world.memory, Damage { table, entry, kind: 0 });
            let found = wrong(&world).len();
            world.seconds += 1;
            let told = programmer.reconcile(world.memory.tables(), state.plan.clone(), world.now());
            assert_eq!(told.expect("readable").len(), found, "table {table} entry {entry}");
            assert_eq!(wrong(&world), [], "table {table} entry {entry}");
            lost += usize::from(found > 0);
        }
    }
    assert!(lost > 100, "only {lost} losses mattered");
    // Nothing else is written, when nothing differs.
    let told = programmer.reconcile(world.memory.tables(), state.plan.clone(), world.now());
    assert_eq!(told.expect("readable"), []);
    world.expect_settled(programmer, state, "after all");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn any_damage_is_made_good(plan in services(), damages in damages(), restart in any::<bool>()) {
        let state = planned(plan);
        let (mut world, mut programmer) = world(&state);
        for damage in damages {
            harm_any(&world.memory, damage);
        }
        if restart {
            programmer = world.sync(&state, &Faults::kill_at(u64::MAX)).expect("alive");
        } else {
            programmer.reconcile(world.memory.tables(), state.plan.clone(), world.now()).expect("readable");
        }
        prop_assert_eq!(wrong(&world), vec![]);
        // Bits that flows don't need may go, and none else.
        for _ in 0..2 {
            world.seconds += 10;
            programmer.tick(world.now());
            programmer.reclaim(&unused(world.now()));
        }
        prop_assert_eq!(wrong(&world), vec![]);
    }
}
