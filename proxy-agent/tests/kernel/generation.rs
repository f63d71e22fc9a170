//! Tables of another build, of another size, or broken: the next agent takes over from them.

use std::{collections::BTreeMap, fs};

use proxy_agent::{
    dataplane::{self, Dataplane, cleanup::cleanup, kernel, table::Table},
    plan::{LocalSources, NodePlan},
};
use proxy_common::{
    datapath::flow::{twin_key, twin_value},
    layout::{
        self, Counter, EndpointKey, FlowKey, FlowValue, INGRESS, RefusalKey, ServiceCounter, flow_flags, history,
        tables,
    },
};

use crate::{
    plan,
    sandbox::{Sandbox, look, wait_for},
};

/// Key and value of an IPv4 flow's half.
type Half = (FlowKey<[u8; 4]>, FlowValue<[u8; 4]>);

fn node() -> NodePlan {
    NodePlan {
        node_port_addresses: std::collections::BTreeSet::new(),
        loopback_node_port_addresses: std::collections::BTreeSet::new(),
        local_addresses: std::collections::BTreeSet::new(),
        local_sources: LocalSources::Ranges(Vec::new()),
        service_ranges: Vec::new(),
    }
}

/// Opens with flow tables of a size.
fn open(sandbox: &Sandbox, flows: u32) -> Dataplane {
    let mut options = sandbox.options();
    // Programs are largest with that, heirs above all.
    options.count_endpoints = true;
    for table in ["flows_v4", "flows_v6"] {
        options.table_sizes.insert(table.to_owned(), flows);
    }
    Dataplane::open(options, dataplane::now()).expect("a dataplane")
}

/// Does all that an agent does once it knows what there is.
fn serve(dataplane: &mut Dataplane) {
    dataplane.set_edges(&look(), dataplane::now());
    dataplane.replace(plan(), dataplane::now());
    dataplane.set_node(node(), dataplane::now());
    assert_eq!(dataplane.problems(), []);
}

/// Both halves of a flow of a client port to the first endpoint of the plan.
fn flow(port: u16) -> [Half; 2] {
    let key = FlowKey::new(INGRESS, 6, ([10, 244, 0, 9], port), ([10, 96, 0, 1], 80));
    let value = FlowValue {
        address: [10, 244, 0, 5],
        port: 8080,
        other_port: port,
        service: 1,
        last_seen: dataplane::collect::tick(dataplane::now()),
        history: history::SEEN | history::CONFIRMED,
        ..FlowValue::default()
    };
    let twin = FlowValue {
        history: history::SEEN,
        ..twin_value(&key, &value)
    };
    [(key, value), (twin_key(&key, &value), twin)]
}

fn flows(sandbox: &Sandbox) -> BTreeMap<FlowKey<[u8; 4]>, FlowValue<[u8; 4]>> {
    let tables = kernel::open(&sandbox.pin()).expect("tables");
    tables.v4.flows.entries().expect("flows").into_iter().collect()
}

/// Writes flows and counters as the programs would.
fn fill(sandbox: &Sandbox, ports: std::ops::Range<u16>) -> BTreeMap<FlowKey<[u8; 4]>, FlowValue<[u8; 4]>> {
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let written: BTreeMap<_, _> = ports.flat_map(flow).collect();
    for (key, value) in &written {
        tables.v4.flows.insert(key, value).expect("room");
    }
    written
}

/// Ticks until nothing is left of the generation before.
fn take_over(sandbox: &Sandbox, dataplane: &mut Dataplane) {
    let previous = sandbox.pin().version().join("previous");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while previous.exists() {
        dataplane.tick(dataplane::now());
        assert_eq!(dataplane.problems(), []);
        assert!(std::time::Instant::now() < deadline, "still taking over");
        std::thread::yield_now();
    }
}

fn counted(packets: u64) -> (Counter, ServiceCounter) {
    let of_service = ServiceCounter {
        connections: 1,
        packets,
        bytes: 100 * packets,
    };
    let bytes = of_service.bytes;
    (Counter { packets, bytes }, of_service)
}

