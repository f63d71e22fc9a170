use proptest::{collection::vec, prelude::*};

use super::*;
use crate::dataplane::memory::Memory;

const CLIENT: ([u8; 4], u16) = ([10, 244, 0, 5], 40000);
const FRONTEND: ([u8; 4], u16) = ([10, 96, 0, 1], 80);
const BACKEND: ([u8; 4], u16) = ([10, 244, 1, 7], 8080);

/// Time since boot of a tick.
fn at(tick: u32) -> Duration {
    Duration::from_nanos(u64::from(tick) << TICK_SHIFT)
}

fn insert(memory: &Memory, protocol: u8, last_seen: (u32, u32), history: (u8, u8)) -> [FlowKey<[u8; 4]>; 2] {
    insert_from(memory, CLIENT.1, protocol, last_seen, history)
}

fn insert_from(
    memory: &Memory,
    port: u16,
    protocol: u8,
    last_seen: (u32, u32),
    history: (u8, u8),
) -> [FlowKey<[u8; 4]>; 2] {
    let key = FlowKey::new(INGRESS, protocol, (CLIENT.0, port), FRONTEND);
    let value = FlowValue {
        address: BACKEND.0,
        port: BACKEND.1,
        other_port: port,
        service: 3,
        last_seen: last_seen.0,
        history: history.0,
        ..FlowValue::default()
    };
    let (twin_key, twin) = (flow::twin_key(&key, &value), flow::twin_value(&key, &value));
    let mut flows = memory.v4.flows.clone();
    flows.insert(&key, &value).expect("room");
    let twin = FlowValue {
        last_seen: last_seen.1,
        history: history.1,
        ..twin
    };
    flows.insert(&twin_key, &twin).expect("room");
    [key, twin_key]
}

fn left(memory: &Memory) -> usize {
    memory.v4.flows.entries().expect("readable").len()
}

fn collected(memory: &Memory, now: u32) -> FlowUsage {
    Collector::new(memory.tables(), Timeouts::DEFAULT)
        .collect(at(now))
        .expect("readable")
}

/// behaviour.md 7.10: an established TCP flow stays for a day, one that was never answered for two minutes.
#[test]
fn flows_go_when_the_time_of_their_state_is_over() {
    let seen = history::SEEN;
    let (confirmed, lasting) = (seen | history::CONFIRMED, seen | history::LASTING);
    let timeouts = Timeouts::DEFAULT;
    for (protocol, history, timeout) in [
        (6, (seen, 0), timeouts.tcp_opening),
        (6, (seen, seen), timeouts.tcp_answered),
        (6, (confirmed, seen), timeouts.tcp_established),
        (6, (confirmed | history::FIN, seen), timeouts.tcp_half_closed),
        (6, (confirmed | history::RST, seen), timeouts.tcp_closing),
        (17, (seen, 0), timeouts.udp_opening),
        (17, (seen, seen), timeouts.udp_opening),
        (17, (lasting, seen), timeouts.udp_established),
    ] {
        let memory = Memory::default();
        insert(&memory, protocol, (1000, 1000), history);
        assert_eq!(
            collected(&memory, 1000 + timeout).removed,
            0,
            "protocol {protocol} {history:?}"
        );
        assert_eq!(
            collected(&memory, 1001 + timeout).removed,
            2,
            "protocol {protocol} {history:?}"
        );
        assert_eq!(left(&memory), 0);
    }
}

/// A client may open a flow from a port whose last flow is just being removed.
#[test]
fn a_flow_that_was_opened_anew_stays() {
    let memory = Memory::default();
    let keys = insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
    let mut flows = memory.v4.flows.clone();
    let found = Found::flow(&mut flows, &keys[0]).expect("readable").expect("a flow");
    for renewed in [&keys[..], &keys[..1], &keys[1..]] {
        insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
        for key in renewed {
            let mut value = flows.get(key).expect("readable").expect("a half");
            value.last_seen = 2000;
            flows.insert(key, &value).expect("room");
        }
        found.remove(&mut flows).expect("writable");
        for key in renewed {
            assert!(flows.get(key).expect("readable").is_some(), "{renewed:?}");
        }
    }
    insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
    assert_eq!(found.remove(&mut flows).expect("writable"), 2);
}

