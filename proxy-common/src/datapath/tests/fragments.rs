//! Packets in fragments, in whatever order they come: all arrive, as a whole packet would.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::{
    both_families,
    fragmentation::{FRAGMENT, place, reassemble, split},
    segment::{Endpoint, Segment, TestFamily, assert_checksums, endpoints},
    world::{BACKEND, CLIENT, Moment, NODE, OTHER_VIP, STRANGER, VIP, World},
};
use crate::{
    datapath::{Reason, Verdict},
    layout::{EGRESS, INGRESS, service_flags},
    packet::{BufferPacket, TCP, UDP, V4, V6},
};

const HERE: Endpoint = (CLIENT, 40_000);
/// Payload of a fragment where the MTU is 1500: a multiple of 8 in both families.
const SIZE: usize = 1448;
/// A UDP packet of so many bytes.
fn datagram(source: Endpoint, destination: Endpoint, length: usize) -> Segment {
    let mut segment = Segment::first(UDP, source, destination);
    segment.payload = (0..=250).cycle().take(length).collect();
    segment
}

/// Sends fragments through a hook one after the other: those that go on, and each one's reason. Those that are sent to the
/// hook again come behind the one that did so.
fn send<F: TestFamily>(world: &World<F>, direction: u8, fragments: &[Vec<u8>]) -> (Vec<Vec<u8>>, Vec<Reason>) {
    let (mut arrived, mut reasons) = (Vec::new(), Vec::new());
    for fragment in fragments {
        let mut queue = VecDeque::from([fragment.clone()]);
        while let Some(before) = queue.pop_front() {
            let mut bytes = before.clone();
            let mut resent = |bytes: &[u8]| queue.push_back(bytes.to_vec());
            let (verdict, reason) = world.run(direction, &mut BufferPacket::with_resent(&mut bytes, &mut resent));
            reasons.push(reason);
            if verdict != Verdict::Rewrite {
                assert_eq!(bytes, before, "{reason}: untouched");
            }
            if matches!(verdict, Verdict::Rewrite | Verdict::Continue) {
                arrived.push(bytes);
            }
        }
    }
    (arrived, reasons)
}

/// Fails unless the fragments are the packet `sent` with other addresses and ports.
fn assert_arrived<F: TestFamily>(fragments: &[Vec<u8>], sent: &Segment, source: Endpoint, destination: Endpoint) {
    let mut whole = reassemble::<F>(fragments);
    assert_eq!(endpoints::<F>(&mut whole), (source, destination));
    assert_checksums::<F>(&mut whole);
    assert!(whole.ends_with(&sent.payload), "the payload changed");
}

/// How often a reason stands in a list.
fn count(reasons: &[Reason], reason: Reason) -> usize {
    reasons.iter().filter(|found| **found == reason).count()
}

/// A world where the pod [`BACKEND`] and others reach [`VIP`] by way of the node's address.
fn masquerading<F: TestFamily>() -> World<F> {
    let mut world = World::with_service();
    world.masquerade_with(NODE);
    world
}

