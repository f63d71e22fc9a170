//! A client that is its own endpoint (behaviour.md 5.2): seen by itself as the node.

use super::{
    both_families,
    segment::{Segment, TestFamily},
    world::{BACKEND, NODE, Sent, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{EGRESS, INGRESS, flow_flags},
    packet::{TCP, UDP, tcp_flags},
};

/// The endpoint as a client.
const HERE: (u128, u16) = (BACKEND.0, 40_000);
/// What the endpoint sees.
const MASQUERADED: (u128, u16) = (NODE, 40_000);

fn world<F: TestFamily>() -> World<F> {
    let mut world = World::with_service();
    world.masquerade_with(NODE);
    world
}

/// One packet of the client there and one of the server back, each twice through the edge.
fn assert_round<F: TestFamily>(world: &World<F>, request: &Segment, reason: Reason, seen: (u128, u16)) {
    let sent = |reason, source, destination| Sent {
        reason,
        source,
        destination,
    };
    assert_eq!(world.enter(request), sent(reason, HERE, BACKEND));
    let middle = Segment {
        destination: BACKEND,
        ..request.clone()
    };
    assert_eq!(world.leave(&middle), sent(Reason::Established, seen, BACKEND));
    let reply = Segment::later(request.protocol, BACKEND, seen);
    assert_eq!(world.enter(&reply), sent(Reason::Established, BACKEND, HERE));
    let reply = Segment::later(request.protocol, BACKEND, HERE);
    assert_eq!(world.leave(&reply), sent(Reason::Established, VIP, HERE));
}

both_families! {
    /// behaviour.md 5.2
    fn node_stands_between_client_and_itself<F>() {
        for protocol in [TCP, UDP] {
            let world = world::<F>();
            assert_round(&world, &Segment::first(protocol, HERE, VIP), Reason::NewFlow, MASQUERADED);
            world.now.set(101);
            assert_round(&world, &Segment::later(protocol, HERE, VIP), Reason::Established, MASQUERADED);
            assert_eq!(world.entries(), 4);
            // Eight packets passed, but the service carried four.
            assert_eq!(world.counts.borrow()[&2].packets, 4);
            assert_eq!(world.counts.borrow()[&2].connections, 1);
        }
    }

    fn masquerade_is_asked_for_then_resolved<F>() {
        let world = world::<F>();
        world.enter(&Segment::first(TCP, HERE, VIP));
        let forward = world.entry(&World::<F>::key(INGRESS, TCP, HERE, VIP)).expect("a forward half");
        assert_eq!(forward.flags, flow_flags::MASQUERADED);
        let middle = World::<F>::key(EGRESS, TCP, HERE, BACKEND);
        let asked = world.entry(&middle).expect("an unresolved entry");
        assert_eq!(asked.flags, flow_flags::MASQUERADE | flow_flags::UNRESOLVED);
        world.leave(&Segment::first(TCP, HERE, BACKEND));
        let resolved = world.entry(&middle).expect("a resolved entry");
        assert_eq!(resolved.flags, flow_flags::MASQUERADE);
        let back = world.entry(&World::<F>::key(INGRESS, TCP, BACKEND, MASQUERADED)).expect("its twin");
        assert_eq!(back.flags, flow_flags::MASQUERADE | flow_flags::REPLY);
    }

    /// behaviour.md 5.1: the address of the device; the client's port if that is free.
    fn colliding_masquerade_gets_another_port<F>() {
        let world = world::<F>();
        // The node itself talks to the backend from this port, through a frontend.
        let taken = World::<F>::key(INGRESS, TCP, BACKEND, MASQUERADED);
        let other = crate::layout::FlowValue { last_seen: 100, ..Default::default() };
        world.flows.borrow_mut().insert(taken, other);
        assert_round(&world, &Segment::first(TCP, HERE, VIP), Reason::NewFlow, (NODE, 1024));
    }

    fn lost_masquerade_is_asked_for_again<F>() {
        let world = world::<F>();
        assert_round(&world, &Segment::first(TCP, HERE, VIP), Reason::NewFlow, MASQUERADED);
        world.flows.borrow_mut().remove(&World::<F>::key(EGRESS, TCP, HERE, BACKEND));
        world.now.set(101);
        assert_round(&world, &Segment::later(TCP, HERE, VIP), Reason::Established, MASQUERADED);
        assert_eq!(world.entries(), 4);
    }

    fn reopened_connection_is_masqueraded_again<F>() {
        let world = world::<F>();
        assert_round(&world, &Segment::first(TCP, HERE, VIP), Reason::NewFlow, MASQUERADED);
        let reset = Segment::later(TCP, HERE, VIP).flags(tcp_flags::RST);
        assert_round(&world, &reset, Reason::Established, MASQUERADED);
        assert_round(&world, &Segment::first(TCP, HERE, VIP), Reason::NewFlow, MASQUERADED);
    }

    fn edge_without_an_address_drops<F>() {
        let world = World::<F>::with_service();
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::NewFlow);
        assert_eq!(world.leave(&Segment::first(TCP, HERE, BACKEND)).reason, Reason::NoMasqueradeAddress);
    }

    fn full_table_leaves_nothing_behind<F>() {
        for room in 0..3 {
            let world = world::<F>();
            world.capacity.set(room);
            assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::FlowTableFull);
            assert_eq!(world.entries(), 0, "with room for {room}");
        }
        let world = world::<F>();
        world.capacity.set(3);
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::NewFlow);
        // It is given up for itself, and comes anew.
        assert_eq!(world.leave(&Segment::first(TCP, HERE, BACKEND)).reason, Reason::FlowTableFull);
        assert_eq!(world.entries(), 0);
    }
}
