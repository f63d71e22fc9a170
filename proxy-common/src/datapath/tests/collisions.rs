//! Flows that would look alike to a backend, and a flow table without room.

use super::{
    both_families,
    segment::{Segment, TestFamily},
    world::{BACKEND, CLIENT, OTHER_VIP, Sent, TIMEOUTS, VIP, World},
};
use crate::{
    datapath::{
        Reason,
        flow::{twin_key, twin_value},
    },
    layout::{EGRESS, FlowValue, INGRESS, flow_flags, history},
    packet::{TCP, UDP, tcp_flags},
};

/// The client's endpoint of these tests.
const HERE: (u128, u16) = (CLIENT, 40_000);

/// The frontend of the flow of [`take`]; nobody serves it.
const THIRD_VIP: (u128, u16) = (OTHER_VIP.0 + 1, OTHER_VIP.1);

/// Two frontends with one endpoint, and a flow of [`HERE`] through the first.
fn colliding<F: TestFamily>(protocol: u8) -> World<F> {
    let mut world = World::with_service();
    world.serve(OTHER_VIP, &[BACKEND]);
    assert_eq!(
        world.enter(&Segment::first(protocol, HERE, VIP)).reason,
        Reason::NewFlow
    );
    world
}

/// Has another client's flow use a port towards the backend that replies to [`CLIENT`] would come to; with this history of the
/// backend's packets, all of this tick.
fn take<F: TestFamily>(world: &World<F>, port: u16, history: u8) {
    let reply = World::<F>::key(EGRESS, UDP, BACKEND, (CLIENT, port));
    let value = FlowValue {
        address: F::address(THIRD_VIP.0),
        port: THIRD_VIP.1,
        other_port: 50_000,
        last_seen: world.now.get(),
        history,
        flags: flow_flags::REPLY,
        ..FlowValue::default()
    };
    let mut flows = world.flows.borrow_mut();
    flows.insert(twin_key(&reply, &value), twin_value(&reply, &value));
    flows.insert(reply, value);
}

