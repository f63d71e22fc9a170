//! ICMP errors about packets of flows.

use proptest::prelude::*;

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily, assert_checksums, pseudo},
    world::{BACKEND, CLIENT, NODE, OTHER_VIP, STRANGER, VIP, World},
};
use crate::{
    datapath::{Reason, Verdict},
    layout::{EGRESS, INGRESS},
    packet::{BufferPacket, ICMP, ICMPV6, SCTP, TCP, UDP, V4, V6, checksum::checksum},
};

const HERE: Endpoint = (CLIENT, 40_000);
/// Where errors come from that are not from an end.
const ROUTER: u128 = 9;

/// Destination unreachable, time exceeded, parameter problem; of ICMPv6 packet too big as well.
const fn errors<F: TestFamily>() -> &'static [u8] {
    if F::IPV6 { &[1, 2, 3, 4] } else { &[3, 11, 12] }
}

/// An ICMP message in a packet.
#[derive(Clone)]
struct Message {
    kind: u8,
    source: u128,
    destination: u128,
    quote: Vec<u8>,
    options: Vec<u8>,
}

impl Message {
    /// An error that quotes all of a packet.
    fn about<F: TestFamily>(quoted: &Segment, source: u128, destination: u128) -> Self {
        Self {
            kind: errors::<F>()[0],
            source,
            destination,
            quote: quoted.bytes::<F>(),
            options: Vec::new(),
        }
    }

    /// The bytes, with right checksums.
    fn bytes<F: TestFamily>(&self) -> Vec<u8> {
        // Code, checksum, and an MTU.
        let mut message = vec![self.kind, 4, 0, 0, 0, 0, 5, 0];
        message.extend(&self.quote);
        let sum = checksum(&summed::<F>(self.source, self.destination, &message));
        message[2..4].copy_from_slice(&sum.to_ne_bytes());
        let mut network = Segment::first(protocol::<F>(), (self.source, 0), (self.destination, 0));
        network.options.clone_from(&self.options);
        let mut bytes = F::header(&network, message.len());
        bytes.extend(message);
        bytes
    }
}

const fn protocol<F: TestFamily>() -> u8 {
    if F::IPV6 { ICMPV6 } else { ICMP }
}

/// What the ICMP checksum is taken of.
fn summed<F: TestFamily>(source: u128, destination: u128, message: &[u8]) -> Vec<u8> {
    if F::IPV6 {
        pseudo::<F>(ICMPV6, source, destination, message)
    } else {
        message.to_vec()
    }
}

/// Offset of the ICMP header.
fn icmp_at<F: TestFamily>(bytes: &[u8]) -> usize {
    if F::IPV6 { 40 } else { usize::from(bytes[0] & 0xf) * 4 }
}

/// Fails unless the checksums of error and quote are right; that of a cut transport header is not looked at.
fn assert_right<F: TestFamily>(bytes: &mut [u8], whole_quote: bool) {
    let addresses = F::addresses(&BufferPacket::new(bytes)).expect("addresses");
    let (source, destination) = (F::number(&addresses.source), F::number(&addresses.destination));
    let message = icmp_at::<F>(bytes);
    if !F::IPV6 {
        assert_eq!(checksum(&bytes[..message]), 0, "outer header");
        let quote = &bytes[message + 8..];
        assert_eq!(checksum(&quote[..usize::from(quote[0] & 0xf) * 4]), 0, "quoted header");
    }
    assert_eq!(
        checksum(&summed::<F>(source, destination, &bytes[message..])),
        0,
        "ICMP"
    );
    if whole_quote {
        assert_checksums::<F>(&mut bytes[message + 8..]);
    }
}

/// Sends a message that must become another.
fn assert_becomes<F: TestFamily>(world: &World<F>, direction: u8, message: &Message, expected: &Message) {
    let flows = world.flows.borrow().clone();
    let mut bytes = message.bytes::<F>();
    let (verdict, reason) = world.run(direction, &mut BufferPacket::new(&mut bytes));
    assert_eq!((verdict, reason), (Verdict::Rewrite, Reason::IcmpError));
    assert_right::<F>(&mut bytes, false);
    assert_eq!(bytes, expected.bytes::<F>());
    assert_eq!(flows, *world.flows.borrow(), "nothing becomes of the flow");
}

/// The reason why bytes pass; they must be untouched.
fn pass<F: TestFamily>(world: &World<F>, direction: u8, bytes: &[u8]) -> Reason {
    let mut sent = bytes.to_vec();
    let (verdict, reason) = world.run(direction, &mut BufferPacket::new(&mut sent));
    assert_eq!(verdict, Verdict::Continue, "{reason}");
    assert_eq!(sent, bytes, "{reason}: untouched");
    reason
}