/// Issue 4: growing a table keeps the flows in it; and making it smaller those that fit.
#[test]
fn a_table_of_another_size_keeps_flows_counters_and_ids() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    let mut dataplane = open(&sandbox, 1024);
    serve(&mut dataplane);
    drop(dataplane);
    let links = sandbox.link_ids();
    let before = fill(&sandbox, 40_000..40_300);
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let (by_reason, by_service) = counted(7);
    tables.reason_counts.insert(&1, &by_reason).expect("room");
    tables.service_counts.insert(&1, &by_service).expect("room");
    let refusal = RefusalKey { service: 1, reason: 8 };
    tables.refusals.insert(&refusal, &by_reason).expect("room");
    let endpoint = EndpointKey::new(1, &[10, 244, 0, 7], 8080);
    tables.endpoint_counts.insert(&endpoint, &by_service).expect("room");
    let names = tables.service_names.entries().expect("names");
    drop(tables);

    for size in [2048, 1024] {
        let mut dataplane = open(&sandbox, size);
        serve(&mut dataplane);
        take_over(&sandbox, &mut dataplane);
        assert!(flows(&sandbox) == before);
        let tables = kernel::open(&sandbox.pin()).expect("tables");
        assert_eq!(tables.v4.flows.max_entries(), size);
        assert_eq!(tables.reason_counts.get(&1).expect("counters"), Some(by_reason));
        assert_eq!(tables.service_counts.get(&1).expect("counters"), Some(by_service));
        assert_eq!(tables.refusals.entries().expect("counters"), [(refusal, by_reason)]);
        assert_eq!(
            tables.endpoint_counts.entries().expect("counters"),
            [(endpoint, by_service)]
        );
        assert_eq!(tables.service_names.entries().expect("names"), names);
        let ids = |links: Vec<(std::path::PathBuf, u32, u32)>| links.into_iter().map(|link| link.1).collect::<Vec<_>>();
        assert_eq!(
            ids(sandbox.link_ids()),
            ids(links.clone()),
            "the same links, at the same places"
        );
        for list in ["previous_tc", "previous_xdp"] {
            assert!(!sandbox.pin().map(list).exists(), "{list} is left");
        }
    }
}

/// What may be given up for a new flow when the table is full is known right away, that used least recently first; more than half
/// of a table's entries can't be clients' halves. A flow that is closed, and not just now, is forgotten.
#[test]
fn flows_that_may_be_given_up_are_carried_in_order() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let seen = history::SEEN;
    for (port, age, history) in [
        (40_000, 5, seen),
        (40_001, 20, seen),
        (40_002, 25, seen | history::CONFIRMED),
        (40_003, 20, seen | history::CONFIRMED | history::RST),
    ] {
        let [(key, value), (twin_key, twin)] = flow(port);
        let last_seen = value.last_seen.saturating_sub(age);
        let value = FlowValue {
            last_seen,
            history,
            ..value
        };
        let twin = FlowValue { last_seen, ..twin };
        tables.v4.flows.insert(&key, &value).expect("room");
        tables.v4.flows.insert(&twin_key, &twin).expect("room");
    }
    drop(tables);

    for size in [2048, 4] {
        let mut dataplane = open(&sandbox, size);
        serve(&mut dataplane);
        let tables = kernel::open(&sandbox.pin()).expect("tables");
        let ends = tables.v4.opening_ends.get(&0).expect("ends").expect("an array");
        let opening = |number: u64| {
            let number = u32::try_from(number).expect("few");
            let opening = tables.v4.openings.get(&number).expect("openings").expect("an array");
            opening.key().source_port
        };
        let ports: Vec<_> = (ends.tail..ends.head).map(opening).collect();
        let expected = [40_001, 40_000];
        let held = usize::try_from(layout::opening_slots(size))
            .expect("few")
            .min(expected.len());
        assert_eq!(ports, expected[expected.len() - held..], "{size} entries");
        if size > 4 {
            take_over(&sandbox, &mut dataplane);
        }
    }
}

/// Flows for which there is no room go on in the old table.
#[test]
fn flows_that_do_not_fit_stay_until_there_is_room() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let before = fill(&sandbox, 40_000..40_200);

    let mut dataplane = open(&sandbox, 256);
    serve(&mut dataplane);
    wait_for("the small table is full", || flows(&sandbox).len() >= 256);
    let previous = sandbox.pin().version().join("previous");
    assert!(previous.exists());
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let moved = flows(&sandbox);
    for key in moved.keys() {
        tables.v4.flows.remove(key).expect("removed");
    }
    take_over(&sandbox, &mut dataplane);
    let rest = flows(&sandbox);
    assert_eq!(moved.len() + rest.len(), before.len());
    assert!(rest.keys().all(|key| !moved.contains_key(key)));
}

