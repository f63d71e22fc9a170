//! The life of a flow: opened, known, closed, expired, repaired.

use super::{
    both_families,
    segment::{Segment, TestFamily},
    world::{BACKEND, CLIENT, OTHER_BACKEND, STRANGER, Sent, TIMEOUTS, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{Counter, EGRESS, INGRESS, ServiceCounter, flow_flags, history},
    packet::{TCP, UDP, tcp_flags},
};

/// The client's endpoint of these tests.
const HERE: (u128, u16) = (CLIENT, 40_000);

/// Expects a packet from client to frontend to be sent on to `backend`.
fn assert_forward<F: TestFamily>(world: &World<F>, segment: &Segment, reason: Reason, backend: (u128, u16)) {
    let expected = Sent {
        reason,
        source: HERE,
        destination: backend,
    };
    assert_eq!(world.enter(segment), expected);
}

/// Expects a packet from `backend` to the client to come from the frontend.
fn assert_reply<F: TestFamily>(world: &World<F>, segment: &Segment) {
    let expected = Sent {
        reason: Reason::Established,
        source: VIP,
        destination: HERE,
    };
    assert_eq!(world.leave(segment), expected);
}

/// Opens a flow, to the second of two endpoints if `second`.
fn open<F: TestFamily>(world: &World<F>, protocol: u8, second: bool) {
    world.random.borrow_mut().push_back(if second { u32::MAX } else { 0 });
    let backend = if second { OTHER_BACKEND } else { BACKEND };
    assert_forward(world, &Segment::first(protocol, HERE, VIP), Reason::NewFlow, backend);
}

fn two_endpoints<F: TestFamily>() -> World<F> {
    let mut world = World::new();
    world.serve(VIP, &[BACKEND, OTHER_BACKEND]);
    world
}

both_families! {
    fn first_packet_opens_both_halves<F>() {
        for protocol in [TCP, UDP] {
            let world = World::<F>::with_service();
            open(&world, protocol, false);
            let forward = world.entry(&World::<F>::key(INGRESS, protocol, HERE, VIP)).expect("a forward half");
            let reply = world.entry(&World::<F>::key(EGRESS, protocol, BACKEND, HERE)).expect("a reply half");
            assert_eq!(world.entries(), 2);
            let seen = if protocol == TCP { history::SEEN } else { history::SEEN | history::CONFIRMED };
            assert_eq!((forward.flags, forward.history, forward.last_seen), (0, seen, 100));
            assert_eq!((reply.flags, reply.history, reply.last_seen), (flow_flags::REPLY, 0, 100));
            assert_eq!((F::number(&forward.address), forward.port), BACKEND);
            assert_eq!((F::number(&reply.address), reply.port), VIP);
        }
    }

    fn known_flow_keeps_its_endpoint<F>() {
        for protocol in [TCP, UDP] {
            let world = two_endpoints::<F>();
            open(&world, protocol, true);
            for tick in [100, 100, 101] {
                world.now.set(tick);
                assert_reply(&world, &Segment::later(protocol, OTHER_BACKEND, HERE));
                assert_forward(&world, &Segment::later(protocol, HERE, VIP), Reason::Established, OTHER_BACKEND);
            }
            for entry in world.flows.borrow().values() {
                assert_eq!((entry.last_seen, entry.history), (101, history::SEEN | history::CONFIRMED | history::LASTING));
            }
        }
    }

    /// behaviour.md 7.9: there is no window for a packet to be out of.
    fn sequence_numbers_do_not_matter<F>() {
        let world = two_endpoints::<F>();
        open(&world, TCP, true);
        for numbers in [[0; 8], [0x7f; 8], [0xff; 8]] {
            for flags in [tcp_flags::ACK, tcp_flags::RST, tcp_flags::RST | tcp_flags::ACK] {
                let reply = Segment { numbers, ..Segment::later(TCP, OTHER_BACKEND, HERE).flags(flags) };
                assert_reply(&world, &reply);
                let request = Segment { numbers, ..Segment::later(TCP, HERE, VIP).flags(flags) };
                assert_forward(&world, &request, Reason::Established, OTHER_BACKEND);
            }
        }
    }

    /// A SYN that is sent again belongs to the connection that the first one opens (behaviour.md 2.11).
    fn retransmitted_syn_keeps_its_endpoint<F>() {
        let world = two_endpoints::<F>();
        open(&world, TCP, true);
        assert_forward(&world, &Segment::first(TCP, HERE, VIP), Reason::Established, OTHER_BACKEND);
    }

    fn syn_after_close_chooses_anew<F>() {
        for flags in [tcp_flags::FIN, tcp_flags::RST] {
            let world = two_endpoints::<F>();
            open(&world, TCP, true);
            let close = flags | tcp_flags::ACK;
            assert_reply(&world, &Segment::later(TCP, OTHER_BACKEND, HERE).flags(close));
            assert_forward(&world, &Segment::later(TCP, HERE, VIP).flags(close), Reason::Established, OTHER_BACKEND);
            // The last acknowledgment still goes where the connection went.
            assert_forward(&world, &Segment::later(TCP, HERE, VIP), Reason::Established, OTHER_BACKEND);
            open(&world, TCP, false);
            assert_eq!(world.entries(), 2, "nothing is left of the old flow");
        }
    }

    /// One FIN closes half of a connection: a SYN is then not yet another connection's.
    fn syn_after_half_close_is_of_the_old_flow<F>() {
        let world = two_endpoints::<F>();
        open(&world, TCP, true);
        assert_forward(&world, &Segment::later(TCP, HERE, VIP).flags(tcp_flags::FIN), Reason::Established, OTHER_BACKEND);
        assert_forward(&world, &Segment::first(TCP, HERE, VIP), Reason::Established, OTHER_BACKEND);
    }

    fn flow_expires_after_its_timeout<F>() {
        let (ack, fin) = (tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK);
        let (asks, answers) = (INGRESS, EGRESS);
        for (protocol, packets, timeout) in [
            (TCP, &[][..], TIMEOUTS.tcp_opening),
            (TCP, &[(answers, 0, ack)], TIMEOUTS.tcp_answered),
            (TCP, &[(answers, 0, ack), (asks, 0, ack)], TIMEOUTS.tcp_established),
            (TCP, &[(answers, 0, ack), (asks, 0, fin)], TIMEOUTS.tcp_half_closed),
            (TCP, &[(answers, 0, fin), (asks, 0, fin)], TIMEOUTS.tcp_closing),
            (UDP, &[], TIMEOUTS.udp_opening),
            (UDP, &[(asks, 1, 0)], TIMEOUTS.udp_opening),
            (UDP, &[(answers, 0, 0), (asks, 0, 0)], TIMEOUTS.udp_opening),
            (UDP, &[(answers, 0, 0), (asks, 1, 0)], TIMEOUTS.udp_established),
            (UDP, &[(answers, 0, 0), (answers, 1, 0)], TIMEOUTS.udp_established),
        ] {
            for (idle, lives) in [(timeout, true), (timeout + 1, false)] {
                let world = two_endpoints::<F>();
                open(&world, protocol, true);
                for &(direction, later, flags) in packets {
                    world.now.set(world.now.get() + later);
                    if direction == asks {
                        let next = Segment::later(protocol, HERE, VIP).flags(flags);
                        assert_forward(&world, &next, Reason::Established, OTHER_BACKEND);
                    } else {
                        assert_reply(&world, &Segment::later(protocol, OTHER_BACKEND, HERE).flags(flags));
                    }
                }
                world.now.set(world.now.get() + idle);
                let next = Segment::later(protocol, HERE, VIP);
                if lives {
                    assert_forward(&world, &next, Reason::Established, OTHER_BACKEND);
                } else {
                    assert_forward(&world, &next, Reason::NewFlow, BACKEND);
                }
                assert_eq!(world.entries(), 2);
            }
        }
    }

    fn expired_reply_is_not_rewritten<F>() {
        let world = World::<F>::with_service();
        open(&world, UDP, false);
        world.now.set(100 + TIMEOUTS.udp_opening + 1);
        assert_eq!(world.leave(&Segment::later(UDP, BACKEND, HERE)).reason, Reason::Unrelated);
        assert_eq!(world.entries(), 0, "both halves go");
    }

    /// Another CPU may have written a later tick.
    fn clock_may_seem_to_go_back<F>() {
        let world = World::<F>::with_service();
        open(&world, UDP, false);
        world.now.set(99);
        assert_forward(&world, &Segment::later(UDP, HERE, VIP), Reason::Established, BACKEND);
    }

    fn lost_reply_half_is_restored<F>() {
        for protocol in [TCP, UDP] {
            let world = two_endpoints::<F>();
            open(&world, protocol, true);
            let reply = World::<F>::key(EGRESS, protocol, OTHER_BACKEND, HERE);
            world.flows.borrow_mut().remove(&reply).expect("a reply half");
            world.now.set(101);
            assert_forward(&world, &Segment::later(protocol, HERE, VIP), Reason::Established, OTHER_BACKEND);
            assert_reply(&world, &Segment::later(protocol, OTHER_BACKEND, HERE));
        }
    }

    fn lost_forward_half_is_restored<F>() {
        let world = two_endpoints::<F>();
        open(&world, TCP, true);
        let forward = World::<F>::key(INGRESS, TCP, HERE, VIP);
        world.flows.borrow_mut().remove(&forward).expect("a forward half");
        assert_reply(&world, &Segment::later(TCP, OTHER_BACKEND, HERE));
        assert_forward(&world, &Segment::later(TCP, HERE, VIP), Reason::Established, OTHER_BACKEND);
    }

    /// behaviour.md 7.3: the client's half of a UDP flow goes first. An answer that is on its way then arrives, the first one or a later,
    /// before and after the client has asked another endpoint, and doesn't bring the half back.
    fn rule_7_3_udp_answers_outlive_the_forward_half<F>() {
        for answered in [false, true] {
            let world = two_endpoints::<F>();
            open(&world, UDP, true);
            if answered {
                assert_reply(&world, &Segment::later(UDP, OTHER_BACKEND, HERE));
            }
            let forward = World::<F>::key(INGRESS, UDP, HERE, VIP);
            world.flows.borrow_mut().remove(&forward).expect("a forward half");
            for tick in [100, 101] {
                world.now.set(tick);
                assert_reply(&world, &Segment::later(UDP, OTHER_BACKEND, HERE));
            }
            open(&world, UDP, false);
            for tick in [101, 102] {
                world.now.set(tick);
                assert_reply(&world, &Segment::later(UDP, OTHER_BACKEND, HERE));
                assert_reply(&world, &Segment::later(UDP, BACKEND, HERE));
            }
            assert_forward(&world, &Segment::later(UDP, HERE, VIP), Reason::Established, BACKEND);
            // As long as a flow.
            world.now.set(103 + TIMEOUTS.udp_established);
            assert_eq!(world.leave(&Segment::later(UDP, OTHER_BACKEND, HERE)).reason, Reason::Unrelated);
        }
    }

    /// A client that talks to a backend directly gets answers from the backend's own address.
    fn direct_connection_retires_the_old_flow<F>() {
        let world = World::<F>::with_service();
        open(&world, TCP, false);
        let direct = |flags| world.enter(&Segment::first(TCP, HERE, BACKEND).flags(flags)).reason;
        assert_eq!(direct(tcp_flags::ACK), Reason::Unrelated, "no new connection");
        assert_eq!(world.entries(), 2);
        assert_eq!(direct(tcp_flags::SYN), Reason::FlowRetired);
        assert_eq!(world.entries(), 0);
        assert_eq!(direct(tcp_flags::SYN), Reason::Unrelated, "once is enough");
        assert_eq!(world.leave(&Segment::later(TCP, BACKEND, HERE)).reason, Reason::Unrelated);
    }

    fn latest_use_of_udp_ports_wins<F>() {
        let world = two_endpoints::<F>();
        open(&world, UDP, true);
        for _ in 0..2 {
            assert_eq!(world.enter(&Segment::first(UDP, HERE, OTHER_BACKEND)).reason, Reason::FlowRetired);
            let forward = world.entry(&World::<F>::key(INGRESS, UDP, HERE, VIP)).expect("the forward half stays");
            assert_eq!(forward.flags, flow_flags::TWIN_REMOVED);
            assert_eq!(world.leave(&Segment::later(UDP, OTHER_BACKEND, HERE)).reason, Reason::Unrelated);
            // Through the frontend again, to the same endpoint.
            assert_forward(&world, &Segment::later(UDP, HERE, VIP), Reason::Established, OTHER_BACKEND);
            let forward = world.entry(&World::<F>::key(INGRESS, UDP, HERE, VIP)).expect("the forward half stays");
            assert_eq!(forward.flags, 0);
            assert_reply(&world, &Segment::later(UDP, OTHER_BACKEND, HERE));
        }
    }

    fn packets_are_counted_by_reason_and_service<F>() {
        let world = World::<F>::with_service();
        open(&world, UDP, false);
        assert_forward(&world, &Segment::later(UDP, HERE, VIP), Reason::Established, BACKEND);
        assert_reply(&world, &Segment::later(UDP, BACKEND, HERE));
        world.enter(&Segment::first(UDP, HERE, STRANGER));
        let length = Segment::first(UDP, HERE, VIP).bytes::<F>().len() as u64;
        let expected = [
            (Reason::Established, Counter { packets: 2, bytes: 2 * length }),
            (Reason::NewFlow, Counter { packets: 1, bytes: length }),
        ];
        assert_eq!(*world.reasons.borrow(), expected.into());
        let service = ServiceCounter { connections: 1, packets: 3, bytes: 3 * length };
        assert_eq!(*world.counts.borrow(), [(2, service)].into());
    }
}