/// A world with a flow from [`HERE`] to [`VIP`].
fn with_flow<F: TestFamily>(protocol: u8) -> World<F> {
    let world = World::with_service();
    assert_eq!(world.enter(&Segment::first(protocol, HERE, VIP)).destination, BACKEND);
    world
}

both_families! {
    /// From the endpoint, from a router before it, or from the node: the client sees an error about its own packet.
    fn errors_about_requests_reach_the_client<F>() {
        for protocol in [TCP, UDP] {
            let world = with_flow::<F>(protocol);
            for (from, seen) in [(BACKEND.0, VIP.0), (ROUTER, ROUTER), (NODE, NODE)] {
                for kind in errors::<F>() {
                    let error = |to, from| Message {
                        kind: *kind,
                        ..Message::about::<F>(&Segment::first(protocol, HERE, to), from, CLIENT)
                    };
                    assert_becomes(&world, EGRESS, &error(BACKEND, from), &error(VIP, seen));
                }
            }
        }
    }

    /// From the client, or from a router before it: the endpoint sees an error about its own packet.
    fn errors_about_replies_reach_the_endpoint<F>() {
        for protocol in [TCP, UDP] {
            let world = with_flow::<F>(protocol);
            for from in [CLIENT, ROUTER] {
                for kind in errors::<F>() {
                    let error = |endpoint: Endpoint| Message {
                        kind: *kind,
                        ..Message::about::<F>(&Segment::later(protocol, endpoint, HERE), from, endpoint.0)
                    };
                    assert_becomes(&world, INGRESS, &error(VIP), &error(BACKEND));
                }
            }
        }
    }

    /// A masqueraded flow, here a hairpin: both halves of both pairs do their part.
    fn errors_pass_through_a_masquerade<F>() {
        const OWN: Endpoint = (BACKEND.0, 40_000);
        const MASQUERADED: Endpoint = (NODE, 40_000);
        let mut world = World::<F>::with_service();
        world.masquerade_with(NODE);
        world.enter(&Segment::first(UDP, OWN, VIP));
        let about = |from, to, source, destination| Message::about::<F>(&Segment::first(UDP, from, to), source, destination);
        let (entering, middle) = (about(MASQUERADED, BACKEND, BACKEND.0, NODE), about(OWN, BACKEND, BACKEND.0, OWN.0));
        // Not chosen yet.
        let unresolved = about(BACKEND, OWN, ROUTER, BACKEND.0).bytes::<F>();
        assert_eq!(pass(&world, EGRESS, &unresolved), Reason::OtherProtocol);
        assert_eq!(world.leave(&Segment::first(UDP, OWN, BACKEND)).source, MASQUERADED);

        assert_becomes(&world, INGRESS, &entering, &middle);
        assert_becomes(&world, EGRESS, &middle, &about(OWN, VIP, VIP.0, OWN.0));
        // The node can't forward the reply: the endpoint must see what it sent.
        let reply = |to| about(BACKEND, to, ROUTER, BACKEND.0);
        assert_becomes(&world, EGRESS, &reply(OWN), &reply(MASQUERADED));
    }

    /// The client's port differs in the middle where two flows would be one.
    fn a_changed_port_is_changed_back<F>() {
        for protocol in [TCP, UDP] {
            let mut world = with_flow::<F>(protocol);
            world.serve(OTHER_VIP, &[BACKEND]);
            let middle = world.enter(&Segment::first(protocol, HERE, OTHER_VIP)).source;
            assert_ne!(middle, HERE);
            let error = |from, to| Message::about::<F>(&Segment::first(protocol, from, to), ROUTER, CLIENT);
            assert_becomes(&world, EGRESS, &error(middle, BACKEND), &error(HERE, OTHER_VIP));
        }
    }

    /// However little is quoted, from the first 8 bytes of the transport header on (RFC 792).
    fn quotes_may_be_short<F>() {
        for protocol in [TCP, UDP] {
            let world = with_flow::<F>(protocol);
            let quoted = |to| Segment::first(protocol, HERE, to).bytes::<F>();
            let network = if F::IPV6 { 40 } else { 20 };
            for length in 0..=quoted(BACKEND).len() {
                let error = Message {
                    quote: quoted(BACKEND)[..length].to_vec(),
                    ..Message::about::<F>(&Segment::first(protocol, HERE, BACKEND), ROUTER, CLIENT)
                };
                let mut bytes = error.bytes::<F>();
                if length < network + 8 {
                    assert_eq!(pass(&world, EGRESS, &bytes), Reason::Unrelated, "{length} bytes");
                    continue;
                }
                // What follows is not the packet's.
                let end = bytes.len();
                bytes.extend([0xaa; 20]);
                let (_, reason) = world.run(EGRESS, &mut BufferPacket::new(&mut bytes));
                assert_eq!(reason, Reason::IcmpError, "{length} bytes");
                assert_eq!(bytes[end..], [0xaa; 20]);
                assert_right::<F>(&mut bytes[..end], false);
                let quote = icmp_at::<F>(&bytes) + 8;
                let seen = &bytes[quote..end];
                let addresses_and_ports = if F::IPV6 { 8..44 } else { 12..24 };
                assert_eq!(seen[addresses_and_ports.clone()], quoted(VIP)[addresses_and_ports]);
            }
        }
    }

    fn errors_about_nothing_known_pass<F>() {
        let world = with_flow::<F>(TCP);
        let error = |protocol, from, to| Message::about::<F>(&Segment::first(protocol, from, to), ROUTER, CLIENT);
        for unknown in [
            error(UDP, HERE, BACKEND),
            error(TCP, (CLIENT, 1), BACKEND),
            error(TCP, HERE, STRANGER),
            error(47, HERE, BACKEND),
        ] {
            assert_eq!(pass(&world, EGRESS, &unknown.bytes::<F>()), Reason::Unrelated);
        }
        let to_frontend = Message { destination: VIP.0, ..error(TCP, VIP, (CLIENT, 1)) };
        assert_eq!(pass(&world, INGRESS, &to_frontend.bytes::<F>()), Reason::OtherProtocol);
    }

    /// Echo requests and whatever else is no error; its data may look like a quote.
    fn other_messages_pass<F>() {
        let world = with_flow::<F>(TCP);
        let error = Message::about::<F>(&Segment::first(TCP, HERE, BACKEND), BACKEND.0, CLIENT);
        for kind in (0..=255).filter(|kind| !errors::<F>().contains(kind)) {
            let bytes = Message { kind, ..error.clone() }.bytes::<F>();
            assert_eq!(pass(&world, EGRESS, &bytes), Reason::OtherProtocol, "type {kind}");
        }
    }

    /// Every beginning of an error is shorter than its header says.
    fn cut_errors_pass<F>() {
        let world = with_flow::<F>(TCP);
        let bytes = Message::about::<F>(&Segment::first(TCP, HERE, BACKEND), BACKEND.0, CLIENT).bytes::<F>();
        for length in 0..bytes.len() {
            assert_eq!(pass(&world, EGRESS, &bytes[..length]), Reason::Malformed, "{length} bytes");
        }
        let bytes = Message::about::<F>(&Segment::first(TCP, HERE, BACKEND), ROUTER, CLIENT).bytes::<F>();
        for length in 40..bytes.len() {
            assert_eq!(pass(&world, EGRESS, &bytes[..length]), Reason::Unrelated, "{length} bytes");
        }
    }
}

