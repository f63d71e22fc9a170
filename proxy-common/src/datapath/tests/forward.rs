//! Packets from uplink to uplink: in one go they become what both hooks make of them, and one hop older.

use std::{cell::Cell, collections::BTreeMap};

use super::{
    both_families,
    segment::{Segment, TestFamily, assert_checksums, endpoints},
    world::{BACKEND, CLIENT, NODE, OTHER_BACKEND, STRANGER, VIP, World},
};
use crate::{
    datapath::{Crossing, Environment, Forwarding, Hop, Reason, Routes, forward},
    layout::{
        AddressBytes, EGRESS, FlowKey, FlowValue, INGRESS, ServiceValue, Timeouts, device_flags, express, flow_flags,
        service_flags,
    },
    packet::{BufferPacket, TCP, UDP, tcp_flags},
};

/// The device that packets arrive by, and another.
const UPLINK: u32 = 1;
const OTHER_UPLINK: u32 = 2;
/// The client's end of its connection.
const HERE: (u128, u16) = (CLIENT, 40_000);
/// What the backend sees.
const MASQUERADED: (u128, u16) = (NODE, 40_000);

/// What the route look-up says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ready(u32),
    NoNeighbour(u32),
    None,
}

/// A world with routes, at one of its devices.
struct Node<'a, F: TestFamily> {
    world: &'a World<F>,
    device: u32,
    answer: &'a Cell<Answer>,
}

impl<F: TestFamily> Environment for Node<'_, F> {
    fn now(&self) -> u32 {
        self.world.now()
    }

    fn random(&self) -> u32 {
        self.world.random()
    }

    fn device(&self) -> u32 {
        self.device
    }

    fn timeouts(&self) -> &Timeouts {
        self.world.timeouts()
    }

    fn has_socket<A: AddressBytes>(&self, key: &FlowKey<A>) -> bool {
        self.world.has_socket(key)
    }
}

impl<F: TestFamily> Routes for Node<'_, F> {
    fn at(&self, device: u32) -> Self {
        Self { device, ..*self }
    }

    fn route<A: AddressBytes>(&self, journey: &FlowKey<A>, _class: u32, length: u32, hop: &mut Hop) -> bool {
        assert_eq!(journey.direction, EGRESS, "the packet as it is in between");
        assert!(length >= 28, "headers");
        let (device, ready) = match self.answer.get() {
            Answer::Ready(device) => (device, true),
            Answer::NoNeighbour(device) => (device, false),
            Answer::None => (0, false),
        };
        (hop.device, hop.destination, hop.source) = (device, [2; 6], [1; 6]);
        ready
    }
}

/// A world where [`VIP`] masquerades, at a node whose uplinks have XDP.
fn world<F: TestFamily>() -> World<F> {
    let mut world = World::with_service();
    set_service(&mut world, service_flags::MASQUERADE);
    world.masquerade_with(NODE);
    world.device_flags.set(express::NATIVE << device_flags::EXPRESS_SHIFT);
    world
}

fn set_service<F: TestFamily>(world: &mut World<F>, flags: u32) {
    let service = ServiceValue {
        service: 2,
        cluster_set: 2,
        cluster_count: 1,
        flags,
        ..ServiceValue::default()
    };
    world.set_service(VIP, service);
}

/// Sends bytes through XDP; what it passes up must be untouched.
fn send<F: TestFamily>(world: &World<F>, answer: Answer, bytes: &mut [u8]) -> (Forwarding, Hop) {
    let before = bytes.to_vec();
    let node = Node {
        world,
        device: UPLINK,
        answer: &Cell::new(answer),
    };
    let mut crossing = Crossing::default();
    let forwarding = forward::<F, _, _, _>(&mut BufferPacket::new(bytes), world, &node, &mut crossing);
    if forwarding == Forwarding::PassUp {
        assert_eq!(bytes, before, "untouched");
    }
    (forwarding, crossing.hop)
}

