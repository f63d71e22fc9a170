//! A full table: what is given up for new flows, and what is not.

use proptest::{collection::vec, prelude::*};

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, VIP, World},
};
use crate::{
    datapath::{
        Reason,
        flow::{State, masquerade_key, same_rewrite, twin_key, twin_value},
    },
    layout::{FlowKey, INGRESS, flow_flags},
    packet::{SCTP, TCP, UDP, V4, V6, tcp_flags},
};

/// A world of one endpoint and a masquerade address, with room for so many entries.
fn world<F: TestFamily>(capacity: usize) -> World<F> {
    let mut world = World::with_service();
    world.masquerade_with(NODE);
    world.capacity.set(capacity);
    // The ring holds openings of flows that have ended, too.
    world.opening_slots.set(capacity.max(1000));
    world
}

/// The first packet of a client.
fn open<F: TestFamily>(world: &World<F>, protocol: u8, port: u16) -> Reason {
    world.enter(&Segment::first(protocol, (CLIENT, port), VIP)).reason
}

/// The handshake of a client that is there.
fn establish<F: TestFamily>(world: &World<F>, port: u16) {
    assert_eq!(open(world, TCP, port), Reason::NewFlow);
    world.leave(&Segment::later(TCP, BACKEND, (CLIENT, port)).flags(tcp_flags::SYN | tcp_flags::ACK));
    world.enter(&Segment::later(TCP, (CLIENT, port), VIP));
}

fn evicted<F: TestFamily>(world: &World<F>) -> u64 {
    let reasons = world.reasons.borrow();
    reasons.get(&Reason::FlowEvicted).map_or(0, |counter| counter.packets)
}