/// Those that did not get anywhere don't wait for room.
#[test]
fn unanswered_flows_that_do_not_fit_are_forgotten() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    for (key, value) in (40_000..40_200).flat_map(flow) {
        let value = FlowValue {
            last_seen: value.last_seen.saturating_sub(5),
            history: if value.flags & flow_flags::REPLY == 0 {
                history::SEEN
            } else {
                0
            },
            ..value
        };
        tables.v4.flows.insert(&key, &value).expect("room");
    }
    drop(tables);

    let mut dataplane = open(&sandbox, 256);
    serve(&mut dataplane);
    take_over(&sandbox, &mut dataplane);
    let moved = flows(&sandbox).len();
    assert!((100..=192).contains(&moved), "{moved} of 256");
}

/// New flows find room after a takeover: what could be given up for them fills three quarters of the table at most.
#[test]
fn flows_that_got_nowhere_leave_room_for_new_ones() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let before = fill(&sandbox, 40_000..40_200);
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    for (key, value) in before {
        // Answered, and no more.
        let history = history::SEEN;
        tables
            .v4
            .flows
            .insert(&key, &FlowValue { history, ..value })
            .expect("room");
    }
    // Moved while there is room for any.
    let established: Vec<_> = (41_000..41_010).flat_map(flow).collect();
    for (key, value) in &established {
        tables.v4.flows.insert(key, value).expect("room");
    }

    let mut dataplane = open(&sandbox, 256);
    serve(&mut dataplane);
    wait_for("established flows are moved", || {
        let moved = flows(&sandbox);
        established.iter().all(|(key, _)| moved.contains_key(key))
    });
    let moved = flows(&sandbox);
    assert!(
        (180..=193 + established.len()).contains(&moved.len()),
        "{} of 256",
        moved.len()
    );
    // A client's half alone would pass for an unanswered flow, and be given up.
    for (key, value) in &moved {
        assert!(moved.contains_key(&twin_key(key, value)), "half of a flow: {key:?}");
    }
}

/// Issue 4, section 3: a crash at any step; the next agent goes on, and nothing is lost.
#[test]
fn an_agent_that_ends_at_any_step_is_followed_by_one_that_goes_on() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let before = fill(&sandbox, 40_000..40_020);
    let mut size = 1024;
    for steps in 0..5 {
        // Another size each time, lest there be nothing to take over.
        size = if size == 1024 { 2048 } else { 1024 };
        let mut dataplane = open(&sandbox, size);
        for step in 0..steps {
            match step {
                0 => dataplane.set_edges(&look(), dataplane::now()),
                1 => dataplane.replace(plan(), dataplane::now()),
                2 => dataplane.set_node(node(), dataplane::now()),
                _ => dataplane.tick(dataplane::now()),
            }
        }
        drop(dataplane);
        let mut dataplane = open(&sandbox, size);
        serve(&mut dataplane);
        take_over(&sandbox, &mut dataplane);
        assert!(flows(&sandbox) == before, "after {steps} steps");
    }
}

/// Another change of mind before the first is through: three generations at once.
#[test]
fn a_takeover_may_be_taken_over() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let before = fill(&sandbox, 40_000..40_020);
    for leads in [false, true] {
        let mut dataplane = open(&sandbox, 2048);
        if leads {
            serve(&mut dataplane);
        }
        drop(dataplane);
        let mut dataplane = open(&sandbox, 1024);
        serve(&mut dataplane);
        take_over(&sandbox, &mut dataplane);
        assert!(flows(&sandbox) == before, "led: {leads}");
    }
}

/// A build with another layout version, older or newer.
#[test]
fn tables_of_another_version_are_taken_over() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    for version in [1, layout::VERSION + 1000] {
        serve(&mut open(&sandbox, 1024));
        let before = fill(&sandbox, 40_000..40_020);
        let other = sandbox.pin().root().join(format!("v{version}"));
        fs::rename(sandbox.pin().version(), &other).expect("bpffs renames");

        let mut dataplane = open(&sandbox, 1024);
        serve(&mut dataplane);
        take_over(&sandbox, &mut dataplane);
        assert!(!other.exists());
        assert!(flows(&sandbox) == before);
    }
}

