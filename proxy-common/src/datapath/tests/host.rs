//! Packets of the node's own processes that no socket hook has served.

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, STRANGER, VIP, World},
};
use crate::{
    datapath::{Reason, Verdict},
    layout::{EGRESS, ServiceValue, address_flags, service_flags},
    packet::{BufferPacket, ICMP, ICMPV6, SCTP, TCP, UDP},
};

const OWN: Endpoint = (NODE, 40_000);
const PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];

/// A world where the node has an address, and [`VIP`] this entry.
fn world<F: TestFamily>(service: ServiceValue) -> World<F> {
    let mut world = World::with_service();
    world.masquerade_with(NODE);
    world.add_address(NODE, address_flags::LOCAL);
    world.set_service(VIP, service);
    world
}

/// An entry that has endpoints, and these flags.
fn frontend(flags: u32) -> ServiceValue {
    ServiceValue {
        service: 2,
        flags: flags | service_flags::HAS_ENDPOINTS,
        cluster_set: 2,
        cluster_count: 1,
        ..ServiceValue::default()
    }
}

/// What becomes of a packet that leaves the node, and what it is answered with; it must be untouched.
fn judged<F: TestFamily>(world: &World<F>, segment: &Segment) -> (Reason, Option<Vec<u8>>) {
    let before = segment.bytes::<F>();
    let mut bytes = before.clone();
    let mut packet = BufferPacket::new(&mut bytes);
    let (verdict, reason) = world.run(EGRESS, &mut packet);
    let answer = packet.answer().map(<[u8]>::to_vec);
    assert_eq!(verdict == Verdict::Reject, answer.is_some());
    assert_eq!(bytes, before, "{reason}");
    (reason, answer)
}

fn reason<F: TestFamily>(world: &World<F>, segment: &Segment) -> Reason {
    judged(world, segment).0
}

const fn icmp<F: TestFamily>() -> u8 {
    if F::IPV6 { ICMPV6 } else { ICMP }
}

both_families! {
    fn packets_that_came_too_late_to_be_served_are_counted<F>() {
        let world = world::<F>(frontend(0));
        for protocol in PROTOCOLS {
            let segment = Segment::first(protocol, OWN, VIP);
            assert_eq!(reason(&world, &segment), Reason::HostUnserved);
        }
        assert_eq!(world.reasons.borrow()[&Reason::HostUnserved].packets, 3);
        assert_eq!(world.entries(), 0);
    }

    /// behaviour.md 4.1: the answer is the one that a client elsewhere gets.
    fn rule_4_1_without_endpoints_the_host_is_refused<F>() {
        let world = world::<F>(ServiceValue::default());
        for protocol in PROTOCOLS {
            let segment = Segment::first(protocol, OWN, VIP);
            let (reason, answer) = judged(&world, &segment);
            assert_eq!(reason, Reason::NoEndpoints);
            let mut bytes = segment.bytes::<F>();
            let mut at_ingress = BufferPacket::new(&mut bytes);
            world.run(crate::layout::INGRESS, &mut at_ingress);
            assert_eq!(answer.as_deref(), at_ingress.answer());
        }
    }

    /// behaviour.md 4.2
    fn rule_4_2_policy_local_drops_what_the_host_sends<F>() {
        let world = world::<F>(frontend(service_flags::LOCAL));
        for protocol in PROTOCOLS {
            assert_eq!(reason(&world, &Segment::first(protocol, OWN, VIP)), Reason::NoLocalEndpoints);
        }
        let refused = world.refusals.borrow()[&(frontend(0).service, Reason::NoLocalEndpoints)];
        assert_eq!(refused.packets, PROTOCOLS.len() as u64);
    }

    /// behaviour.md 4.3, 5.6: policy Local of external addresses is not for the node itself.
    fn rule_4_3_external_policy_local_has_endpoints_for_the_host<F>() {
        let world = world::<F>(frontend(service_flags::LOCAL | service_flags::SHORT_CIRCUIT));
        assert_eq!(reason(&world, &Segment::first(TCP, OWN, VIP)), Reason::HostUnserved);
    }

    /// behaviour.md 3.10
    fn rule_3_10_source_ranges_are_for_the_host_as_well<F>() {
        let mut world = world::<F>(frontend(service_flags::RESTRICTED));
        assert_eq!(reason(&world, &Segment::first(TCP, OWN, VIP)), Reason::SourceRefused);
        world.add_source(2, NODE);
        assert_eq!(reason(&world, &Segment::first(TCP, OWN, VIP)), Reason::HostUnserved);
    }

    /// behaviour.md 4.6: ping, too.
    fn rule_4_6_wrong_ports_of_a_cluster_address_refuse<F>() {
        let mut world = world::<F>(frontend(0));
        world.set_wildcard(VIP.0);
        assert_eq!(reason(&world, &Segment::first(UDP, OWN, (VIP.0, 81))), Reason::NoPort);
        assert_eq!(reason(&world, &Segment::first(icmp::<F>(), OWN, VIP)), Reason::NoPort);
    }

    /// behaviour.md 4.7
    fn rule_4_7_addresses_that_no_service_has_drop<F>() {
        let mut world = world::<F>(frontend(0));
        world.add_service_address(STRANGER.0);
        for protocol in [TCP, UDP, SCTP, icmp::<F>()] {
            assert_eq!(reason(&world, &Segment::first(protocol, OWN, STRANGER)), Reason::Unallocated);
        }
    }

    /// behaviour.md 4.9: nor is any other protocol on an address that is no cluster address.
    fn rule_4_9_other_ports_of_external_addresses_are_left_alone<F>() {
        let world = world::<F>(ServiceValue::default());
        assert_eq!(reason(&world, &Segment::first(TCP, OWN, (VIP.0, 81))), Reason::Unrelated);
        assert_eq!(reason(&world, &Segment::first(icmp::<F>(), OWN, VIP)), Reason::Unrelated);
    }

    /// behaviour.md 4.4: connections that were there before this proxy.
    fn rule_4_4_later_packets_are_left_alone<F>() {
        let world = world::<F>(ServiceValue::default());
        for protocol in [TCP, SCTP] {
            assert_eq!(reason(&world, &Segment::later(protocol, OWN, VIP)), Reason::Unrelated);
        }
    }

    /// Of a pod whose edge is not served, say.
    fn packets_of_others_are_left_alone<F>() {
        let world = world::<F>(ServiceValue::default());
        for protocol in PROTOCOLS {
            assert_eq!(reason(&world, &Segment::first(protocol, (CLIENT, 1), VIP)), Reason::Unrelated);
        }
    }

    /// On a node with a host-network endpoint, as all are that run an API server, its address is a backend's.
    fn a_node_that_is_a_backend_is_judged_alike<F>() {
        let mut world = world::<F>(ServiceValue::default());
        world.set_members(9, 0, &[(NODE, 6443)]);
        for protocol in PROTOCOLS {
            assert_eq!(reason(&world, &Segment::first(protocol, OWN, VIP)), Reason::NoEndpoints);
        }
        assert_eq!(reason(&world, &Segment::first(UDP, OWN, BACKEND)), Reason::Unrelated);
        // No flow of its own, which is told as such.
        assert_eq!(reason(&world, &Segment::first(icmp::<F>(), OWN, (CLIENT, 0))), Reason::OtherProtocol);
        world.set_wildcard(VIP.0);
        assert_eq!(reason(&world, &Segment::first(icmp::<F>(), OWN, VIP)), Reason::NoPort);
    }
}