both_families! {
    fn the_oldest_unanswered_flow_makes_room<F>() {
        for protocol in [TCP, UDP, SCTP] {
            let world = world::<F>(6);
            for port in 1..=3 {
                assert_eq!(open(&world, protocol, port), Reason::NewFlow);
            }
            for port in 4..=40 {
                assert_eq!(open(&world, protocol, port), Reason::NewFlow);
                assert_eq!(world.entries(), 6);
                assert_eq!(evicted(&world), u64::from(port) - 3);
                let gone = World::<F>::key(INGRESS, protocol, (CLIENT, port - 3), VIP);
                assert_eq!(world.entry(&gone), None, "port {}", port - 3);
            }
        }
    }

    /// Backends answer the first packets of a flood, too.
    fn an_answer_alone_does_not_protect<F>() {
        for protocol in [TCP, UDP] {
            let world = world::<F>(2);
            for port in 1..=3 {
                assert_eq!(open(&world, protocol, port), Reason::NewFlow);
                let answer = Segment::later(protocol, BACKEND, (CLIENT, port));
                world.leave(&answer.flags(tcp_flags::SYN | tcp_flags::ACK));
            }
            assert_eq!((world.entries(), evicted(&world)), (2, 2));
        }
    }

    fn established_flows_stay<F>() {
        let world = world::<F>(20);
        for port in 1..=10 {
            establish(&world, port);
        }
        let before = world.flows.borrow().clone();
        for port in 11..100 {
            assert_eq!(open(&world, TCP, port), Reason::FlowTableFull);
        }
        assert_eq!(*world.flows.borrow(), before);
        assert_eq!(evicted(&world), 0);
    }

    /// The row of openings begins with flows that are not moved from the previous generation's table yet: they may be given up when they
    /// are.
    fn a_flow_that_is_moved_later_makes_room_then<F>() {
        let world = world::<F>(4);
        assert_eq!(open(&world, UDP, 1), Reason::NewFlow);
        let theirs = std::mem::take(&mut *world.flows.borrow_mut());
        world.previous.borrow_mut().extend(theirs.keys().copied());
        for port in [2, 3, 4] {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
        }
        assert_eq!(evicted(&world), 1);
        // Moved in place of the flow of port 3.
        let is_of_3 = |key: &FlowKey<F::Address>| [key.source_port, key.destination_port].contains(&3);
        world.flows.borrow_mut().retain(|key, _| !is_of_3(key));
        world.previous.borrow_mut().clear();
        world.flows.borrow_mut().extend(theirs.clone());
        for port in [5, 6] {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
        }
        assert!(theirs.keys().all(|key| world.entry(key).is_none()));
    }

    /// Connections that were opened one after the other stand so in the row of openings, and so do packets of a flood that were under
    /// way when a tick began: they are passed with one packet.
    fn many_flows_that_stay_in_a_row_cost_no_new_one<F>() {
        let world = world::<F>(2 * 10_001);
        for port in 1..=10_000 {
            establish(&world, port);
        }
        for port in 11_001..11_020 {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
        }
        assert_eq!((world.entries(), evicted(&world)), (2 * 10_001, 18));
    }

    /// Once none was found in the whole ring, a packet looks at a part of it only.
    fn a_table_full_of_established_flows_is_not_searched_with_every_packet<F>() {
        let world = world::<F>(2 * 1000);
        for port in 1..=1000 {
            establish(&world, port);
        }
        assert_eq!(open(&world, UDP, 1001), Reason::FlowTableFull);
        let looks = world.looks.get();
        assert!((2000..3000).contains(&looks), "{looks} looks");
        for number in 1..=10 {
            assert_eq!(open(&world, UDP, 1001), Reason::FlowTableFull);
            assert_eq!(world.looks.get(), looks + 256 * number);
        }
        // One that ends meanwhile is found nevertheless.
        world.enter(&Segment::later(TCP, (CLIENT, 500), VIP).flags(tcp_flags::RST));
        let attempts = (1..=8).take_while(|_| open(&world, UDP, 1001) != Reason::NewFlow);
        assert!(attempts.count() < 8);
        assert_eq!((world.entries(), evicted(&world)), (2 * 1000, 1));
    }

    fn new_connections_are_made_in_a_flood<F>() {
        let world = world::<F>(16);
        for number in 0..200 {
            for other in 0..6 {
                assert_eq!(open(&world, UDP, 1000 + number * 6 + other), Reason::NewFlow);
            }
            let port = 1 + number % 3;
            if number < 3 {
                establish(&world, port);
            }
            let sent = world.enter(&Segment::later(TCP, (CLIENT, port), VIP));
            assert_eq!((sent.reason, sent.destination), (Reason::Established, BACKEND));
            let sent = world.leave(&Segment::later(TCP, BACKEND, (CLIENT, port)));
            assert_eq!((sent.reason, sent.source), (Reason::Established, VIP));
        }
    }

    fn closed_flows_make_room<F>() {
        let world = world::<F>(2);
        establish(&world, 1);
        world.enter(&Segment::later(TCP, (CLIENT, 1), VIP).flags(tcp_flags::RST));
        assert_eq!(open(&world, TCP, 2), Reason::NewFlow);
        assert_eq!((world.entries(), evicted(&world)), (2, 1));
    }

    /// Clients use their ports again; what is remembered of a flow that has ended must not be told of the next.
    fn a_flow_under_a_used_key_is_young<F>() {
        let world = world::<F>(6);
        assert_eq!(open(&world, UDP, 1), Reason::NewFlow);
        world.flows.borrow_mut().clear();
        world.now.set(world.now.get() + 40);
        for port in [2, 3, 1, 4] {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
        }
        let is_there = |port| world.entry(&World::<F>::key(INGRESS, UDP, (CLIENT, port), VIP)).is_some();
        assert_eq!([1, 2, 3, 4].map(is_there), [true, false, true, true]);
        assert_eq!(open(&world, UDP, 5), Reason::NewFlow);
        assert_eq!(open(&world, UDP, 6), Reason::NewFlow);
        assert_eq!([1, 4, 5, 6].map(is_there), [false, true, true, true]);
    }

    /// A client that asks again is not the oldest, and one that never gets an answer is at last.
    fn a_flow_in_use_goes_to_the_end_of_the_row<F>() {
        let world = world::<F>(6);
        for port in 1..=3 {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
        }
        world.now.set(world.now.get() + 1);
        assert_eq!(open(&world, UDP, 1), Reason::Established);
        let is_there = |port| world.entry(&World::<F>::key(INGRESS, UDP, (CLIENT, port), VIP)).is_some();
        for (port, left) in [(4, [true, false, true]), (5, [true, false, false]), (6, [false; 3])] {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
            assert_eq!([1, 2, 3].map(is_there), left, "after {port}");
        }
    }

    /// Before a flood, most openings are of flows that have ended.
    fn ended_flows_do_not_hide_what_may_go<F>() {
        let world = world::<F>(6);
        for port in 1..=1000 {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
            world.flows.borrow_mut().clear();
        }
        for port in 2001..=2020 {
            assert_eq!(open(&world, UDP, port), Reason::NewFlow);
        }
        assert_eq!((world.entries(), evicted(&world)), (6, 17));
    }

    /// It needs more room than the flow that is given up for it leaves.
    fn masqueraded_flow_finds_room<F>() {
        let world = world::<F>(5);
        for port in 1..=3 {
            assert_eq!(open(&world, TCP, port), Reason::NewFlow);
        }
        assert_eq!(world.enter(&Segment::first(TCP, (BACKEND.0, 4), VIP)).reason, Reason::NewFlow);
        assert_eq!(world.leave(&Segment::first(TCP, (BACKEND.0, 4), BACKEND)).reason, Reason::Established);
        assert_eq!(world.entries(), 4);
    }

    /// All four entries of a masqueraded flow go.
    fn masquerade_goes_with_its_flow<F>() {
        let world = world::<F>(4);
        assert_eq!(world.enter(&Segment::first(UDP, (BACKEND.0, 1), VIP)).reason, Reason::NewFlow);
        assert_eq!(world.leave(&Segment::first(UDP, (BACKEND.0, 1), BACKEND)).reason, Reason::Established);
        assert_eq!(world.entries(), 4);
        assert_eq!(open(&world, UDP, 2), Reason::NewFlow);
        assert_eq!(world.entries(), 2);
    }
}