both_families! {
    fn second_flow_gets_another_port_both_ways<F>() {
        for (protocol, random, port) in [(TCP, 0, 1024), (UDP, u32::MAX, 65_535)] {
            let world = colliding::<F>(protocol);
            // The first number chooses the endpoint.
            world.random.borrow_mut().extend([0, random]);
            for (segment, reason) in [
                (Segment::first(protocol, HERE, OTHER_VIP), Reason::NewFlow),
                (Segment::later(protocol, HERE, OTHER_VIP), Reason::Established),
            ] {
                let expected = Sent { reason, source: (CLIENT, port), destination: BACKEND };
                assert_eq!(world.enter(&segment), expected);
            }
            for (seen, vip) in [(port, OTHER_VIP), (HERE.1, VIP)] {
                let reply = world.leave(&Segment::later(protocol, BACKEND, (CLIENT, seen)));
                assert_eq!(reply, Sent { reason: Reason::Established, source: vip, destination: HERE });
            }
            assert_eq!(world.entries(), 4);
        }
    }

    fn port_in_use_is_passed_over<F>() {
        let world = colliding::<F>(TCP);
        let taken = World::<F>::key(EGRESS, TCP, BACKEND, (CLIENT, 1024));
        world.flows.borrow_mut().insert(taken, FlowValue::default());
        world.random.borrow_mut().extend([0, 0, 1 << 31]);
        let sent = world.enter(&Segment::first(TCP, HERE, OTHER_VIP));
        assert_eq!((sent.reason, sent.source), (Reason::NewFlow, (CLIENT, 33_280)));
        assert_eq!(world.reasons.borrow()[&Reason::PortTaken].packets, 2, "its own, and 1024");
    }

    fn flow_without_a_free_port_is_dropped<F>() {
        let lasting = history::SEEN | history::LASTING;
        // Used lately, or established.
        for (now, history) in [(101, 0), (110, lasting)] {
            let world = colliding::<F>(UDP);
            world.leave(&Segment::later(UDP, BACKEND, HERE));
            take(&world, 1024, history);
            world.now.set(now);
            let before = world.flows.borrow().clone();
            assert_eq!(world.enter(&Segment::first(UDP, HERE, OTHER_VIP)).reason, Reason::PortsExhausted);
            assert_eq!(*world.flows.borrow(), before);
            assert_eq!(world.reasons.borrow()[&Reason::PortTaken].packets, 8, "one for each that was drawn");
            let refusals: Vec<_> = world.refusals.borrow().keys().map(|(_, reason)| *reason).collect();
            assert_eq!(refusals, [Reason::PortsExhausted]);
        }
    }

    /// A flood through a masquerade leaves ports to others, though the table has room for its flows.
    fn ports_of_flows_that_got_nowhere_are_given_up_in_need<F>() {
        let world = colliding::<F>(UDP);
        take(&world, 1024, history::SEEN);
        world.now.set(102);
        let sent = world.enter(&Segment::first(UDP, HERE, OTHER_VIP));
        assert_eq!((sent.reason, sent.source), (Reason::NewFlow, (CLIENT, 1024)));
        assert_eq!(world.entries(), 4, "both halves of the flow that was given up are gone");
    }

    fn port_of_a_closed_flow_is_free<F>() {
        let world = colliding::<F>(TCP);
        world.enter(&Segment::later(TCP, HERE, VIP).flags(tcp_flags::RST));
        let sent = world.enter(&Segment::first(TCP, HERE, OTHER_VIP));
        assert_eq!((sent.reason, sent.source), (Reason::NewFlow, HERE));
        assert_eq!(world.entries(), 2, "the closed flow is gone");
    }

    fn port_of_an_expired_flow_is_free<F>() {
        let world = colliding::<F>(UDP);
        world.now.set(100 + TIMEOUTS.udp_opening + 1);
        let sent = world.enter(&Segment::first(UDP, HERE, OTHER_VIP));
        assert_eq!((sent.reason, sent.source), (Reason::NewFlow, HERE));
        assert_eq!(world.entries(), 2, "the expired flow is gone");
    }

    /// Two flows had the same ports one after the other; what is left of the first must not disturb the second.
    fn half_whose_place_is_taken_is_given_up<F>() {
        let world = colliding::<F>(TCP);
        let forward = World::<F>::key(INGRESS, TCP, HERE, VIP);
        let left_over = world.entry(&forward).expect("a forward half");
        world.enter(&Segment::later(TCP, HERE, VIP).flags(tcp_flags::RST));
        assert_eq!(world.enter(&Segment::first(TCP, HERE, OTHER_VIP)).source, HERE);
        world.flows.borrow_mut().insert(forward, left_over);
        world.now.set(101);
        let sent = world.enter(&Segment::later(TCP, HERE, VIP));
        assert_eq!((sent.reason, sent.source), (Reason::NewFlow, (CLIENT, 1024)));
    }

    fn full_table_drops_new_flows_and_keeps_old_ones<F>() {
        for room in [0, 1] {
            let world = colliding::<F>(TCP);
            world.leave(&Segment::later(TCP, BACKEND, HERE));
            world.enter(&Segment::later(TCP, HERE, VIP));
            world.capacity.set(2 + room);
            let before = world.flows.borrow().clone();
            let other = (CLIENT, 40_001);
            assert_eq!(world.enter(&Segment::first(TCP, other, VIP)).reason, Reason::FlowTableFull);
            assert_eq!(world.enter(&Segment::first(TCP, HERE, OTHER_VIP)).reason, Reason::FlowTableFull);
            assert_eq!(*world.flows.borrow(), before, "nothing is left behind");
            assert_eq!(world.enter(&Segment::later(TCP, HERE, VIP)).reason, Reason::Established);
        }
    }
}