/// Flows without the flag that tells who serves them.
fn flows<F: TestFamily>(world: &World<F>) -> BTreeMap<String, FlowValue<F::Address>> {
    let stripped = |(key, value): (&FlowKey<F::Address>, &FlowValue<F::Address>)| {
        let flags = value.flags & !flow_flags::EXPRESS;
        (format!("{key:?}"), FlowValue { flags, ..*value })
    };
    world.flows.borrow().iter().map(stripped).collect()
}

/// Fails unless XDP transmits the packet, with the result of both hooks in `hooks`, a world in the same state.
fn assert_crosses<F: TestFamily>(world: &World<F>, hooks: &World<F>, device: u32, segment: &Segment) -> Segment {
    let mut bytes = segment.bytes::<F>();
    let (forwarding, hop) = send(world, Answer::Ready(device), &mut bytes);
    assert_eq!(forwarding, Forwarding::Transmit, "{segment:?}");
    assert_eq!((hop.device, hop.destination, hop.source), (device, [2; 6], [1; 6]));
    assert_checksums::<F>(&mut bytes);

    let mut expected = segment.bytes::<F>();
    hooks.run(INGRESS, &mut BufferPacket::new(&mut expected));
    hooks.run(EGRESS, &mut BufferPacket::new(&mut expected));
    let hop_limit = if F::IPV6 { 7 } else { 8 };
    assert_eq!(bytes[hop_limit], expected[hop_limit] - 1);
    expected[hop_limit] -= 1;
    if !F::IPV6 {
        // The sum of the header, which has been found right.
        expected[10..12].copy_from_slice(&bytes[10..12]);
    }
    assert_eq!(bytes, expected);
    assert_eq!(flows(world), flows(hooks));
    assert_eq!(*world.reasons.borrow(), *hooks.reasons.borrow());
    assert_eq!(*world.counts.borrow(), *hooks.counts.borrow());
    let (source, destination) = endpoints::<F>(&mut bytes);
    Segment {
        source,
        destination,
        ..segment.clone()
    }
}

/// Fails unless XDP passes the packet up and counts nothing.
fn assert_passes<F: TestFamily>(world: &World<F>, answer: Answer, bytes: &[u8]) {
    let (reasons, counts) = (world.reasons.borrow().clone(), world.counts.borrow().clone());
    let (forwarding, _) = send(world, answer, &mut bytes.to_vec());
    assert_eq!(forwarding, Forwarding::PassUp);
    assert_eq!((&*world.reasons.borrow(), &*world.counts.borrow()), (&reasons, &counts));
}