/// What happens in the property below: a client, by its number, and what it or its server does.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Opens,
    Sends,
    IsAnswered,
    Closes,
    Waits,
}

/// The endpoint and protocol of a client; every third is the endpoint itself, which is masqueraded.
fn client(number: u16) -> (Endpoint, u8) {
    let address = if number.is_multiple_of(3) { BACKEND.0 } else { CLIENT };
    (
        (address, 1000 + number),
        if number.is_multiple_of(2) { TCP } else { UDP },
    )
}

/// Lets it happen; packets of masqueraded clients meet the hooks of both edges.
fn happen<F: TestFamily>(world: &World<F>, number: u16, happening: Happening) {
    let (here, protocol) = client(number);
    let first = Segment::first(protocol, here, VIP);
    let later = Segment::later(protocol, here, VIP);
    let to_server = |segment: Segment| {
        let sent = world.enter(&segment);
        if here.0 == BACKEND.0 && sent.destination == BACKEND {
            world.leave(&Segment {
                source: sent.source,
                destination: BACKEND,
                ..segment
            });
        }
    };
    match happening {
        Happening::Opens => to_server(first),
        Happening::Sends => to_server(later),
        Happening::Closes => to_server(later.flags(tcp_flags::RST)),
        Happening::Waits => world.now.set(world.now.get() + 1),
        Happening::IsAnswered => {
            if here.0 == BACKEND.0 {
                world.enter(&Segment::later(protocol, BACKEND, (NODE, here.1)));
            }
            world.leave(&Segment::later(protocol, BACKEND, here));
        }
    }
}

/// What stands after each step: no half without its twin, no masquerade without its flow, and every flow that was
/// established before, but for those that ended by themselves.
fn table_stays_whole<F: TestFamily>(capacity: usize, happenings: &[(u16, Happening)]) {
    let world = world::<F>(capacity);
    for &(number, happening) in happenings {
        let before = world.flows.borrow().clone();
        let evicted_before = evicted(&world);
        happen(&world, number, happening);
        let after = world.flows.borrow().clone();
        assert!(after.len() <= capacity);
        for (key, value) in &after {
            if value.flags & flow_flags::UNRESOLVED == 0 {
                let twin = after.get(&twin_key(key, value));
                let whole = twin.is_some_and(|twin| same_rewrite(twin, &twin_value(key, value)));
                assert!(whole, "{happening:?} of {number}: {key:?} {value:?} has no twin");
            }
            if value.flags & flow_flags::MASQUERADED != 0 {
                assert!(
                    after.contains_key(&masquerade_key(key, value)),
                    "{happening:?} of {number}"
                );
            }
        }
        let flows = |table: &std::collections::HashMap<_, crate::layout::FlowValue<F::Address>>| {
            let of_masquerade =
                |value: &crate::layout::FlowValue<F::Address>| value.flags & flow_flags::MASQUERADE != 0;
            table.values().filter(|value| of_masquerade(value)).count()
        };
        let masqueraded = after
            .values()
            .filter(|value| value.flags & flow_flags::MASQUERADED != 0)
            .count();
        assert!(flows(&after) <= 2 * masqueraded, "a masquerade is left behind");
        if evicted(&world) == evicted_before {
            continue;
        }
        for (key, value) in before
            .iter()
            .filter(|(_, value)| value.flags & flow_flags::MASQUERADE == 0)
        {
            let twin = before.get(&twin_key(key, value));
            if !State::of(key.protocol, value, twin).is_expendable() {
                assert!(
                    after.contains_key(key),
                    "{happening:?} of {number}: {key:?} was given up"
                );
            }
        }
    }
}

fn happenings() -> impl Strategy<Value = Vec<(u16, Happening)>> {
    let happening = prop_oneof![
        4 => Just(Happening::Opens),
        3 => Just(Happening::Sends),
        3 => Just(Happening::IsAnswered),
        1 => Just(Happening::Closes),
        1 => Just(Happening::Waits),
    ];
    vec((0..12_u16, happening), 1..200)
}

proptest! {
    /// An answered flow is never given up, and none in part.
    #[test]
    fn eviction_takes_whole_flows_that_are_expendable(capacity in 2..20_usize, happenings in happenings()) {
        table_stays_whole::<V4>(capacity, &happenings);
        table_stays_whole::<V6>(capacity, &happenings);
    }
}
