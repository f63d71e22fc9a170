//! Answers to refused packets (behaviour.md 4.1).

use proptest::prelude::*;

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily, pseudo},
    world::{CLIENT, World},
};
use crate::{
    datapath::{Reason, Verdict},
    layout::{INGRESS, ServiceValue},
    packet::{BufferPacket, ICMP, ICMPV6, MAX_QUOTE, TCP, UDP, V4, V6, checksum::checksum},
};

const HERE: Endpoint = (CLIENT, 40_000);
const EMPTY: Endpoint = (2, 80);

/// A world where nobody is behind a frontend.
fn empty<F: TestFamily>(frontend: Endpoint) -> World<F> {
    let mut world = World::new();
    world.set_service(frontend, ServiceValue::default());
    world
}

/// Sends a packet, which must be untouched: reason, and what it is answered with.
fn refused<F: TestFamily>(world: &World<F>, segment: &Segment) -> (Reason, Option<Vec<u8>>) {
    let before = segment.bytes::<F>();
    let mut bytes = before.clone();
    let mut packet = BufferPacket::new(&mut bytes);
    let (verdict, reason) = world.run(INGRESS, &mut packet);
    let answer = packet.answer().map(<[u8]>::to_vec);
    assert_eq!(verdict == Verdict::Reject, answer.is_some());
    assert_eq!(bytes, before);
    (reason, answer)
}

/// Fails unless `answer` is a port unreachable about the segment.
fn assert_answer<F: TestFamily>(answer: &[u8], segment: &Segment) {
    let (from, to) = (segment.destination.0, segment.source.0);
    let packet = segment.bytes::<F>();
    let quote = &packet[..packet.len().min(MAX_QUOTE) / 4 * 4];
    let (header, message) = answer.split_at(if F::IPV6 { 40 } else { 20 });
    assert_eq!(&message[8..], quote);
    let addresses = [F::address(from), F::address(to)];
    let addresses = addresses.map(|address| crate::layout::AddressBytes::as_bytes(&address).to_vec());
    if F::IPV6 {
        // Version, payload length, next header, hop limit; type and code of RFC 4443, 3.1.
        let length = u8::try_from(message.len()).expect("a short answer");
        assert_eq!(header[..8], [0x60, 0, 0, 0, 0, length, ICMPV6, 64]);
        assert_eq!(header[8..], addresses.concat());
        assert_eq!(message[..2], [1, 4]);
        assert_eq!(checksum(&pseudo::<F>(ICMPV6, from, to, message)), 0);
    } else {
        let length = u8::try_from(answer.len()).expect("a short answer");
        assert_eq!(header[..10], [0x45, 0xc0, 0, length, 0, 0, 0x40, 0, 64, ICMP]);
        assert_eq!(header[12..], addresses.concat());
        assert_eq!(checksum(header), 0);
        // RFC 792
        assert_eq!(message[..2], [3, 3]);
        assert_eq!(checksum(message), 0);
    }
    assert_eq!(message[4..8], [0; 4]);
}

both_families! {
    fn rule_4_1_a_service_without_endpoints_is_unreachable<F>() {
        for protocol in [TCP, UDP] {
            let world = empty::<F>(EMPTY);
            let segment = Segment::first(protocol, HERE, EMPTY);
            let (reason, answer) = refused(&world, &segment);
            assert_eq!(reason, Reason::NoEndpoints);
            assert_answer::<F>(&answer.expect("an answer"), &segment);
            let counter = world.reasons.borrow()[&Reason::NoEndpoints];
            assert_eq!((counter.packets, counter.bytes), (1, segment.bytes::<F>().len() as u64), "the packet's");
        }
    }

    /// 50 at once and 1000 a second.
    fn answers_are_limited<F>() {
        let world = empty::<F>(EMPTY);
        let segment = Segment::first(UDP, HERE, EMPTY);
        let answered = || (0..100).filter(|_| refused(&world, &segment).0 == Reason::NoEndpoints).count();
        assert_eq!(answered(), 50);
        assert_eq!(refused(&world, &segment), (Reason::AnswerLimited, None));
        for milliseconds in [1_usize, 7, 49] {
            world.nanoseconds.set(world.nanoseconds.get() + milliseconds as u64 * 1_000_000);
            assert_eq!(answered(), milliseconds);
        }
        world.now.set(world.now.get() + 1);
        assert_eq!(answered(), 50);
    }
}

fn assert_unanswerable<F: TestFamily>(source: u128, destination: u128) {
    let frontend = (destination, 80);
    let world = empty::<F>(frontend);
    let refused = refused(&world, &Segment::first(TCP, (source, 1), frontend));
    assert_eq!(refused, (Reason::Unanswerable, None), "{source:x} to {destination:x}");
}

/// RFC 1122, 3.2.2; RFC 4443, 2.4 e
#[test]
fn groups_and_nobody_get_no_answer() {
    for address in [0, 0xe000_0001, 0xf000_0001, 0xffff_ffff] {
        assert_unanswerable::<V4>(address, EMPTY.0);
        assert_unanswerable::<V4>(HERE.0, address);
    }
    for address in [0, 0xff02 << 112 | 1] {
        assert_unanswerable::<V6>(address, EMPTY.0);
        assert_unanswerable::<V6>(HERE.0, address);
    }
}

/// However long headers and payload are.
fn assert_any<F: TestFamily>(tcp: bool, options: usize, payload: Vec<u8>, places: [Endpoint; 2]) {
    let [client, frontend] = places.map(|(address, port)| (F::number(&F::address(address)), port));
    let protocol = if tcp { TCP } else { UDP };
    let mut segment = Segment {
        payload,
        ..Segment::first(protocol, client, frontend)
    };
    if F::IPV6 && options > 0 {
        // Destination options: padding (RFC 8200, 4.2).
        let length = u8::try_from(options).expect("a few");
        let mut header = vec![protocol, length - 1];
        header.resize(options * 8, 0);
        segment = segment.extensions(60, header);
    } else {
        segment.options = vec![1; options * 4];
    }
    let (reason, answer) = refused(&empty::<F>(frontend), &segment);
    assert_eq!(reason, Reason::NoEndpoints);
    assert_answer::<F>(&answer.expect("an answer"), &segment);
}

proptest! {
    #[test]
    fn answers_are_right(
        tcp: bool,
        options in 0..=10_usize,
        payload in prop::collection::vec(any::<u8>(), 0..200),
        client: (u32, u16),
        port: u16,
    ) {
        // Unicast in either family.
        let places = [(u128::from(client.0 >> 2 | 1 << 24), client.1), (0x0a60_0001, port)];
        assert_any::<V4>(tcp, options, payload.clone(), places);
        assert_any::<V6>(tcp, options, payload, places);
    }
}
