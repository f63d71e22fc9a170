//! Who watches is told of new flows and refused packets, and of nothing else.

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, OTHER_VIP, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{
        ANSWERED, ANYBODY, AddressBytes as _, EGRESS, Event, INGRESS, NO_SERVICE, ServiceValue, Watcher, address_flags,
        flow_flags, service_flags,
    },
    packet::{TCP, UDP, tcp_flags},
};

const HERE: Endpoint = (CLIENT, 40_000);

/// Has somebody at a place watch for reasons, a bit each.
pub(super) fn watch<F: TestFamily>(world: &World<F>, place: u32, reasons: u64) {
    let watcher = Watcher {
        reasons,
        until: world.now.get() + 5,
        ..Watcher::default()
    };
    world
        .watchers
        .borrow_mut()
        .extend([(ANYBODY, watcher), (place, watcher)]);
}

/// What was told since the last time.
fn told<F: TestFamily>(world: &World<F>) -> Vec<(u32, Event)> {
    world.events.take()
}

fn address<F: TestFamily>(endpoint: Endpoint) -> ([u8; 16], u16) {
    (F::address(endpoint.0).mapped(), endpoint.1)
}

fn source(event: &Event) -> ([u8; 16], u16) {
    (event.source, event.source_port)
}

fn destination(event: &Event) -> ([u8; 16], u16) {
    (event.destination, event.destination_port)
}