/// What only the previous generation knows is looked for there: the bits of the filters are for its flows, too.
#[test]
fn flows_to_endpoints_that_are_gone_stay_reachable() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    fill(&sandbox, 40_000..40_001);
    let mut dataplane = open(&sandbox, 2048);
    dataplane.set_edges(&look(), dataplane::now());
    dataplane.replace(BTreeMap::new(), dataplane::now());
    dataplane.set_node(node(), dataplane::now());
    take_over(&sandbox, &mut dataplane);
    let tables = kernel::open(&sandbox.pin()).expect("tables");
    let is_set = |filter: &dyn Table<u32, u64>, address: [u8; 4]| {
        let (word, bit) = layout::filter_bit(&address);
        filter.get(&word).expect("readable").is_some_and(|bits| bits & bit != 0)
    };
    assert!(is_set(&*tables.frontend_filter, [10, 96, 0, 1]));
    assert!(is_set(&*tables.backend_filter, [10, 244, 0, 5]));
}

/// A masquerade whose port is not chosen is left to the programs that may be choosing it.
#[test]
fn an_unresolved_masquerade_is_moved_last() {
    let sandbox = sandbox!();
    serve(&mut open(&sandbox, 1024));
    let [(key, value), _] = flow(40_000);
    let unresolved = FlowValue {
        flags: flow_flags::MASQUERADE | flow_flags::UNRESOLVED,
        ..value
    };
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    tables.v4.flows.insert(&key, &unresolved).expect("room");
    let mut dataplane = open(&sandbox, 2048);
    serve(&mut dataplane);
    let led = std::time::Instant::now();
    take_over(&sandbox, &mut dataplane);
    assert!(led.elapsed() >= dataplane::programmer::GRACE);
    assert_eq!(flows(&sandbox), BTreeMap::from([(key, unresolved)]));
}

/// Issue 4, section 3: a corrupted pin directory. Tables are pinned twice.
#[test]
fn lost_and_replaced_pins_are_pinned_again() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let before = fill(&sandbox, 40_000..40_020);
    let pin = sandbox.pin();
    for table in ["flows_v4", "service_names"] {
        fs::remove_file(pin.map(table)).expect("removed");
    }
    // A foreign map has a table's name.
    fs::rename(pin.map("affinity_v4"), pin.map("services_v4")).expect("bpffs renames");

    let mut dataplane = open(&sandbox, 1024);
    assert!(!pin.version().join("previous").exists(), "nothing is to be taken over");
    serve(&mut dataplane);
    assert!(flows(&sandbox) == before);
}

/// The names of service ports are lost: nobody knows any more whose the flows are, but they go on.
#[test]
fn names_that_are_lost_cost_no_flow() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let before = fill(&sandbox, 40_000..40_020);
    for pins in ["maps", "spare"] {
        let pin = sandbox.pin().version().join(pins).join(tables::SERVICE_NAMES.name);
        fs::remove_file(pin).expect("removed");
    }
    let mut dataplane = open(&sandbox, 1024);
    serve(&mut dataplane);
    take_over(&sandbox, &mut dataplane);
    let nobodys = |(key, value): (_, FlowValue<[u8; 4]>)| (key, FlowValue { service: 0, ..value });
    assert_eq!(flows(&sandbox), before.into_iter().map(nobodys).collect());
}

#[test]
fn cleanup_removes_every_generation() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    serve(&mut open(&sandbox, 1024));
    let mut dataplane = open(&sandbox, 2048);
    dataplane.set_edges(&look(), dataplane::now());
    drop(dataplane);
    let removed = cleanup(&sandbox.pin()).expect("removed");
    assert_eq!(removed.links, 2, "{removed:?}");
    assert!(!sandbox.pin().root().exists());
    wait_for("the programs to be detached", || {
        crate::sandbox::attached("pod1", aya::programs::TcAttachType::Ingress).is_empty()
    });
}

/// What doesn't belong to a pin directory is left alone where it isn't in the way.
#[test]
fn foreign_things_beside_are_left_alone() {
    let sandbox = sandbox!();
    let foreign = sandbox.pin().root().join("others");
    fs::create_dir_all(&foreign).expect("a directory");
    serve(&mut open(&sandbox, 1024));
    assert!(foreign.exists());
    let message = format!("{:#}", cleanup(&sandbox.pin()).expect_err("something is left"));
    assert!(message.contains("something else"), "{message}");
}