both_families! {
    fn in_order<F>() {
        let world = World::<F>::with_service();
        let sent = datagram(HERE, VIP, 4000);
        let (arrived, reasons) = send(&world, INGRESS, &split::<F>(&sent, SIZE, 1));
        assert_eq!(reasons, [Reason::NewFlow, Reason::FragmentRewritten, Reason::FragmentRewritten]);
        assert_arrived::<F>(&arrived, &sent, HERE, BACKEND);
        let answer = datagram(BACKEND, HERE, 4000);
        let (arrived, reasons) = send(&world, EGRESS, &split::<F>(&answer, SIZE, 1));
        assert_eq!(reasons, [Reason::Established, Reason::FragmentRewritten, Reason::FragmentRewritten]);
        assert_arrived::<F>(&arrived, &answer, VIP, HERE);
        // As many packets and bytes of the Service as went through the hooks.
        let bytes: usize = [&sent, &answer].iter().flat_map(|sent| split::<F>(sent, SIZE, 1)).map(|part| part.len()).sum();
        let counter = world.counts.borrow()[&2];
        assert_eq!((counter.connections, counter.packets, counter.bytes), (1, 6, bytes as u64));
    }

    /// The longest packet there is, last fragment first, at either hook.
    fn reversed<F>() {
        let world = World::<F>::with_service();
        for (direction, from, to, source, destination) in
            [(INGRESS, HERE, VIP, HERE, BACKEND), (EGRESS, BACKEND, HERE, VIP, HERE)]
        {
            let sent = datagram(from, to, 65_000);
            let mut fragments = split::<F>(&sent, SIZE, 7);
            fragments.reverse();
            let (arrived, reasons) = send(&world, direction, &fragments);
            assert_eq!(count(&reasons, Reason::FragmentHeld), fragments.len() - 1);
            assert_eq!(count(&reasons, Reason::FragmentRewritten), fragments.len() - 1);
            assert_eq!(arrived.len(), fragments.len());
            assert_arrived::<F>(&arrived, &sent, source, destination);
            let places: Vec<_> = arrived.iter().map(|fragment| place::<F>(fragment).0).collect();
            assert!(places.is_sorted(), "in order: {places:?}");
            assert!(world.held.borrow().is_empty());
        }
        let released = world.reasons.borrow()[&Reason::FragmentReleased];
        assert_eq!(released.packets, 2 * 44);
    }

    /// Without its first fragment nothing can be made of a packet; a new one may have its identification.
    fn lost_first<F>() {
        let world = World::<F>::with_service();
        let lost = split::<F>(&datagram(HERE, VIP, 4000), SIZE, 1);
        let (arrived, _) = send(&world, INGRESS, &lost[1..]);
        assert!(arrived.is_empty());
        world.now.set(world.now.get() + 29);
        let sent = datagram(HERE, VIP, 3000);
        world.random.borrow_mut().push_back(1);
        let (arrived, reasons) = send(&world, INGRESS, &split::<F>(&sent, SIZE, 1));
        assert_eq!(count(&reasons, Reason::FragmentRewritten), 2);
        assert_eq!(arrived.len(), 3, "none of the lost packet's");
        assert_arrived::<F>(&arrived, &sent, HERE, BACKEND);
    }

    /// What became of a packet doesn't hold for another one that has its identification later.
    fn entries_age<F>() {
        let world = World::<F>::with_service();
        let fragments = split::<F>(&datagram(HERE, VIP, 4000), SIZE, 1);
        send(&world, INGRESS, &fragments);
        world.now.set(world.now.get() + 28);
        assert_eq!(send(&world, INGRESS, &fragments[1..2]).1, [Reason::FragmentRewritten]);
        world.now.set(world.now.get() + 1);
        assert_eq!(send(&world, INGRESS, &fragments[1..2]).1, [Reason::FragmentHeld]);
    }

    /// Fragments may come twice, before the first one and after it; so may the first.
    fn duplicates<F>() {
        let world = World::<F>::with_service();
        let sent = datagram(HERE, VIP, 4000);
        let parts = split::<F>(&sent, SIZE, 1);
        let order = [1, 1, 2, 1, 0, 0, 2].map(|index: usize| parts[index].clone());
        let (arrived, _) = send(&world, INGRESS, &order);
        assert_eq!(arrived.len(), order.len());
        assert_arrived::<F>(&arrived, &sent, HERE, BACKEND);
    }

    /// behaviour.md 4.1: nothing of a refused packet reaches the cluster address, neither what came before its first
    /// fragment nor what comes after.
    fn refused<F>() {
        let mut world = World::<F>::new();
        world.serve(VIP, &[]);
        let parts = split::<F>(&datagram(HERE, VIP, 6000), SIZE, 1);
        let order = [2, 0, 1, 3].map(|index: usize| parts[index].clone());
        let (arrived, reasons) = send(&world, INGRESS, &order);
        assert!(arrived.is_empty());
        assert_eq!(
            reasons,
            [Reason::FragmentHeld, Reason::NoEndpoints, Reason::FragmentRefused, Reason::FragmentRefused]
        );
    }

    /// behaviour.md 4.6: nor of one to a port that the cluster address hasn't got, or without ports.
    fn no_port<F>() {
        let mut world = World::<F>::with_service();
        world.set_wildcard(VIP.0);
        let mut ping = datagram(HERE, VIP, 4000);
        ping.protocol = if F::IPV6 { 58 } else { 1 };
        for (identification, sent) in [(1, datagram(HERE, (VIP.0, 81), 4000)), (2, ping)] {
            let parts = split::<F>(&sent, SIZE, identification);
            let (arrived, reasons) = send(&world, INGRESS, &parts);
            assert!(arrived.is_empty());
            assert_eq!(reasons, [Reason::NoPort, Reason::FragmentRefused, Reason::FragmentRefused]);
        }
    }

    /// Addresses of the node are looked at for its nodePorts; what is not for those arrives all the same.
    fn fragments_for_the_node<F>() {
        let mut world = World::<F>::with_service();
        world.add_address(NODE, 0);
        let mut ping = datagram(HERE, (NODE, 0), 6000);
        ping.protocol = if F::IPV6 { 58 } else { 1 };
        let others = [(datagram(HERE, (NODE, 2049), 6000), Reason::NoFrontend), (ping, Reason::OtherProtocol)];
        for (identification, (sent, reason)) in (1..).zip(others) {
            let parts = split::<F>(&sent, SIZE, identification);
            let order = [3, 1, 0, 2].map(|index: usize| parts[index].clone());
            let (arrived, reasons) = send(&world, INGRESS, &order);
            assert_eq!(arrived, [0, 1, 3, 2].map(|index: usize| parts[index].clone()));
            assert_eq!(count(&reasons, reason), 1);
            assert_eq!(count(&reasons, Reason::Fragment), 3);
        }
    }

    /// What goes to a pod directly is not touched, nor held: only the answers' ways may cross.
    fn direct_to_a_backend<F>() {
        let world = World::<F>::with_service();
        let mut parts = split::<F>(&datagram(HERE, BACKEND, 4000), SIZE, 1);
        parts.reverse();
        let (arrived, reasons) = send(&world, INGRESS, &parts);
        assert_eq!(arrived, parts);
        assert_eq!(reasons, [Reason::Fragment, Reason::Fragment, Reason::Unrelated]);
        // Out to the backend and its answers back: no flow, so all pass in the end.
        for sent in [datagram(HERE, BACKEND, 4000), datagram(BACKEND, HERE, 4000)] {
            let mut parts = split::<F>(&sent, SIZE, 2);
            parts.reverse();
            let (mut arrived, _) = send(&world, EGRESS, &parts);
            arrived.reverse();
            assert_eq!(arrived[..2], parts[..2]);
            assert_eq!(arrived[2], parts[2]);
        }
        // It ends an old flow of its ports.
        send(&world, INGRESS, &split::<F>(&datagram(HERE, VIP, 4000), SIZE, 3));
        let (_, reasons) = send(&world, INGRESS, &split::<F>(&datagram(HERE, BACKEND, 4000), SIZE, 4));
        assert_eq!(reasons[0], Reason::FlowRetired);
    }

    fn strangers_fragments_are_not_read<F>() {
        let world = World::<F>::with_service();
        let mut parts = split::<F>(&datagram(HERE, STRANGER, 4000), SIZE, 1);
        parts.reverse();
        for direction in [INGRESS, EGRESS] {
            assert_eq!(send(&world, direction, &parts), (parts.clone(), vec![Reason::Unrelated; 3]));
        }
        assert!(world.fragments.borrow().is_empty());
    }

    /// behaviour.md 5.2: a pod that reaches itself passes four hooks with each request and answer.
    fn hairpin<F>() {
        let world = masquerading::<F>();
        let own: Endpoint = (BACKEND.0, 40_000);
        for identification in 1..3 {
            let mut hops = vec![(INGRESS, own, BACKEND), (EGRESS, (NODE, own.1), BACKEND)];
            hops.extend([(INGRESS, BACKEND, own), (EGRESS, VIP, own)]);
            let mut sent = datagram(own, VIP, 4000);
            let mut parts = split::<F>(&sent, SIZE, identification);
            for (hop, (direction, source, destination)) in hops.into_iter().enumerate() {
                if hop == 2 {
                    sent = datagram(BACKEND, (NODE, own.1), 4000);
                    parts = split::<F>(&sent, SIZE, 10 + identification);
                }
                parts.rotate_left(1);
                (parts, _) = send(&world, direction, &parts);
                assert_arrived::<F>(&parts, &sent, source, destination);
            }
        }
        // Only the halves of the first kind count.
        assert_eq!(world.counts.borrow()[&2].packets, 2 * 2 * 3);
    }

    /// RFC 1858: a first fragment too short for its ports, which attackers send to get around filters, is not translated;
    /// neither are those that go with it.
    fn tiny_first<F>() {
        let world = World::<F>::with_service();
        let mut sent = datagram(HERE, VIP, 40);
        sent.protocol = TCP;
        let parts = split::<F>(&sent, 8, 1);
        let (arrived, reasons) = send(&world, INGRESS, &parts);
        assert_eq!(arrived, parts);
        assert_eq!(reasons[0], Reason::Malformed);
        assert!(reasons[1..].iter().all(|reason| *reason == Reason::Fragment));
    }

    /// TCP is not usually fragmented, but may be.
    fn tcp<F>() {
        let world = World::<F>::with_service();
        let mut sent = datagram(HERE, VIP, 4000);
        (sent.protocol, sent.flags) = (TCP, crate::packet::tcp_flags::SYN);
        let mut parts = split::<F>(&sent, SIZE, 1);
        parts.swap(0, 1);
        let (arrived, _) = send(&world, INGRESS, &parts);
        assert_arrived::<F>(&arrived, &sent, HERE, BACKEND);
    }

    /// Of fragments of less than a KiB as many can be held as of others.
    fn small_fragments<F>() {
        let world = World::<F>::with_service();
        let sent = datagram(HERE, VIP, 30_000);
        let mut parts = split::<F>(&sent, 552, 1);
        parts.rotate_left(1);
        let (arrived, _) = send(&world, INGRESS, &parts);
        assert_eq!(arrived.len(), parts.len());
        assert_arrived::<F>(&arrived, &sent, HERE, BACKEND);
        // Others don't find a place any more.
        let parts = vec![split::<F>(&sent, 552, 2).remove(9); 65];
        let (_, reasons) = send(&world, INGRESS, &parts);
        assert_eq!(count(&reasons, Reason::FragmentHeld), 64);
        assert_eq!(reasons[64], Reason::FragmentNotHeld);
    }

    /// What can't be held is dropped: it would go to nobody.
    fn no_room<F>() {
        let world = World::<F>::with_service();
        let parts = split::<F>(&datagram(HERE, VIP, 30_000), 9224, 1);
        let (arrived, reasons) = send(&world, INGRESS, &parts[1..2]);
        assert!(arrived.is_empty());
        assert_eq!(reasons, [Reason::FragmentNotHeld]);
        world.held_capacity.set(0);
        let parts = split::<F>(&datagram(HERE, VIP, 4000), SIZE, 2);
        let (arrived, reasons) = send(&world, INGRESS, &parts[1..]);
        assert!(arrived.is_empty());
        assert_eq!(reasons, [Reason::FragmentNotHeld; 2]);
    }

    /// The first fragment comes on another CPU while one is being held: one of the two must see the other.
    fn first_comes_while_another_is_held<F>() {
        for moment in [Moment::Before, Moment::After] {
            for fragment in 1..3 {
                let world = World::<F>::with_service();
                let sent = datagram(HERE, VIP, 4000);
                let mut parts = split::<F>(&sent, SIZE, 1);
                *world.meanwhile.borrow_mut() = Some((moment, parts.remove(0)));
                parts.swap(0, fragment - 1);
                let (mut arrived, reasons) = send(&world, INGRESS, &parts);
                let elsewhere = world.elsewhere.take();
                let expected = match moment {
                    Moment::Before => (Reason::FragmentRewritten, 1),
                    Moment::After => (Reason::FragmentHeld, 2),
                };
                assert_eq!((reasons[0], elsewhere.len()), expected, "{moment:?}");
                arrived.push(elsewhere[0].clone());
                arrived.extend(send(&world, INGRESS, &elsewhere[1..]).0);
                assert_eq!(arrived.len(), 3);
                assert_arrived::<F>(&arrived, &sent, HERE, BACKEND);
                assert!(world.held.borrow().is_empty());
            }
        }
    }

    /// behaviour.md 3.10: those who are let in are asked for with the first fragment, and what it is told holds for all.
    fn source_refused<F>() {
        let mut world = World::<F>::with_service();
        let service = crate::layout::ServiceValue {
            service: 2,
            flags: service_flags::RESTRICTED,
            ..Default::default()
        };
        world.set_service(OTHER_VIP, service);
        let (arrived, reasons) = send(&world, INGRESS, &split::<F>(&datagram(HERE, OTHER_VIP, 4000), SIZE, 1));
        assert!(arrived.is_empty());
        assert_eq!(reasons[0], Reason::SourceRefused);
        assert_eq!(count(&reasons, Reason::FragmentRefused), 2);
    }
}

