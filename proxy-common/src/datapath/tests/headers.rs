//! Headers that are not the usual ones: what can't be read passes untouched.

use super::{
    both_families,
    segment::{Segment, TestFamily, assert_checksums},
    world::{BACKEND, CLIENT, STRANGER, VIP, World},
};
use crate::{
    datapath::{Reason, Verdict},
    layout::{EGRESS, INGRESS},
    packet::{BufferPacket, SCTP, TCP, UDP, V4, V6},
};

const HERE: (u128, u16) = (CLIENT, 40_000);

/// Number of ICMP and ICMPv6 (IANA).
const ICMP: [u8; 2] = [1, 58];
/// Numbers of IPv6 extension headers (IANA).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

/// The reason for bytes at a hook; they must be untouched.
fn pass<F: TestFamily>(world: &World<F>, direction: u8, bytes: &[u8]) -> Reason {
    let mut sent = bytes.to_vec();
    let (verdict, reason) = world.run(direction, &mut BufferPacket::new(&mut sent));
    assert_eq!(verdict, Verdict::Continue, "{reason}");
    assert_eq!(sent, bytes, "{reason}: untouched");
    reason
}

/// A packet to the frontend with a change to its bytes.
fn changed<F: TestFamily>(protocol: u8, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Segment::first(protocol, HERE, VIP).bytes::<F>();
    change(&mut bytes);
    bytes
}

/// Where the transport header begins in packets without options.
fn transport<F: TestFamily>() -> usize {
    if F::IPV6 { 40 } else { 20 }
}

both_families! {
    /// Whatever is missing of a packet, nothing panics and nothing is written.
    fn every_beginning_of_a_packet_passes<F>() {
        for protocol in [TCP, UDP, SCTP] {
            let world = World::<F>::with_service();
            let packets = [
                (INGRESS, Segment::first(protocol, HERE, VIP).bytes::<F>()),
                (EGRESS, Segment::later(protocol, BACKEND, HERE).bytes::<F>()),
                (INGRESS, Segment::first(protocol, HERE, BACKEND).bytes::<F>()),
            ];
            for (direction, packet) in packets {
                for length in 0..packet.len() {
                    assert_eq!(pass(&world, direction, &packet[..length]), Reason::Malformed, "{length} bytes");
                }
            }
            assert_eq!(world.entries(), 0);
        }
    }

    /// As the link layer pads short packets.
    fn bytes_after_the_packet_do_no_harm<F>() {
        let world = World::<F>::with_service();
        let mut bytes = changed::<F>(UDP, |bytes| bytes.extend([0; 9]));
        let (_, reason) = world.run(INGRESS, &mut BufferPacket::new(&mut bytes));
        assert_eq!(reason, Reason::NewFlow);
        let length = bytes.len();
        assert_checksums::<F>(&mut bytes[..length - 9]);
    }

    fn other_protocols_pass<F>() {
        let world = World::<F>::with_service();
        for protocol in ICMP.into_iter().chain([33, 47, 50, NO_NEXT_HEADER]) {
            let at = if F::IPV6 { 6 } else { 9 };
            let bytes = changed::<F>(UDP, |bytes| bytes[at] = protocol);
            assert_eq!(pass(&world, INGRESS, &bytes), Reason::OtherProtocol, "protocol {protocol}");
        }
    }

    fn impossible_headers_pass<F>() {
        let world = World::<F>::with_service();
        let offset = transport::<F>() + 12;
        let bytes = changed::<F>(TCP, |bytes| bytes[offset] = 4 << 4);
        assert_eq!(pass(&world, INGRESS, &bytes), Reason::Malformed, "TCP data offset");
        for version in [0, 5, 7, 15] {
            let bytes = changed::<F>(TCP, |bytes| bytes[0] = version << 4 | 5);
            assert_eq!(pass(&world, INGRESS, &bytes), Reason::Malformed, "IP version {version}");
        }
    }

    /// A packet of nobody's addresses is not read further.
    fn strangers_headers_are_not_read<F>() {
        let world = World::<F>::with_service();
        let mut bytes = Segment::first(TCP, HERE, STRANGER).bytes::<F>();
        bytes[0] = 0;
        assert_eq!(pass(&world, INGRESS, &bytes), Reason::Unrelated);
        assert_eq!(pass(&world, EGRESS, &bytes), Reason::Unrelated);
    }
}

#[test]
fn ipv4_options_are_skipped() {
    for words in 1..=10 {
        let world = World::<V4>::with_service();
        for protocol in [TCP, UDP] {
            let mut segment = Segment::first(protocol, HERE, VIP);
            // No operation (RFC 791, 3.1).
            segment.options = vec![1; words * 4];
            assert_eq!(world.enter(&segment).destination, BACKEND);
            let mut reply = Segment::later(protocol, BACKEND, HERE);
            reply.options = segment.options;
            assert_eq!(world.leave(&reply).source, VIP);
        }
    }
}