both_families! {
    fn packets_become_what_both_hooks_make_of_them<F>() {
        for (protocol, device) in [(TCP, UPLINK), (UDP, UPLINK), (TCP, OTHER_UPLINK)] {
            let (world, hooks) = (world::<F>(), world::<F>());
            let at = |tick| {
                world.now.set(tick);
                hooks.now.set(tick);
            };
            let request = Segment::first(protocol, HERE, VIP);
            let seen = assert_crosses(&world, &hooks, device, &request);
            assert_eq!((seen.source, seen.destination), (MASQUERADED, BACKEND));
            let answer = Segment::later(protocol, BACKEND, MASQUERADED).flags(tcp_flags::SYN | tcp_flags::ACK);
            let seen = assert_crosses(&world, &hooks, device, &answer);
            assert_eq!((seen.source, seen.destination), (VIP, HERE));
            for (tick, flags) in [(100, 0), (101, 0), (101, tcp_flags::FIN), (103, tcp_flags::RST)] {
                at(tick);
                let flags = flags | tcp_flags::ACK;
                assert_crosses(&world, &hooks, device, &Segment::later(protocol, HERE, VIP).flags(flags));
                assert_crosses(&world, &hooks, device, &Segment::later(protocol, BACKEND, MASQUERADED).flags(flags));
            }
            // Reset: the ports may be used anew.
            assert_crosses(&world, &hooks, device, &request);
            assert_eq!(world.entries(), 4);
            assert_eq!(world.counts.borrow()[&2].connections, if protocol == TCP { 2 } else { 1 });
            assert!(world.flows.borrow().values().all(|half| half.flags & flow_flags::EXPRESS != 0));
        }
    }

    /// But a UDP client's, which is lost on purpose (behaviour.md 7.3; `flows::rule_7_3_udp_answers_outlive_the_forward_half`).
    fn a_lost_half_is_restored<F>() {
        for (protocol, lost, whole) in [
            (TCP, (INGRESS, HERE, VIP), (EGRESS, BACKEND, HERE)),
            (UDP, (EGRESS, BACKEND, HERE), (INGRESS, HERE, VIP)),
            (UDP, (EGRESS, HERE, BACKEND), (INGRESS, BACKEND, MASQUERADED)),
            (UDP, (INGRESS, BACKEND, MASQUERADED), (EGRESS, HERE, BACKEND)),
        ] {
            let (world, hooks) = (world::<F>(), world::<F>());
            assert_crosses(&world, &hooks, UPLINK, &Segment::first(protocol, HERE, VIP));
            assert_crosses(&world, &hooks, UPLINK, &Segment::later(protocol, BACKEND, MASQUERADED));
            let key = |(direction, source, destination)| World::<F>::key(direction, protocol, source, destination);
            for one in [&world, &hooks] {
                one.flows.borrow_mut().remove(&key(lost));
                one.now.set(101);
            }
            // A packet of the other half brings it back.
            let segment = if whole.1 == BACKEND {
                Segment::later(protocol, BACKEND, MASQUERADED)
            } else {
                Segment::later(protocol, HERE, VIP)
            };
            assert_crosses(&world, &hooks, UPLINK, &segment);
            let restored = world.entry(&key(lost)).expect("restored");
            assert_ne!(restored.flags & flow_flags::EXPRESS, 0);
            assert_eq!(world.counts.borrow()[&2].connections, 1);
        }
    }

    fn what_can_not_be_finished_goes_up<F>() {
        let ready = Answer::Ready(UPLINK);
        let request = |protocol| Segment::first(protocol, HERE, VIP);
        let world = world::<F>();
        let mut last_hop = request(TCP).bytes::<F>();
        last_hop[if F::IPV6 { 7 } else { 8 }] = 1;
        assert_passes(&world, ready, &last_hop);
        let with_options = if F::IPV6 {
            request(TCP).extensions(0, vec![TCP, 0, 1, 4, 0, 0, 0, 0])
        } else {
            Segment { options: vec![1; 4], ..request(TCP) }
        };
        assert_passes(&world, ready, &with_options.bytes::<F>());
        if !F::IPV6 {
            let mut fragment = request(UDP).bytes::<F>();
            fragment[6] |= 0x20;
            assert_passes(&world, ready, &fragment);
        }
        let icmp = if F::IPV6 { 58 } else { 1 };
        assert_passes(&world, ready, &Segment { protocol: icmp, ..request(UDP) }.bytes::<F>());
        assert_passes(&world, ready, &request(TCP).bytes::<F>()[..30]);
        for destination in [STRANGER, BACKEND, (VIP.0, 81), (NODE, 22)] {
            for protocol in [TCP, UDP] {
                assert_passes(&world, ready, &Segment::first(protocol, HERE, destination).bytes::<F>());
            }
        }
        // The middle of a connection that nobody knows.
        assert_passes(&world, ready, &Segment::later(TCP, HERE, VIP).bytes::<F>());
        assert_eq!(world.entries(), 0);
    }

    fn refusals_are_left_to_the_hooks<F>() {
        let mut world = world::<F>();
        world.serve(VIP, &[]);
        assert_passes(&world, Answer::Ready(UPLINK), &Segment::first(TCP, HERE, VIP).bytes::<F>());
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::NoEndpoints);

        // Decided at ingress, refused at egress.
        let mut world = World::<F>::with_service();
        set_service(&mut world, service_flags::MASQUERADE);
        world.device_flags.set(express::NATIVE << device_flags::EXPRESS_SHIFT);
        assert_passes(&world, Answer::Ready(UPLINK), &Segment::first(TCP, HERE, VIP).bytes::<F>());
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::NewFlow);
        assert_eq!(world.leave(&Segment::first(TCP, HERE, BACKEND)).reason, Reason::NoMasqueradeAddress);

        let world = super::world::<F>();
        world.capacity.set(2);
        assert_passes(&world, Answer::Ready(UPLINK), &Segment::first(TCP, HERE, VIP).bytes::<F>());
        assert_eq!(world.entries(), 0);
    }

    /// What XDP chose, the hooks carry out, and count once.
    fn a_flow_that_leads_elsewhere_is_the_hooks<F>() {
        const GENERIC: u32 = express::GENERIC << device_flags::EXPRESS_SHIFT;
        const POD: u32 = 7;
        for (answer, flags, masquerade) in [
            (Answer::None, 0, true),
            (Answer::Ready(POD), 0, true),
            (Answer::NoNeighbour(POD), 0, true),
            (Answer::Ready(POD), GENERIC, true),
            (Answer::Ready(UPLINK), 0, false),
        ] {
            let mut world = world::<F>();
            set_service(&mut world, if masquerade { service_flags::MASQUERADE } else { 0 });
            world.serve_as(9, (9, 9), &[OTHER_BACKEND]);
            world.flags_of.borrow_mut().extend([(0, 0), (POD, flags)]);
            let request = Segment::first(UDP, HERE, VIP);
            assert_passes(&world, answer, &request.bytes::<F>());
            let entry = world.entry(&World::<F>::key(INGRESS, UDP, HERE, VIP)).expect("a flow");
            assert_eq!((entry.flags & flow_flags::EXPRESS, entry.history), (0, 0));
            assert_eq!(world.enter(&request).reason, Reason::NewFlow);
            assert_eq!(world.enter(&request).reason, Reason::Established);
            assert_passes(&world, Answer::Ready(UPLINK), &request.bytes::<F>());
            assert_eq!(world.counts.borrow()[&2].connections, 1);
        }
    }

    fn a_flow_of_the_hooks_stays_theirs<F>() {
        let world = world::<F>();
        for protocol in [TCP, UDP] {
            world.enter(&Segment::first(protocol, HERE, VIP));
            world.leave(&Segment::first(protocol, HERE, BACKEND));
            for segment in [Segment::first(protocol, HERE, VIP), Segment::later(protocol, BACKEND, MASQUERADED)] {
                assert_passes(&world, Answer::Ready(UPLINK), &segment.bytes::<F>());
            }
        }
    }

    /// The stack finds the neighbour; the flow goes the fast way from then on.
    fn a_missing_neighbour_is_left_to_the_stack<F>() {
        let (world, hooks) = (world::<F>(), world::<F>());
        let request = Segment::first(TCP, HERE, VIP);
        assert_passes(&world, Answer::NoNeighbour(UPLINK), &request.bytes::<F>());
        for one in [&world, &hooks] {
            assert_eq!(one.enter(&request).reason, Reason::NewFlow);
            assert_eq!(one.leave(&Segment::first(TCP, HERE, BACKEND)).reason, Reason::Established);
        }
        assert_crosses(&world, &hooks, UPLINK, &Segment::later(TCP, BACKEND, MASQUERADED));
        assert_crosses(&world, &hooks, UPLINK, &Segment::later(TCP, HERE, VIP));
        assert_eq!(world.counts.borrow()[&2].connections, 1);
    }

    /// A route that moves, or XDP that goes from a device, leaves the flow to the hooks.
    fn a_flow_goes_up_where_the_way_ends<F>() {
        let (world, hooks) = (world::<F>(), world::<F>());
        assert_crosses(&world, &hooks, OTHER_UPLINK, &Segment::first(TCP, HERE, VIP));
        let later = Segment::later(TCP, HERE, VIP);
        assert_passes(&world, Answer::None, &later.bytes::<F>());
        world.flags_of.borrow_mut().insert(OTHER_UPLINK, 0);
        assert_passes(&world, Answer::Ready(OTHER_UPLINK), &later.bytes::<F>());
        assert_eq!(world.enter(&later).destination, BACKEND);
        assert_eq!(world.leave(&Segment::later(TCP, HERE, BACKEND)).source, MASQUERADED);
    }
}
