//! Checksums of rewritten packets against those computed in full.

use proptest::prelude::*;

use super::{
    segment::{Segment, TestFamily, assert_checksums, endpoints, pseudo},
    world::World,
};
use crate::{
    datapath::Reason,
    layout::{EGRESS, INGRESS},
    packet::{BufferPacket, TCP, UDP, V4, V6, checksum},
};

/// Client, frontend and endpoint, distinct.
fn places() -> impl Strategy<Value = [(u128, u16); 3]> {
    // IPv4 takes the low 32 bits: they must differ as well.
    let place = |number: u128| any::<(u128, u16)>().prop_map(move |(address, port)| (address << 2 | number, port));
    [place(1), place(2), place(3)]
}

/// Offset of the transport checksum.
fn checksum_at<F: TestFamily>(bytes: &mut [u8]) -> usize {
    F::transport(&BufferPacket::new(bytes))
        .expect("ports")
        .checksum_offset()
}

/// A packet of any content there and one back, with complete checksums.
fn assert_complete<F: TestFamily>([client, frontend, endpoint]: [(u128, u16); 3], protocol: u8, payload: &[u8]) {
    let [client, frontend, endpoint] =
        [client, frontend, endpoint].map(|(address, port)| (F::number(&F::address(address)), port));
    let world = service::<F>(frontend, endpoint);
    let with_payload = |segment: Segment| Segment {
        payload: payload.to_vec(),
        ..segment
    };
    // Sending verifies the checksums.
    let sent = world.enter(&with_payload(Segment::first(protocol, client, frontend)));
    assert_eq!(
        (sent.reason, sent.source, sent.destination),
        (Reason::NewFlow, client, endpoint)
    );
    let reply = world.leave(&with_payload(Segment::later(protocol, endpoint, client)));
    assert_eq!(
        (reply.reason, reply.source, reply.destination),
        (Reason::Established, frontend, client)
    );
}

/// A packet whose checksum the device will complete: it stays the sum of the pseudo header.
fn assert_partial<F: TestFamily>([client, frontend, endpoint]: [(u128, u16); 3], protocol: u8) {
    let world = service::<F>(frontend, endpoint);
    let segment = Segment::first(protocol, client, frontend);
    let mut bytes = segment.bytes::<F>();
    let at = checksum_at::<F>(&mut bytes);
    let length = bytes.len() - if F::IPV6 { 40 } else { 20 };
    // Of zeros after the pseudo header, but of the right length.
    let sum = |destination: u128| !checksum::checksum(&pseudo::<F>(protocol, client.0, destination, &vec![0; length]));
    bytes[at..at + 2].copy_from_slice(&sum(frontend.0).to_ne_bytes());
    let (_, reason) = world.run(INGRESS, &mut BufferPacket::with_partial_checksum(&mut bytes));
    assert_eq!(reason, Reason::NewFlow);
    let stored = u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    assert_eq!(stored, sum(endpoint.0));
}

fn service<F: TestFamily>(frontend: (u128, u16), endpoint: (u128, u16)) -> World<F> {
    let mut world = World::new();
    world.serve_as(9, frontend, &[endpoint]);
    world
}

proptest! {
    #[test]
    fn complete_checksums_stay_right(places in places(), tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let protocol = if tcp { TCP } else { UDP };
        assert_complete::<V4>(places, protocol, &payload);
        assert_complete::<V6>(places, protocol, &payload);
    }

    #[test]
    fn partial_checksums_stay_right(places in places(), tcp: bool) {
        let protocol = if tcp { TCP } else { UDP };
        assert_partial::<V4>(places, protocol);
        assert_partial::<V6>(places, protocol);
    }

    /// RFC 768: no checksum stays no checksum.
    #[test]
    fn absent_udp_checksum_stays_absent(places in places(), partial: bool) {
        let [client, frontend, endpoint] = places;
        let world = service::<V4>(frontend, endpoint);
        let mut bytes = Segment::first(UDP, client, frontend).bytes::<V4>();
        let at = checksum_at::<V4>(&mut bytes);
        bytes[at..at + 2].copy_from_slice(&[0, 0]);
        let mut packet = if partial { BufferPacket::with_partial_checksum(&mut bytes) } else { BufferPacket::new(&mut bytes) };
        let (_, reason) = world.run(INGRESS, &mut packet);
        prop_assert_eq!(reason, Reason::NewFlow);
        prop_assert_eq!(&bytes[at..at + 2], &[0, 0]);
        prop_assert_eq!(endpoints::<V4>(&mut bytes).1.1, endpoint.1);
    }

    /// RFC 768: a checksum that comes out as 0 is sent as 0xffff, for 0 would mean none.
    #[test]
    fn udp_checksum_of_zero_is_sent_as_ones(places in places()) {
        assert_ones::<V4>(places);
        assert_ones::<V6>(places);
    }
}

/// Finds two bytes of payload with which the rewritten packet sums up to 0.
fn assert_ones<F: TestFamily>([client, frontend, endpoint]: [(u128, u16); 3]) {
    let world = service::<F>(frontend, endpoint);
    let rewritten = Segment {
        payload: vec![0, 0],
        ..Segment::first(UDP, client, endpoint)
    };
    let mut bytes = rewritten.bytes::<F>();
    let at = checksum_at::<F>(&mut bytes);
    // What is missing is the checksum itself.
    let payload = bytes[at..at + 2].to_vec();
    let mut bytes = Segment {
        payload,
        ..Segment::first(UDP, client, frontend)
    }
    .bytes::<F>();
    world.run(INGRESS, &mut BufferPacket::new(&mut bytes));
    assert_eq!(&bytes[at..at + 2], &[0xff, 0xff]);
    assert_checksums::<F>(&mut bytes);
    let back = Segment::later(UDP, endpoint, client);
    assert_eq!(world.send(EGRESS, &back).reason, Reason::Established);
}