/// A masqueraded flow over UDP: its key.
fn insert_masqueraded(memory: &Memory) -> FlowKey<[u8; 4]> {
    let [key, _] = insert(memory, 17, (1000, 1000), (history::SEEN, 0));
    let mut flows = memory.v4.flows.clone();
    let mut value = flows.get(&key).expect("readable").expect("a flow");
    value.flags |= flow_flags::MASQUERADED;
    flows.insert(&key, &value).expect("room");
    let middle = flow::masquerade_key(&key, &value);
    let masquerade = FlowValue {
        address: [192, 0, 2, 1],
        port: 1024,
        other_port: BACKEND.1,
        last_seen: 1010,
        flags: flow_flags::MASQUERADE,
        ..FlowValue::default()
    };
    for (key, value) in [
        (middle, masquerade),
        (
            flow::twin_key(&middle, &masquerade),
            flow::twin_value(&middle, &masquerade),
        ),
    ] {
        flows.insert(&key, &value).expect("room");
    }
    key
}

/// A masquerade and its flow go together, whichever of their entries was used last.
#[test]
fn masquerade_goes_with_its_flow() {
    let memory = Memory::default();
    insert_masqueraded(&memory);
    let end = 1000 + Timeouts::DEFAULT.udp_opening;
    assert_eq!(collected(&memory, end).removed, 0);
    assert_eq!(collected(&memory, end + 1).removed, 4);
    assert_eq!(left(&memory), 0);
}

/// A datagram that has passed the one hook must find the masquerade at the other.
#[test]
fn a_flow_that_is_used_again_keeps_its_masquerade() {
    let memory = Memory::default();
    let key = insert_masqueraded(&memory);
    let mut flows = memory.v4.flows.clone();
    let found = Found::flow(&mut flows, &key).expect("readable").expect("a flow");
    let mut value = found.value;
    value.last_seen = 2000;
    flows.insert(&key, &value).expect("room");
    assert_eq!(found.remove(&mut flows).expect("writable"), 0);
    assert_eq!(left(&memory), 4);
}

/// Two flows had the same ports one after the other: what is left of the first must not take the second with it.
#[test]
fn a_twin_of_another_flow_stays() {
    let memory = Memory::default();
    let [_, twin_key] = insert(&memory, 6, (1000, 1000), (history::SEEN, 0));
    let mut flows = memory.v4.flows.clone();
    let mut other = flows.get(&twin_key).expect("readable").expect("a half");
    (other.address, other.last_seen) = ([10, 96, 0, 2], 5000);
    other.history = history::SEEN | history::CONFIRMED;
    flows.insert(&twin_key, &other).expect("room");
    assert_eq!(collected(&memory, 5001).removed, 1);
    assert_eq!(flows.get(&twin_key).expect("readable"), Some(other));
}

/// An agent that is killed between two removals leaves a half: the next round ends it.
#[test]
fn what_an_interrupted_round_leaves_goes_with_the_next() {
    for lost in [0, 1] {
        let memory = Memory::default();
        let keys = insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
        memory.v4.flows.clone().remove(&keys[lost]).expect("writable");
        assert_eq!(collected(&memory, 1001 + Timeouts::DEFAULT.udp_established).removed, 1);
        assert_eq!(left(&memory), 0);
    }
}

#[test]
fn unanswered_flows_go_soon_under_pressure() {
    let memory = Memory::new(&|name| (name == "flows_v4").then_some(2));
    insert(&memory, 6, (1000, 1000), (history::SEEN, 0));
    let usage = collected(&memory, 1000 + PRESSED);
    assert_eq!((usage.removed, usage.is_pressed), (0, true));
    let usage = collected(&memory, 1001 + PRESSED);
    assert_eq!((usage.removed, usage.is_pressed), (2, false));
}

