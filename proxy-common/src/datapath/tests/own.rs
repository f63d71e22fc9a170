//! The node's own connections and masqueraded ones, which share its addresses.

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{FlowValue, INGRESS},
    packet::{TCP, UDP},
};

const HERE: Endpoint = (CLIENT, 40_000);
/// The node, with the port that the client has.
const OWN: Endpoint = (NODE, 40_000);

/// Sends the client's first packet through and tells what the backend sees.
fn masqueraded<F: TestFamily>(world: &World<F>, protocol: u8) -> Endpoint {
    assert_eq!(world.enter(&Segment::first(protocol, HERE, VIP)).destination, BACKEND);
    world.leave(&Segment::first(protocol, HERE, BACKEND)).source
}

both_families! {
    fn client_keeps_its_port_where_it_is_free<F>() {
        for protocol in [TCP, UDP] {
            let world = World::<F>::masquerading();
            assert_eq!(masqueraded(&world, protocol), OWN);
            let answer = world.enter(&Segment::later(protocol, BACKEND, OWN));
            assert_eq!((answer.source, answer.destination), (BACKEND, HERE));
            assert_eq!(world.leave(&Segment::later(protocol, BACKEND, HERE)).source, VIP);
        }
    }

    fn port_of_a_socket_of_the_node_is_not_taken<F>() {
        for protocol in [TCP, UDP] {
            let mut world = World::<F>::masquerading();
            world.add_socket(protocol, OWN, BACKEND);
            let seen = masqueraded(&world, protocol);
            assert_eq!(seen.0, NODE);
            assert_ne!(seen, OWN);
            // Its own packets pass both ways as they are.
            let own = world.leave(&Segment::later(protocol, OWN, BACKEND));
            assert_eq!((own.reason, own.source), (Reason::Unrelated, OWN));
            assert_eq!(world.enter(&Segment::later(protocol, BACKEND, OWN)).destination, OWN);
            assert_eq!(world.enter(&Segment::later(protocol, BACKEND, seen)).destination, HERE);
        }
    }

    /// The masquerade was there first: the node's new connection gets another port, as under conntrack.
    fn own_connection_gives_way_to_a_masquerade<F>() {
        for protocol in [TCP, UDP] {
            let world = World::<F>::masquerading();
            assert_eq!(masqueraded(&world, protocol), OWN);
            let own = world.leave(&Segment::first(protocol, OWN, BACKEND));
            assert_eq!((own.reason, own.source.0), (Reason::Established, NODE));
            assert_ne!(own.source, OWN);
            let answer = world.enter(&Segment::later(protocol, BACKEND, own.source));
            assert_eq!(answer.destination, OWN);
            assert_eq!(world.enter(&Segment::later(protocol, BACKEND, OWN)).destination, HERE);
            assert_eq!(world.leave(&Segment::later(protocol, OWN, BACKEND)).source, own.source);
        }
    }

    fn own_connections_pass_where_nothing_collides<F>() {
        let world = World::<F>::masquerading();
        for protocol in [TCP, UDP] {
            let own = world.leave(&Segment::first(protocol, OWN, BACKEND));
            assert_eq!((own.reason, own.source), (Reason::Unrelated, OWN));
        }
        assert_eq!(world.entries(), 0);
    }

    /// Only a packet that opens a connection can be the first of one.
    fn later_packets_of_the_node_ask_for_nothing<F>() {
        let world = World::<F>::masquerading();
        masqueraded(&world, TCP);
        let before = world.entries();
        let own = world.leave(&Segment::later(TCP, OWN, BACKEND));
        assert_eq!((own.reason, own.source), (Reason::Unrelated, OWN));
        assert_eq!(world.entries(), before);
    }

    /// The backend is a client of the node, with the same ports the other way round: its flow takes nothing from the node.
    fn flows_without_a_masquerade_do_not_collide<F>() {
        let world = World::<F>::masquerading();
        for protocol in [TCP, UDP] {
            let opposite = World::<F>::key(INGRESS, protocol, BACKEND, OWN);
            world.flows.borrow_mut().insert(opposite, FlowValue::default());
            let own = world.leave(&Segment::first(protocol, OWN, BACKEND));
            assert_eq!((own.reason, own.source), (Reason::Unrelated, OWN));
        }
    }

    fn exhausted_ports_are_told<F>() {
        let mut world = World::<F>::masquerading();
        // Chance that always picks the first port finds it taken.
        for port in [40_000, 1024] {
            world.add_socket(TCP, (NODE, port), BACKEND);
        }
        world.enter(&Segment::first(TCP, HERE, VIP));
        assert_eq!(world.leave(&Segment::first(TCP, HERE, BACKEND)).reason, Reason::PortsExhausted);
    }
}
