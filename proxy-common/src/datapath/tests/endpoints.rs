//! Choosing an endpoint, and frontends that have none.

use proptest::prelude::*;

use super::{
    both_families,
    segment::{Segment, TestFamily},
    world::{BACKEND, CLIENT, STRANGER, VIP, World},
};
use crate::{
    datapath::{Reason, Verdict, scale},
    layout::{Counter, EndpointKey, ServiceCounter, ServiceValue, service_flags},
    packet::{SCTP, TCP, UDP},
};

const HERE: (u128, u16) = (CLIENT, 40_000);

both_families! {
    /// behaviour.md 2.11: each endpoint gets its share, to within one of evenly spread random numbers.
    fn choice_is_uniform<F>() {
        for count in [2, 3, 7] {
            let endpoints: Vec<_> = (0..count).map(|number| (100 + u128::from(number), 8080)).collect();
            let mut world = World::<F>::new();
            world.serve(VIP, &endpoints);
            let flows = 70 * count;
            let mut hits = vec![0; endpoints.len()];
            for number in 0..flows {
                world.random.borrow_mut().push_back(u32::MAX / flows * number);
                let source = (CLIENT, 1024 + u16::try_from(number).expect("few flows"));
                let sent = world.enter(&Segment::first(TCP, source, VIP));
                hits[endpoints.iter().position(|endpoint| *endpoint == sent.destination).expect("an endpoint")] += 1;
            }
            assert!(hits.iter().all(|hits| (69..=71).contains(hits)), "{hits:?}");
        }
    }

    fn frontends_without_endpoints_refuse<F>() {
        for protocol in [TCP, UDP] {
            let mut world = World::<F>::new();
            // behaviour.md 4.1
            world.set_service(VIP, ServiceValue::default());
            assert_eq!(world.enter(&Segment::first(protocol, HERE, VIP)).reason, Reason::NoEndpoints);
            // behaviour.md 4.2
            world.set_service(VIP, ServiceValue { flags: service_flags::HAS_ENDPOINTS, ..ServiceValue::default() });
            assert_eq!(world.enter(&Segment::first(protocol, HERE, VIP)).reason, Reason::NoLocalEndpoints);
            // An endpoint set that isn't there.
            world.set_service(VIP, ServiceValue { cluster_set: 1, cluster_count: 1, ..ServiceValue::default() });
            assert_eq!(world.enter(&Segment::first(protocol, HERE, VIP)).reason, Reason::EndpointMissing);
            assert_eq!(world.entries(), 0);
            // Each is counted for its service port, by reason.
            let packet = Segment::first(protocol, HERE, VIP).bytes::<F>();
            let counter = Counter { packets: 1, bytes: packet.len() as u64 };
            let reasons = [Reason::NoEndpoints, Reason::NoLocalEndpoints, Reason::EndpointMissing];
            let refusals = reasons.map(|reason| ((ServiceValue::default().service, reason), counter));
            assert_eq!(*world.refusals.borrow(), refusals.into());
        }
    }

    /// Packets both ways, and the flow once, by the endpoint that has it; of a hidden client's no more.
    fn traffic_is_counted_by_endpoint<F>() {
        for world in [World::<F>::with_service(), World::masquerading()] {
            let request = Segment::first(TCP, HERE, VIP);
            let sent = world.enter(&request);
            let seen = world.leave(&Segment::first(TCP, sent.source, sent.destination));
            let back = world.enter(&Segment::later(TCP, BACKEND, seen.source));
            let answer = Segment::later(TCP, BACKEND, back.destination);
            assert_eq!(world.leave(&answer).source, VIP);
            let bytes = (request.bytes::<F>().len() + answer.bytes::<F>().len()) as u64;
            let counter = ServiceCounter { connections: 1, packets: 2, bytes };
            let services: Vec<_> = world.counts.borrow().clone().into_iter().collect();
            let [(service, counted)] = services[..] else { panic!("{services:?}") };
            assert_eq!(counted, counter);
            let key = EndpointKey::new(service, &F::address(BACKEND.0), BACKEND.1);
            assert_eq!(*world.endpoints.borrow(), [(key, counter)].into());
        }
    }

    /// An entry may be read while it is replaced, but not twice.
    fn torn_entry_is_read_again<F>() {
        let world = World::<F>::with_service();
        for (number, torn, reason) in [(0, 1, Reason::NewFlow), (1, 2, Reason::EndpointMissing)] {
            world.torn.set(torn);
            world.random.borrow_mut().extend([u32::MAX; 2]);
            let here = (CLIENT, HERE.1 + number);
            assert_eq!(world.enter(&Segment::first(TCP, here, VIP)).reason, reason);
        }
    }

    /// behaviour.md 4.4, 7.1, 7.11: a flow outlives its endpoints, and a port without any refuses only new ones.
    fn known_flow_needs_no_endpoint<F>() {
        for protocol in [TCP, UDP, SCTP] {
            let mut world = World::<F>::with_service();
            world.enter(&Segment::first(protocol, HERE, VIP));
            world.set_service(VIP, ServiceValue::default());
            for tick in [100, 101, 102] {
                world.now.set(tick);
                let sent = world.enter(&Segment::later(protocol, HERE, VIP));
                assert_eq!((sent.reason, sent.destination), (Reason::Established, BACKEND));
                let answer = world.leave(&Segment::later(protocol, BACKEND, HERE));
                assert_eq!((answer.reason, answer.source), (Reason::Established, VIP));
            }
            let another = (HERE.0, HERE.1 + 1);
            assert_eq!(world.enter(&Segment::first(protocol, another, VIP)).reason, Reason::NoEndpoints);
        }
    }

    /// behaviour.md 3.4: address, port and protocol together.
    fn other_traffic_passes<F>() {
        let world = World::<F>::with_service();
        for protocol in [TCP, UDP] {
            let enter = |destination| world.enter(&Segment::first(protocol, HERE, destination)).reason;
            assert_eq!(enter((VIP.0, 81)), Reason::NoFrontend);
            assert_eq!(enter(STRANGER), Reason::Unrelated);
            assert_eq!(enter(BACKEND), Reason::Unrelated);
            let leave = |source| world.leave(&Segment::first(protocol, source, HERE)).reason;
            assert_eq!(leave(BACKEND), Reason::Unrelated);
            assert_eq!(leave(STRANGER), Reason::Unrelated);
        }
        assert_eq!(world.entries(), 0);
    }
}

#[test]
fn verdicts_go_with_reasons() {
    for (reason, verdict) in [
        (Reason::Unrelated, Verdict::Continue),
        (Reason::NewFlow, Verdict::Rewrite),
        (Reason::NoEndpoints, Verdict::Reject),
        (Reason::NoLocalEndpoints, Verdict::Drop),
    ] {
        assert_eq!(reason.verdict(), verdict);
    }
}

proptest! {
    #[test]
    fn scale_stays_in_range_and_in_order(one: u32, other: u32, count in 1..=u32::MAX) {
        prop_assert!(scale(one, count) < count);
        prop_assert_eq!(scale(one.min(other), count) > scale(one.max(other), count), false);
        prop_assert_eq!(scale(u32::MAX, count), count - 1);
    }
}