/// One busy half keeps both: a download sends packets one way for most of the time.
#[test]
fn either_half_keeps_the_flow() {
    let memory = Memory::default();
    insert(&memory, 17, (1000, 2000), (history::SEEN, history::SEEN));
    assert_eq!(collected(&memory, 2010).kept, 2);
    assert_eq!(left(&memory), 2);
}

#[test]
fn usage_names_services_and_filter_bits() {
    let memory = Memory::default();
    insert(&memory, 6, (1000, 1000), (history::SEEN, history::SEEN));
    let usage = collected(&memory, 1001);
    assert_eq!(usage.services, HashSet::from([3]));
    assert!(usage.frontend_bits.contains(&bit_of(&FRONTEND.0)));
    assert!(usage.backend_bits.contains(&bit_of(&BACKEND.0)));
    // Masquerade at the backend's egress is found by the destination.
    assert!(usage.backend_bits.contains(&bit_of(&CLIENT.0)));
}

/// A packet between two rounds: whose, how long after the first, whether it is an answer, and what it adds to the history.
type Packet = (u16, u32, bool, u8);

/// A packet opens a flow, or changes one of its halves.
fn pass(memory: &Memory, (client, at, is_answer, seen): Packet) {
    let protocol = [6, 17][usize::from(client % 2)];
    let key = FlowKey::new(INGRESS, protocol, (CLIENT.0, 1000 + client), FRONTEND);
    let mut flows = memory.v4.flows.clone();
    let Some(value) = flows.get(&key).expect("readable") else {
        insert_from(memory, 1000 + client, protocol, (at, at), (seen, 0));
        return;
    };
    let half = if is_answer { flow::twin_key(&key, &value) } else { key };
    let mut value = flows.get(&half).expect("readable").expect("both halves");
    value.last_seen = at;
    value.history |= seen;
    flows.insert(&half, &value).expect("room");
}

proptest! {
    /// A round that looks only at what may have run out since the last removes what one that looks at all would.
    #[test]
    fn brief_rounds_miss_nothing(
        rounds in vec(
            (prop_oneof![1..70_u32, 1000..90_000_u32], vec((0..8_u16, 0..60_u32, any::<bool>(), 0..32_u8), 0..4)),
            1..40,
        )
    ) {
        let [brief, full] = [(); 2].map(|()| Memory::default());
        let mut collector = Collector::new(brief.tables(), Timeouts::DEFAULT);
        let mut now = 1000;
        for (ticks, packets) in rounds {
            for (client, after, is_answer, seen) in packets {
                for memory in [&brief, &full] {
                    pass(memory, (client, now + after.min(ticks), is_answer, seen));
                }
            }
            now += ticks;
            let usage = collector.collect(at(now)).expect("readable");
            let expected = collected(&full, now);
            let sorted = |memory: &Memory| {
                let mut entries = memory.v4.flows.entries().expect("readable");
                entries.sort_by_key(|(key, _)| (key.direction, key.source_port, key.destination_port));
                entries
            };
            prop_assert_eq!(sorted(&brief), sorted(&full));
            prop_assert_eq!((usage.kept, usage.removed), (expected.kept, expected.removed));
        }
    }
}

/// Most rounds see an idle flow's entries only pass by.
#[test]
fn idle_flows_are_looked_up_when_a_time_runs_out() {
    let memory = Memory::default();
    let keys = insert(
        &memory,
        6,
        (1000, 1000),
        (history::SEEN | history::CONFIRMED, history::SEEN),
    );
    let timeouts = Timeouts::DEFAULT;
    let due: Vec<_> = (0..=timeouts.tcp_established)
        .step_by(60)
        .filter(|silence| {
            let value = memory.v4.flows.get(&keys[0]).expect("readable").expect("a half");
            ran_out(&keys[0], &value, &timeouts, 1000 + silence, 1060 + silence)
        })
        .collect();
    let times = [
        timeouts.tcp_answered,
        timeouts.tcp_opening,
        timeouts.tcp_half_closed,
        timeouts.tcp_established,
    ];
    assert_eq!(timeouts.tcp_closing, timeouts.tcp_opening);
    assert_eq!(due, times.map(|time| time / 60 * 60));
}
