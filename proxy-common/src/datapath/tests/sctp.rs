//! SCTP: its checksum and its states.

use proptest::prelude::*;

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, OTHER_BACKEND, OTHER_VIP, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{INGRESS, flow_flags},
    packet::{BufferPacket, SCTP, V4, V6, tcp_flags},
};

const HERE: Endpoint = (CLIENT, 40_000);

/// Opens an association; sending verifies the checksums.
fn open<F: TestFamily>(world: &World<F>) {
    let sent = world.enter(&Segment::first(SCTP, HERE, VIP));
    assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, BACKEND));
    let answer = Segment::later(SCTP, BACKEND, HERE).flags(tcp_flags::SYN | tcp_flags::ACK);
    let sent = world.leave(&answer);
    assert_eq!((sent.reason, sent.source), (Reason::Established, VIP));
}

both_families! {
    fn there_and_back<F>() {
        let world = World::<F>::with_service();
        open(&world);
        assert_eq!(world.enter(&Segment::later(SCTP, HERE, VIP)).destination, BACKEND);
        assert_eq!(world.leave(&Segment::later(SCTP, BACKEND, HERE)).source, VIP);
    }

    /// An ABORT ends it, and an INIT then opens another.
    fn an_aborted_association_is_opened_anew<F>() {
        let mut world = World::<F>::with_service();
        open(&world);
        // The second endpoint is the choice of a random number in the upper half.
        world.serve(VIP, &[BACKEND, OTHER_BACKEND]);
        world.random.borrow_mut().push_back(1 << 31);
        assert_eq!(world.enter(&Segment::first(SCTP, HERE, VIP)).reason, Reason::Established, "not over yet");
        world.leave(&Segment::later(SCTP, BACKEND, HERE).flags(tcp_flags::RST));
        let sent = world.enter(&Segment::first(SCTP, HERE, VIP));
        assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, OTHER_BACKEND));
    }

    /// The client's port changes too where two associations would be one.
    fn both_ports_change<F>() {
        let mut world = World::<F>::with_service();
        world.serve(OTHER_VIP, &[BACKEND]);
        open(&world);
        let middle = world.enter(&Segment::first(SCTP, HERE, OTHER_VIP)).source;
        assert_ne!(middle, HERE);
        let reply = world.leave(&Segment::later(SCTP, BACKEND, middle));
        assert_eq!((reply.source, reply.destination), (OTHER_VIP, HERE));
    }

    /// behaviour.md 5.2
    fn rule_5_2_hairpin<F>() {
        const OWN: Endpoint = (BACKEND.0, 40_000);
        let mut world = World::<F>::with_service();
        world.masquerade_with(NODE);
        assert_eq!(world.enter(&Segment::first(SCTP, OWN, VIP)).destination, BACKEND);
        assert_eq!(world.leave(&Segment::first(SCTP, OWN, BACKEND)).source, (NODE, 40_000));
        assert_eq!(world.enter(&Segment::later(SCTP, BACKEND, (NODE, 40_000))).destination, OWN);
        assert_eq!(world.leave(&Segment::later(SCTP, BACKEND, OWN)).source, VIP);
    }

    /// An INIT straight to the endpoint retires the flow of its ports, data do not.
    fn a_direct_association_retires_the_flow<F>() {
        let world = World::<F>::with_service();
        open(&world);
        assert_eq!(world.enter(&Segment::later(SCTP, HERE, BACKEND)).reason, Reason::Unrelated);
        assert_eq!(world.enter(&Segment::first(SCTP, HERE, BACKEND)).reason, Reason::FlowRetired);
        assert_eq!(world.entries(), 0);
    }

    /// The device computes it: programs see zero.
    fn a_checksum_to_be_computed_stays_so<F>() {
        let world = World::<F>::with_service();
        let mut bytes = Segment::first(SCTP, HERE, VIP).bytes::<F>();
        let at = if F::IPV6 { 40 + 8 } else { 20 + 8 };
        bytes[at..at + 4].fill(0);
        let (_, reason) = world.run(INGRESS, &mut BufferPacket::new(&mut bytes));
        assert_eq!(reason, Reason::NewFlow);
        assert_eq!(bytes[at..at + 4], [0; 4]);
    }
}

#[test]
fn flags_of_the_flow_are_those_of_any_other() {
    let world = World::<V4>::with_service();
    open(&world);
    let reply = world.entry(&World::<V4>::key(crate::layout::EGRESS, SCTP, BACKEND, HERE));
    assert_eq!(reply.expect("a reply half").flags, flow_flags::REPLY);
}

proptest! {
    /// Whatever the packet holds, and wherever it goes.
    #[test]
    fn checksums_stay_right(places: [(u128, u16); 3], payload in prop::collection::vec(any::<u8>(), 0..2000)) {
        fn run<F: TestFamily>(places: [Endpoint; 3], payload: &[u8]) {
            let [client, frontend, endpoint] = places.map(|(address, port)| (F::number(&F::address(address)), port));
            let mut world = World::<F>::new();
            world.serve_as(9, frontend, &[endpoint]);
            let with_payload = |segment| Segment { payload: payload.to_vec(), ..segment };
            let sent = world.enter(&with_payload(Segment::first(SCTP, client, frontend)));
            assert_eq!((sent.reason, sent.destination), (Reason::NewFlow, endpoint));
            let reply = world.leave(&with_payload(Segment::later(SCTP, endpoint, client)));
            assert_eq!((reply.reason, reply.source), (Reason::Established, frontend));
        }
        let [client, frontend, endpoint] = places;
        let place = |(address, port): Endpoint, number| (address << 2 | number, port);
        let places = [place(client, 1), place(frontend, 2), place(endpoint, 3)];
        run::<V4>(places, &payload);
        run::<V6>(places, &payload);
    }
}