#[test]
fn ipv4_options_are_skipped() {
    let world = with_flow::<V4>(UDP);
    for words in 0..=10 {
        let error = |to| {
            let mut quoted = Segment::first(UDP, HERE, to);
            // No operation (RFC 791, 3.1).
            quoted.options = vec![1; words * 4];
            Message {
                options: vec![1; (10 - words) * 4],
                ..Message::about::<V4>(&quoted, ROUTER, CLIENT)
            }
        };
        assert_becomes(&world, EGRESS, &error(BACKEND), &error(VIP));
    }
}

/// A first fragment holds the ports, later ones do not.
#[test]
fn quoted_ipv4_fragments() {
    let world = with_flow::<V4>(UDP);
    let error = |to, flags: u16| {
        let mut error = Message::about::<V4>(&Segment::first(UDP, HERE, to), ROUTER, CLIENT);
        error.quote[6..8].copy_from_slice(&flags.to_be_bytes());
        error.quote[10..12].fill(0);
        let sum = checksum(&error.quote[..20]);
        error.quote[10..12].copy_from_slice(&sum.to_ne_bytes());
        error
    };
    assert_becomes(&world, EGRESS, &error(BACKEND, 0x2000), &error(VIP, 0x2000));
    for later in [1, 0x2001] {
        assert_eq!(
            pass(&world, EGRESS, &error(BACKEND, later).bytes::<V4>()),
            Reason::Unrelated
        );
    }
}