/// In IPv4 every protocol has identifications of its own (RFC 791, 3.2); in IPv6 all have the same (RFC 8200, 4.5).
#[test]
fn ipv4_protocols_have_their_own_identifications() {
    let world = World::<V4>::with_service();
    let mut sent = datagram(HERE, VIP, 4000);
    let udp = split::<V4>(&sent, SIZE, 1);
    sent.protocol = TCP;
    let tcp = split::<V4>(&sent, SIZE, 1);
    send(&world, INGRESS, &udp[..1]);
    assert_eq!(send(&world, INGRESS, &tcp[1..2]).1, [Reason::FragmentHeld]);
    assert_eq!(send(&world, INGRESS, &udp[1..2]).1, [Reason::FragmentRewritten]);
}

/// Extension headers stand before the fragment header in every fragment, and behind it in the first.
#[test]
fn ipv6_extension_headers_around_the_fragment_header() {
    /// Eight bytes of padding before a header of type `next` (RFC 8200, 4.2).
    const fn padding(next: u8) -> [u8; 8] {
        [next, 0, 1, 4, 0, 0, 0, 0]
    }
    const DESTINATION_OPTIONS: u8 = 60;
    let world = World::<V6>::with_service();
    let mut sent = datagram(HERE, VIP, 4000);
    sent.first_extension = Some(DESTINATION_OPTIONS);
    sent.options = padding(UDP).to_vec();
    let mut parts = split::<V6>(&sent, SIZE, 1);
    for part in &mut parts {
        // What was fragmented begins with the options now.
        part[40] = DESTINATION_OPTIONS;
        part[6] = 0;
        part.splice(40..40, padding(FRAGMENT));
        let length = u16::try_from(part.len() - 40).expect("a short packet");
        part[4..6].copy_from_slice(&length.to_be_bytes());
    }
    parts.reverse();
    let (arrived, reasons) = send(&world, INGRESS, &parts);
    assert_eq!(count(&reasons, Reason::NewFlow), 1);
    assert_eq!(arrived.len(), 3);
    let stripped = arrived.into_iter().map(|mut part| {
        part.splice(40..48, []);
        part[6] = FRAGMENT;
        part
    });
    assert_arrived::<V6>(&stripped.collect::<Vec<_>>(), &sent, HERE, BACKEND);
}

