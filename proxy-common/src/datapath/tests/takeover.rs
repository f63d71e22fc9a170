//! Connections from before the node was taken over, which the kernel's conntrack translates.

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, OTHER_BACKEND, TIMEOUTS, VIP, World},
};
use crate::{
    datapath::{
        Reason,
        flow::{left_to_conntrack, twin_key, twin_value},
    },
    layout::{EGRESS, FlowValue, INGRESS, device_flags, flow_flags, history},
    packet::{SCTP, TCP, UDP, tcp_flags},
};

const HERE: Endpoint = (CLIENT, 40_000);
/// What the backend sees of a masqueraded client.
const HIDDEN: Endpoint = (NODE, 50_000);

/// Has conntrack translate what both halves from `source` to `destination` are for.
fn leave_to_conntrack<F: TestFamily>(
    world: &World<F>,
    (direction, flags): (u8, u8),
    protocol: u8,
    source: Endpoint,
    destination: Endpoint,
) {
    let key = World::<F>::key(direction, protocol, source, destination);
    let value = left_to_conntrack(&key, 2, world.now.get(), flags);
    let twin = twin_value(&key, &value);
    assert_eq!(twin.flags, flow_flags::CONNTRACK | flags | flow_flags::REPLY);
    let mut flows = world.flows.borrow_mut();
    let seen = FlowValue {
        history: history::SEEN,
        ..twin
    };
    flows.insert(twin_key(&key, &value), seen);
    flows.insert(key, value);
}

/// Passes a packet of either direction and expects it to be as it was.
fn assert_untouched<F: TestFamily>(world: &World<F>, direction: u8, segment: &Segment) {
    let sent = world.send(direction, segment);
    assert_eq!((sent.source, sent.destination), (segment.source, segment.destination));
}

both_families! {
    /// Whatever their flags: conntrack has the connection's window and state.
    fn its_packets_pass_as_they_are<F>() {
        for protocol in [TCP, UDP, SCTP] {
            let mut world = World::<F>::with_service();
            // As the agent has it, so that replies are looked up.
            world.serve((9, 1), &[VIP]);
            leave_to_conntrack(&world, (INGRESS, 0), protocol, HERE, VIP);
            for tick in [100, 100, 101, 130] {
                world.now.set(tick);
                assert_untouched(&world, INGRESS, &Segment::later(protocol, HERE, VIP));
                assert_untouched(&world, EGRESS, &Segment::later(protocol, VIP, HERE));
            }
            assert_eq!(world.entries(), 2);
        }
    }

    /// A half that was lost comes back as what it was.
    fn a_lost_half_is_restored<F>() {
        let world = World::<F>::with_service();
        leave_to_conntrack(&world, (INGRESS, 0), TCP, HERE, VIP);
        let reply = World::<F>::key(EGRESS, TCP, VIP, HERE);
        let before = world.flows.borrow_mut().remove(&reply).expect("a reply half");
        world.now.set(101);
        assert_untouched(&world, INGRESS, &Segment::later(TCP, HERE, VIP));
        let after = world.entry(&reply).expect("restored");
        assert_eq!((after.flags, after.address, after.port), (before.flags, before.address, before.port));
        assert_untouched(&world, EGRESS, &Segment::later(TCP, VIP, HERE));
    }

    /// It ends as others do: the next connection from its port is this proxy's.
    fn a_closed_connections_port_is_free<F>() {
        let mut world = World::<F>::with_service();
        world.serve((9, 1), &[VIP]);
        leave_to_conntrack(&world, (INGRESS, 0), TCP, HERE, VIP);
        let first = Segment::first(TCP, HERE, VIP);
        assert_untouched(&world, INGRESS, &first);
        let fin = tcp_flags::FIN | tcp_flags::ACK;
        assert_untouched(&world, INGRESS, &Segment::later(TCP, HERE, VIP).flags(fin));
        assert_untouched(&world, EGRESS, &Segment::later(TCP, VIP, HERE).flags(fin));
        let sent = world.enter(&first);
        assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, BACKEND));
    }

    fn it_expires<F>() {
        let world = World::<F>::with_service();
        leave_to_conntrack(&world, (INGRESS, 0), UDP, HERE, VIP);
        world.now.set(101 + TIMEOUTS.udp_established);
        let sent = world.enter(&Segment::later(UDP, HERE, VIP));
        assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, BACKEND));
    }

    /// Conntrack masqueraded it: no masquerade of this proxy takes its port, and its replies pass.
    fn its_masquerade_port_is_taken<F>() {
        for protocol in [TCP, UDP] {
            let world = World::<F>::masquerading();
            leave_to_conntrack(&world, (EGRESS, flow_flags::MASQUERADE), protocol, HIDDEN, BACKEND);
            // The same port of another client.
            let other = (CLIENT, HIDDEN.1);
            assert_eq!(world.enter(&Segment::first(protocol, other, VIP)).destination, BACKEND);
            let seen = world.leave(&Segment::first(protocol, other, BACKEND)).source;
            assert_eq!(seen.0, NODE);
            assert_ne!(seen, HIDDEN);
            assert_untouched(&world, EGRESS, &Segment::later(protocol, HIDDEN, BACKEND));
            assert_untouched(&world, INGRESS, &Segment::later(protocol, BACKEND, HIDDEN));
            assert_eq!(world.enter(&Segment::later(protocol, BACKEND, seen)).destination, other);
        }
    }

    /// While the node is taken over a connection that no flow knows may be conntrack's; a new one is this proxy's.
    fn packets_from_the_midst_are_left_alone_during_the_takeover<F>() {
        for protocol in [TCP, SCTP] {
            let mut world = World::<F>::new();
            world.serve(VIP, &[BACKEND, OTHER_BACKEND]);
            world.device_flags.set(device_flags::TAKING_OVER);
            let later = Segment::later(protocol, HERE, VIP);
            assert_eq!(world.enter(&later).reason, Reason::MidStream);
            assert_eq!(world.entries(), 0);
            assert_eq!(world.enter(&Segment::first(protocol, HERE, VIP)).reason, Reason::NewFlow);
            assert_eq!(world.enter(&later).reason, Reason::Established);
        }
        // A datagram doesn't show what it belongs to.
        let world = World::<F>::with_service();
        world.device_flags.set(device_flags::TAKING_OVER);
        assert_eq!(world.enter(&Segment::later(UDP, HERE, VIP)).reason, Reason::NewFlow);
    }

    /// Afterwards such a packet gets an endpoint, whose RST tells the client that its connection is lost.
    fn packets_from_the_midst_get_an_endpoint_otherwise<F>() {
        for protocol in [TCP, SCTP] {
            let world = World::<F>::with_service();
            let sent = world.enter(&Segment::later(protocol, HERE, VIP));
            assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, BACKEND));
        }
    }
}