#[test]
fn quoted_ipv6_extension_headers() {
    let world = with_flow::<V6>(UDP);
    // Hop-by-hop options, then a fragment header.
    let error = |to, offset_and_more: [u8; 2]| {
        let mut headers = vec![44, 0, 1, 4, 0, 0, 0, 0];
        headers.extend([UDP, 0, offset_and_more[0], offset_and_more[1], 1, 2, 3, 4]);
        let quoted = Segment::first(UDP, HERE, to).extensions(0, headers);
        Message::about::<V6>(&quoted, ROUTER, CLIENT)
    };
    for first in [[0, 0], [0, 1]] {
        assert_becomes(&world, EGRESS, &error(BACKEND, first), &error(VIP, first));
    }
    for later in [[0, 8], [1, 1]] {
        assert_eq!(
            pass(&world, EGRESS, &error(BACKEND, later).bytes::<V6>()),
            Reason::Unrelated
        );
    }
}

/// An error that is itself in fragments is left alone.
#[test]
fn errors_in_fragments_pass() {
    let world = with_flow::<V4>(UDP);
    for source in [BACKEND.0, ROUTER] {
        let mut bytes = Message::about::<V4>(&Segment::first(UDP, HERE, BACKEND), source, CLIENT).bytes::<V4>();
        bytes[6] = 0x20;
        let reason = if source == ROUTER {
            Reason::Unrelated
        } else {
            Reason::OtherProtocol
        };
        assert_eq!(pass(&world, EGRESS, &bytes), reason);
    }
}

/// RFC 768: no checksum stays no checksum.
#[test]
fn an_absent_udp_checksum_stays_absent() {
    let world = with_flow::<V4>(UDP);
    let error = |to| {
        let mut error = Message::about::<V4>(&Segment::first(UDP, HERE, to), ROUTER, CLIENT);
        error.quote[26..28].fill(0);
        error
    };
    assert_becomes(&world, EGRESS, &error(BACKEND), &error(VIP));
}

/// SCTP's checksum can't be corrected without all of the packet: a quote keeps that of the packet that was sent on.
#[test]
fn quotes_of_sctp_keep_their_checksum() {
    fn run<F: TestFamily>() {
        let world = with_flow::<F>(SCTP);
        let error = |to| Message::about::<F>(&Segment::first(SCTP, HERE, to), ROUTER, CLIENT);
        let (sent, mut seen) = (error(BACKEND), error(VIP));
        let at = if F::IPV6 { 40 + 8 } else { 20 + 8 };
        seen.quote[at..at + 4].copy_from_slice(&sent.quote[at..at + 4]);
        assert_becomes(&world, EGRESS, &sent, &seen);
    }
    run::<V4>();
    run::<V6>();
}

/// Any hosts, ports and payload, about a request and about a reply.
fn checksums_stay_right<F: TestFamily>(places: [Endpoint; 3], protocol: u8, payload: &[u8], router: bool) {
    let [client, frontend, endpoint] = places.map(|(address, port)| (F::number(&F::address(address)), port));
    let mut world = World::<F>::new();
    world.serve_as(9, frontend, &[endpoint]);
    world.enter(&Segment::first(protocol, client, frontend));
    let assert_translated = |direction, quoted: Segment, source, destination| {
        let quoted = Segment {
            payload: payload.to_vec(),
            ..quoted
        };
        let mut bytes = Message::about::<F>(&quoted, source, destination).bytes::<F>();
        let (_, reason) = world.run(direction, &mut BufferPacket::new(&mut bytes));
        assert_eq!(reason, Reason::IcmpError);
        assert_right::<F>(&mut bytes, true);
    };
    let request = Segment::first(protocol, client, endpoint);
    assert_translated(EGRESS, request, if router { ROUTER } else { endpoint.0 }, client.0);
    let reply = Segment::later(protocol, frontend, client);
    assert_translated(INGRESS, reply, if router { ROUTER } else { client.0 }, frontend.0);
}

proptest! {
    #[test]
    fn all_checksums_stay_right(
        places: [(u128, u16); 3],
        tcp: bool,
        router: bool,
        payload in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        // Distinct, and distinct in the low 32 bits that IPv4 takes.
        let [client, frontend, endpoint] = places;
        let place = |(address, port): Endpoint, number| (address << 2 | number, port);
        let places = [place(client, 1), place(frontend, 2), place(endpoint, 3)];
        let protocol = if tcp { TCP } else { UDP };
        checksums_stay_right::<V4>(places, protocol, &payload, router);
        checksums_stay_right::<V6>(places, protocol, &payload, router);
    }
}