/// Whatever a fragment is cut to, nothing panics.
#[test]
fn cut_fragments() {
    fn run<F: TestFamily>() {
        let world = World::<F>::with_service();
        for part in split::<F>(&datagram(HERE, VIP, 100), 56, 1) {
            for length in 0..part.len() {
                for direction in [INGRESS, EGRESS] {
                    let mut cut = part[..length].to_vec();
                    if let Some(field) = cut.get_mut(if F::IPV6 { 4..6 } else { 2..4 }) {
                        let header = if F::IPV6 { 40 } else { 0 };
                        let length = u16::try_from(length.saturating_sub(header)).expect("a short packet");
                        field.copy_from_slice(&length.to_be_bytes());
                    }
                    send(&world, direction, &[cut]);
                }
            }
        }
    }
    run::<V4>();
    run::<V6>();
}

/// Fragments of several packets in any order, each at most twice: all packets arrive.
fn any_order<F: TestFamily>(order: &[(usize, usize)], lengths: &[usize], random: &[u32]) {
    let world = World::<F>::with_service();
    world.random.borrow_mut().extend(random);
    let packets: Vec<_> = (0u16..)
        .zip(lengths)
        .map(|(index, length)| {
            let sent = datagram((CLIENT, 40_000 + index), VIP, *length);
            let parts = split::<F>(&sent, SIZE, index);
            (sent, parts)
        })
        .collect();
    let all = |packet: &(Segment, Vec<Vec<u8>>)| packet.1.clone();
    let mut fragments: Vec<_> = packets.iter().flat_map(all).collect();
    for (from, to) in order {
        let length = fragments.len();
        fragments.swap(from % length, to % length);
    }
    let (arrived, _) = send(&world, INGRESS, &fragments);
    assert_eq!(arrived.len(), fragments.len());
    assert!(world.held.borrow().is_empty());
    let at = if F::IPV6 { 46 } else { 4 };
    for (index, (sent, _)) in (0u16..).zip(&packets) {
        let of_packet = |part: &&Vec<u8>| part[at..at + 2] == index.to_be_bytes();
        let own: Vec<_> = arrived.iter().filter(of_packet).cloned().collect();
        assert_arrived::<F>(&own, sent, sent.source, BACKEND);
    }
}

proptest! {
    #[test]
    fn in_any_order(
        order in prop::collection::vec(any::<(usize, usize)>(), 0..60),
        lengths in prop::collection::vec(1500..20_000_usize, 1..5),
        // Two packets may have the same queue.
        random in prop::collection::vec(0..8_u32, 0..8),
    ) {
        any_order::<V4>(&order, &lengths, &random);
        any_order::<V6>(&order, &lengths, &random);
    }
}