#[test]
fn ipv4_lengths_must_fit() {
    let world = World::<V4>::with_service();
    let length = u16::try_from(changed::<V4>(TCP, |_| ()).len()).expect("a short packet");
    for (what, total, reason) in [
        ("beyond the end", length + 1, Reason::Malformed),
        ("shorter than the header", 19, Reason::Malformed),
        ("as it is", length, Reason::NewFlow),
        ("0, of a GSO packet", 0, Reason::Established),
    ] {
        let mut bytes = changed::<V4>(TCP, |bytes| bytes[2..4].copy_from_slice(&total.to_be_bytes()));
        let (_, got) = world.run(INGRESS, &mut BufferPacket::new(&mut bytes));
        assert_eq!(got, reason, "total length {what}");
    }
    let bytes = changed::<V4>(TCP, |bytes| bytes[0] = 0x44);
    assert_eq!(
        pass(&world, INGRESS, &bytes),
        Reason::Malformed,
        "header length below 20"
    );
}

#[test]
fn ipv6_payload_length_must_fit() {
    let world = World::<V6>::with_service();
    let length = u16::try_from(changed::<V6>(TCP, |_| ()).len() - 40).expect("a short packet");
    for (payload, reason) in [
        (length + 1, Reason::Malformed),
        (length, Reason::NewFlow),
        (0, Reason::Established),
    ] {
        let mut bytes = changed::<V6>(TCP, |bytes| bytes[4..6].copy_from_slice(&payload.to_be_bytes()));
        let (_, got) = world.run(INGRESS, &mut BufferPacket::new(&mut bytes));
        assert_eq!(got, reason, "payload length {payload}");
    }
}

/// One extension header: its bytes before those of `next`.
fn extension(kind: u8, next: u8) -> Vec<u8> {
    match kind {
        // Its length counts 32-bit words less 2 (RFC 4302, 2.2).
        AUTHENTICATION => [&[next, 4][..], &[0; 22]].concat(),
        // Offset 0 and no more fragments: atomic (RFC 6946).
        FRAGMENT => vec![next, 0, 0, 0, 1, 2, 3, 4],
        // 16 bytes; of a routing header no segments are left.
        _ => [&[next, 1][..], &[0; 14]].concat(),
    }
}

/// A packet with these extension headers.
fn with_extensions(segment: Segment, kinds: &[u8]) -> Segment {
    let mut headers = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        headers.extend(extension(
            *kind,
            kinds.get(index + 1).copied().unwrap_or(segment.protocol),
        ));
    }
    segment.extensions(kinds[0], headers)
}

#[test]
fn ipv6_extension_headers_are_skipped() {
    let all = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS];
    let mut chains: Vec<Vec<u8>> = all.iter().map(|kind| vec![*kind]).collect();
    chains.push(all.to_vec());
    chains.push(vec![DESTINATION_OPTIONS; 6]);
    for kinds in chains {
        let world = World::<V6>::with_service();
        for protocol in [TCP, UDP] {
            let sent = world.enter(&with_extensions(Segment::first(protocol, HERE, VIP), &kinds));
            assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, BACKEND), "{kinds:?}");
            let reply = world.leave(&with_extensions(Segment::later(protocol, BACKEND, HERE), &kinds));
            assert_eq!((reply.reason, reply.source), (Reason::Established, VIP), "{kinds:?}");
        }
    }
}

#[test]
fn ipv6_extension_headers_that_cannot_be_skipped_pass() {
    let world = World::<V6>::with_service();
    let first = || Segment::first(TCP, HERE, VIP);
    let mut routed = with_extensions(first(), &[ROUTING]);
    routed.options[3] = 1;
    let mut beyond = with_extensions(first(), &[HOP_BY_HOP]);
    beyond.options[1] = 255;
    let mut last = with_extensions(first(), &[HOP_BY_HOP]);
    last.options[0] = NO_NEXT_HEADER;
    for (what, segment, reason) in [
        ("segments left", routed, Reason::OtherProtocol),
        ("longer than the packet", beyond, Reason::Malformed),
        ("no next header", last, Reason::OtherProtocol),
        (
            "seven headers",
            with_extensions(first(), &[DESTINATION_OPTIONS; 7]),
            Reason::OtherProtocol,
        ),
    ] {
        assert_eq!(pass(&world, INGRESS, &segment.bytes::<V6>()), reason, "{what}");
    }
    assert_eq!(world.entries(), 0);
}

#[test]
fn every_beginning_of_extension_headers_passes() {
    let world = World::<V6>::with_service();
    let kinds = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION_OPTIONS];
    let bytes = with_extensions(Segment::first(UDP, HERE, VIP), &kinds).bytes::<V6>();
    for length in 40..bytes.len() {
        let mut cut = bytes[..length].to_vec();
        // As long as it says it is.
        let payload = u16::try_from(length - 40).expect("a short packet");
        cut[4..6].copy_from_slice(&payload.to_be_bytes());
        let mut sent = cut.clone();
        let (_, reason) = world.run(INGRESS, &mut BufferPacket::new(&mut sent));
        let headers = 40 + 16 + 16 + 8 + 24 + 16 + 8;
        if length < headers {
            assert_eq!((reason, sent), (Reason::Malformed, cut), "{length} bytes");
        }
    }
}