both_families! {
    /// One event a flow, however many packets it has and whether they are due for upkeep or not.
    fn a_flow_is_told_once<F>() {
        let world = World::<F>::masquerading();
        watch(&world, 3, u64::MAX);
        let first = Segment::first(TCP, HERE, VIP);
        assert_eq!(world.enter(&first).reason, Reason::NewFlow);
        let told_of = told(&world);
        let [(3, event)] = told_of[..] else {
            panic!("{told_of:?}");
        };
        assert_eq!((source(&event), destination(&event)), (address::<F>(HERE), address::<F>(VIP)));
        assert_eq!((event.backend, event.backend_port), address::<F>(BACKEND));
        assert_eq!((event.protocol, event.hook, event.device, event.service), (TCP, INGRESS, 1, 2));
        assert_eq!([event.reason, event.outcome].map(u32::from), [Reason::NewFlow as u32; 2]);
        assert_eq!(event.length as usize, first.bytes::<F>().len());
        assert_eq!(event.flags & flow_flags::MASQUERADED, flow_flags::MASQUERADED);
        assert_eq!(event.nanoseconds >> crate::layout::TICK_SHIFT, world.now.get().into());
        for flags in [tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK] {
            assert_eq!(world.enter(&Segment::later(TCP, HERE, VIP).flags(flags)).reason, Reason::Established);
            world.now.set(world.now.get() + 1);
        }
        assert_eq!(told(&world), []);
    }

    /// The first answer of a flow is told with the addresses that it was opened with, even if the backend sees another port.
    fn the_first_answer_is_told_as_its_flow_was<F>() {
        let mut world = World::<F>::with_service();
        world.serve(OTHER_VIP, &[BACKEND]);
        watch(&world, 3, u64::MAX);
        for (vip, seen) in [(VIP, HERE.1), (OTHER_VIP, 1024)] {
            assert_eq!(world.enter(&Segment::first(TCP, HERE, vip)).reason, Reason::NewFlow);
            let told_of = told(&world);
            let [(_, opened)] = told_of[..] else {
                panic!("{told_of:?}");
            };
            for _ in 0..2 {
                world.leave(&Segment::later(TCP, BACKEND, (CLIENT, seen)));
            }
            let told_of = told(&world);
            let [(3, event)] = told_of[..] else {
                panic!("{told_of:?}");
            };
            let identity = |event: &Event| (source(event), destination(event), event.backend, event.backend_port);
            assert_eq!(identity(&event), identity(&opened));
            assert_eq!((event.protocol, event.service), (opened.protocol, opened.service));
            assert_eq!((event.reason, event.hook), (ANSWERED, EGRESS));
        }
    }

    fn a_refused_packet_is_told_with_its_service_and_what_came_of_it<F>() {
        let mut world = World::<F>::new();
        world.set_service(VIP, ServiceValue { service: 7, ..ServiceValue::default() });
        world.set_wildcard(VIP.0);
        watch(&world, 1, u64::MAX);
        let answered = (Reason::NoEndpoints, Reason::NoEndpoints, 7);
        let limited = (Reason::NoEndpoints, Reason::AnswerLimited, 7);
        for (to, count, (reason, outcome, service)) in [
            (VIP, 49, answered),
            ((VIP.0, 81), 1, (Reason::NoPort, Reason::NoPort, NO_SERVICE)),
            (VIP, 1, limited),
        ] {
            for _ in 0..count {
                assert_eq!(world.enter(&Segment::first(UDP, HERE, to)).reason, outcome);
                let told_of = told(&world);
                let [(1, event)] = told_of[..] else {
                    panic!("{told_of:?}");
                };
                assert_eq!((source(&event), destination(&event)), (address::<F>(HERE), address::<F>(to)));
                assert_eq!((event.protocol, event.hook, event.service), (UDP, INGRESS, service));
                assert_eq!([event.reason, event.outcome].map(u32::from), [reason as u32, outcome as u32]);
                assert_eq!((event.backend, event.backend_port), ([0; 16], 0));
            }
        }
    }

    /// What is dropped is told as what is rejected is; on its way to the backend by the flow that it is of.
    fn a_drop_is_told_at_either_hook<F>() {
        let mut world = World::<F>::with_service();
        let local = ServiceValue { service: 9, flags: service_flags::HAS_ENDPOINTS, ..ServiceValue::default() };
        world.set_service(OTHER_VIP, local);
        watch(&world, 1, u64::MAX);
        assert_eq!(world.enter(&Segment::first(UDP, HERE, OTHER_VIP)).reason, Reason::NoLocalEndpoints);
        // The device has no address to masquerade with.
        let hidden = ServiceValue {
            service: 2,
            flags: service_flags::MASQUERADE,
            cluster_set: 2,
            cluster_count: 1,
            ..ServiceValue::default()
        };
        world.set_service(VIP, hidden);
        assert_eq!(world.enter(&Segment::first(UDP, HERE, VIP)).reason, Reason::NewFlow);
        assert_eq!(world.leave(&Segment::first(UDP, HERE, BACKEND)).reason, Reason::NoMasqueradeAddress);
        let told_of: Vec<_> = told(&world).iter().map(|(_, event)| (event.hook, u32::from(event.reason), event.service)).collect();
        assert_eq!(told_of, [
            (INGRESS, Reason::NoLocalEndpoints as u32, 9),
            (INGRESS, Reason::NewFlow as u32, 2),
            (EGRESS, Reason::NoMasqueradeAddress as u32, 2),
        ]);
    }

    /// Everybody is told what he asked for, until he is gone; what there is no room for is counted for him.
    fn each_watcher_is_told_what_it_wants<F>() {
        let mut world = World::<F>::with_service();
        world.set_service(OTHER_VIP, ServiceValue { service: 9, ..ServiceValue::default() });
        world.add_address(NODE, address_flags::LOCAL);
        watch(&world, 1, 1 << Reason::NewFlow as u32);
        watch(&world, 8, 1 << Reason::NewFlow as u32 | 1 << Reason::NoEndpoints as u32);
        world.enter(&Segment::first(UDP, HERE, VIP));
        world.enter(&Segment::first(UDP, HERE, OTHER_VIP));
        let places: Vec<_> = told(&world).iter().map(|(place, event)| (*place, u32::from(event.reason))).collect();
        let (new, refused) = (Reason::NewFlow as u32, Reason::NoEndpoints as u32);
        assert_eq!(places, [(1, new), (8, new), (8, refused)]);
        world.event_room.set(0);
        world.enter(&Segment::first(UDP, HERE, OTHER_VIP));
        assert_eq!(told(&world), []);
        assert_eq!(*world.events_lost.borrow(), [(8, 1)].into());
        // Nobody has renewed what he said.
        world.event_room.set(usize::MAX);
        world.now.set(world.now.get() + 5);
        world.enter(&Segment::first(UDP, HERE, OTHER_VIP));
        assert_eq!(told(&world), []);
        assert_eq!(*world.events_lost.borrow(), [(8, 1)].into());
    }
}
