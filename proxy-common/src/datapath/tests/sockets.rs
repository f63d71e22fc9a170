//! Sockets of processes: the same frontends, policies and choice as for packets, and what only sockets have.

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    tell::watch,
    world::{BACKEND, CLIENT, NODE, OTHER_BACKEND, OTHER_VIP, STRANGER, TIMEOUTS, VIP, World},
};
use crate::{
    datapath::{
        Reason,
        socket::{self, Socket},
    },
    layout::{
        AT_SOCKET, AddressBytes as _, Counter, LOCAL_PODS, ServiceCounter, ServiceValue, SocketKey, SocketValue,
        TO_BACKEND, TO_FRONTEND, address_flags, service_flags, socket_flags,
    },
    packet::{TCP, UDP},
};

/// The loopback address of the node, and a nodePort.
const LOOPBACK: u128 = 20;
const NODE_PORT: u16 = 30_080;

/// A process with a socket.
struct Process<'w, F: TestFamily> {
    world: &'w World<F>,
    protocol: u8,
    is_host: bool,
    bound: Option<u128>,
    remote: Endpoint,
}

/// What came of a call: the reason, and whom the kernel was told.
type Came = (Reason, Endpoint);

impl<'w, F: TestFamily> Process<'w, F> {
    fn new(world: &'w World<F>, protocol: u8) -> Self {
        Self {
            world,
            protocol,
            is_host: true,
            bound: None,
            remote: (0, 0),
        }
    }

    /// One of a pod.
    fn in_pod(world: &'w World<F>, protocol: u8) -> Self {
        Self {
            is_host: false,
            ..Self::new(world, protocol)
        }
    }

    fn bound(self, address: u128) -> Self {
        Self {
            bound: Some(address),
            ..self
        }
    }

    fn connect(&mut self, to: Endpoint) -> Came {
        self.remote = to;
        let world = self.world;
        (socket::connect(self, world, world), self.remote)
    }

    fn send(&mut self, to: Endpoint) -> Came {
        self.remote = to;
        let world = self.world;
        (socket::send(self, world, world), self.remote)
    }

    /// Who a datagram is from, to the process.
    fn receive(&mut self, from: Endpoint) -> Endpoint {
        self.remote = from;
        let world = self.world;
        let _ = socket::receive(self, world, world);
        self.remote
    }

    /// Who the socket is connected to, to the process.
    fn peer_name(&mut self, peer: Endpoint) -> Endpoint {
        self.remote = peer;
        let world = self.world;
        let _ = socket::peer_name(self, world);
        self.remote
    }

    fn remembered(&self, direction: u8, (address, port): Endpoint) -> Option<SocketValue<F::Address>> {
        let key = SocketKey::new(direction, self.cookie(), self.protocol, (F::address(address), port));
        self.world.remembered.borrow().get(&key).copied()
    }
}

impl<F: TestFamily> Socket<F::Address> for Process<'_, F> {
    fn cookie(&self) -> u64 {
        0x1234_5678_9abc_def0
    }

    fn protocol(&self) -> u8 {
        self.protocol
    }

    fn is_host(&self) -> bool {
        self.is_host
    }

    fn source(&self) -> F::Address {
        self.bound.map(F::address).unwrap_or_default()
    }

    fn remote(&self) -> (F::Address, u16) {
        (F::address(self.remote.0), self.remote.1)
    }

    fn set_remote(&mut self, (address, port): (F::Address, u16)) {
        self.remote = (F::number(&address), port);
    }
}

/// A frontend with these flags, [`BACKEND`] for policy Cluster and [`OTHER_BACKEND`] for policy Local.
fn world<F: TestFamily>(at: Endpoint, flags: u32) -> World<F> {
    let mut world = World::new();
    world.set_members(11, 0, &[BACKEND]);
    world.set_members(12, 0, &[OTHER_BACKEND]);
    world.set_service(at, frontend(flags));
    world.masquerade_with(NODE);
    world.add_address(NODE, address_flags::LOCAL | address_flags::NODE_PORTS);
    world.add_address(LOOPBACK, address_flags::LOCAL | address_flags::LOOPBACK_NODE_PORTS);
    world
}

fn frontend(flags: u32) -> ServiceValue {
    ServiceValue {
        service: 7,
        flags: flags | service_flags::HAS_ENDPOINTS,
        cluster_set: 11,
        cluster_count: 1,
        local_set: 12,
        local_count: 1,
        ..ServiceValue::default()
    }
}

/// A client that keeps its endpoint, of two.
fn world_with_affinity<F: TestFamily>() -> World<F> {
    let mut world = world::<F>(VIP, 0);
    world.set_members(13, 0, &[BACKEND, OTHER_BACKEND]);
    let service = ServiceValue {
        cluster_set: 13,
        cluster_count: 2,
        affinity_timeout: 100,
        ..frontend(0)
    };
    world.set_service(VIP, service);
    world
}

/// Chance that chooses the second of two.
const SECOND: u32 = u32::MAX;

both_families! {
    /// The process doesn't notice: it is connected to the frontend, as far as it is told. No flow is kept, as no packet is
    /// rewritten; the connection is counted.
    fn a_connection_is_to_a_backend_and_known_by_the_frontend<F>() {
        for protocol in [TCP, UDP] {
            let world = world::<F>(VIP, 0);
            let mut process = Process::new(&world, protocol);
            assert_eq!(process.connect(VIP), (Reason::NewFlow, BACKEND));
            assert_eq!(process.peer_name(BACKEND), VIP);
            assert_eq!(process.receive(BACKEND), VIP);
            assert_eq!(world.entries(), 0);
            let connected = ServiceCounter { connections: 1, packets: 0, bytes: 0 };
            assert_eq!(world.counts.borrow()[&7], connected);
            assert_eq!(world.endpoints.borrow().values().collect::<Vec<_>>(), [&connected]);
            let kept = process.remembered(TO_FRONTEND, BACKEND).expect("an entry");
            assert_eq!((kept.service, kept.flags & socket_flags::CONNECTED), (7, socket_flags::CONNECTED));
            assert_eq!(process.remembered(TO_BACKEND, VIP), None);
            // Another socket's is another's.
            let other = Process { protocol: if protocol == TCP { UDP } else { TCP }, ..Process::new(&world, protocol) };
            assert_eq!({ other }.peer_name(BACKEND), BACKEND);
        }
    }

    /// behaviour.md 3.8, 4.9: what is no frontend is left alone; and a backend that is used directly is no frontend's any more.
    fn other_addresses_are_left_alone<F>() {
        let world = world::<F>(VIP, 0);
        let mut process = Process::new(&world, UDP);
        for to in [STRANGER, (VIP.0, 81), (NODE, 22), (LOOPBACK, 22)] {
            assert_eq!(process.connect(to), (Reason::Unrelated, to));
            assert_eq!(process.send(to), (Reason::Unrelated, to));
        }
        assert_eq!(process.send(VIP), (Reason::NewFlow, BACKEND));
        assert_eq!(process.receive(BACKEND), VIP);
        assert_eq!(process.send(BACKEND), (Reason::Unrelated, BACKEND));
        assert_eq!(process.receive(BACKEND), BACKEND);
        // The latest use wins.
        assert_eq!(process.send(VIP), (Reason::Established, BACKEND));
        assert_eq!(process.receive(BACKEND), VIP);
        assert_eq!(process.connect(BACKEND), (Reason::Unrelated, BACKEND));
        assert_eq!(process.peer_name(BACKEND), BACKEND);
        // To a connected socket it is the one that it is connected to.
        assert_eq!(process.connect(VIP), (Reason::NewFlow, BACKEND));
        assert_eq!(process.send(BACKEND), (Reason::Unrelated, BACKEND));
        assert_eq!(process.receive(BACKEND), VIP);
    }

    /// Who watches sees what a process does once for a socket, before there is a packet; and what it is refused.
    fn who_watches_is_told_of_sockets<F>() {
        let mut world = world::<F>(VIP, 0);
        world.set_service(OTHER_VIP, ServiceValue { flags: 0, cluster_count: 0, ..frontend(0) });
        watch(&world, 2, u64::MAX);
        let mut process = Process::new(&world, UDP).bound(NODE);
        assert_eq!(process.send(VIP), (Reason::NewFlow, BACKEND));
        assert_eq!(process.send(VIP), (Reason::Established, BACKEND));
        assert_eq!(process.connect(OTHER_VIP), (Reason::NoEndpoints, OTHER_VIP));
        let address = |number: u128| F::address(number).mapped();
        let told: Vec<_> = world.events.take().into_iter().map(|(place, event)| {
            assert_eq!((place, event.hook, event.protocol, event.service), (2, AT_SOCKET, UDP, 7));
            assert_eq!((event.source, event.source_port), (address(NODE), 0));
            (u32::from(event.reason), event.destination, (event.backend, event.backend_port))
        }).collect();
        assert_eq!(told, [
            (Reason::NewFlow as u32, address(VIP.0), (address(BACKEND.0), BACKEND.1)),
            (Reason::NoEndpoints as u32, address(OTHER_VIP.0), ([0; 16], 0)),
        ]);
    }

    /// behaviour.md 4.1, 4.6: the process is told at once, and it is counted, as there will be no packet.
    fn rule_4_1_what_has_no_endpoint_is_refused<F>() {
        let mut world = world::<F>(VIP, 0);
        world.set_service(VIP, ServiceValue { flags: 0, cluster_count: 0, ..frontend(0) });
        world.set_wildcard(VIP.0);
        for protocol in [TCP, UDP] {
            let mut process = Process::new(&world, protocol);
            assert_eq!(process.connect(VIP), (Reason::NoEndpoints, VIP));
            assert_eq!(process.send(VIP), (Reason::NoEndpoints, VIP));
            assert_eq!(process.connect((VIP.0, 81)), (Reason::NoPort, (VIP.0, 81)));
        }
        let reasons = world.reasons.borrow();
        assert_eq!((reasons[&Reason::NoEndpoints].packets, reasons[&Reason::NoPort].packets), (4, 2));
        // What a cluster address refuses is no service port's.
        let refused = Counter { packets: 4, bytes: 0 };
        assert_eq!(*world.refusals.borrow(), [((frontend(0).service, Reason::NoEndpoints), refused)].into());
        assert!(world.remembered.borrow().is_empty() && world.counts.borrow().is_empty());
    }

    /// behaviour.md 3.10, 4.2, 4.7: what is dropped must look like a timeout. It goes on as it is, and its packets are dropped
    /// and counted.
    fn rule_4_2_what_is_dropped_is_left_to_the_packets<F>() {
        let mut world = world::<F>(VIP, service_flags::LOCAL);
        world.set_service(VIP, ServiceValue { local_count: 0, ..frontend(service_flags::LOCAL) });
        world.set_service(OTHER_VIP, frontend(service_flags::RESTRICTED));
        // Others share its bit in the filter.
        world.set_service((STRANGER.0, 1), frontend(0));
        world.add_service_address(STRANGER.0);
        for protocol in [TCP, UDP] {
            let mut process = Process::new(&world, protocol);
            for (to, reason) in
                [(VIP, Reason::NoLocalEndpoints), (OTHER_VIP, Reason::SourceRefused), (STRANGER, Reason::Unallocated)]
            {
                assert_eq!(process.connect(to), (reason, to));
                assert_eq!(process.send(to), (reason, to));
            }
        }
        assert!(world.refusals.borrow().is_empty(), "counted with the packets");
        assert!(world.reasons.borrow().is_empty());
    }

    /// behaviour.md 4.2: a connected UDP socket would stay without an endpoint for good. It is remembered as connected to what
    /// is no endpoint, so that it is told when the endpoints change.
    fn rule_4_2_a_socket_without_a_local_endpoint_is_remembered<F>() {
        let mut world = world::<F>(VIP, service_flags::LOCAL);
        world.set_service(VIP, ServiceValue { local_count: 0, ..frontend(service_flags::LOCAL) });
        let mut process = Process::new(&world, UDP);
        process.connect(VIP);
        let remembered = process.remembered(TO_FRONTEND, VIP).expect("an entry");
        assert_eq!((remembered.service, remembered.flags), (7, socket_flags::CONNECTED));
        assert_eq!(process.peer_name(VIP), VIP);
    }

    /// behaviour.md 3.10: by the address that the socket is bound to, else that which the kernel would take: the destination
    /// itself if the node has it, so that a balancer's address on the node lets itself in.
    fn rule_3_10_source_ranges_apply_to_the_source_that_a_packet_would_have<F>() {
        let mut world = world::<F>(VIP, service_flags::RESTRICTED);
        let connected = |world: &World<F>, bound: Option<u128>| {
            let came = Process { bound, ..Process::new(world, TCP) }.connect(VIP);
            came.0
        };
        world.add_source(7, CLIENT);
        assert_eq!(connected(&world, None), Reason::SourceRefused);
        assert_eq!(connected(&world, Some(CLIENT)), Reason::NewFlow);
        world.add_source(7, VIP.0);
        assert_eq!(connected(&world, None), Reason::SourceRefused);
        world.add_address(VIP.0, address_flags::LOCAL);
        assert_eq!(connected(&world, None), Reason::NewFlow);
        assert_eq!(connected(&world, Some(NODE)), Reason::SourceRefused);
        world.add_source(7, NODE);
        assert_eq!(connected(&world, Some(NODE)), Reason::NewFlow);
    }

    /// behaviour.md 5.6: the node itself gets the endpoints of policy Cluster at addresses for outsiders, those of policy
    /// Local at a cluster address (3.1).
    fn rule_5_6_the_node_gets_the_endpoints_that_its_packets_would<F>() {
        let mut world = world::<F>(VIP, service_flags::LOCAL | service_flags::SHORT_CIRCUIT);
        world.set_service(OTHER_VIP, frontend(service_flags::LOCAL));
        let mut process = Process::new(&world, TCP);
        assert_eq!(process.connect(VIP), (Reason::NewFlow, BACKEND));
        assert_eq!(process.connect(OTHER_VIP), (Reason::NewFlow, OTHER_BACKEND));
        // A process that answers for an address that is not the node's is no part of it.
        assert_eq!(Process::new(&world, TCP).bound(CLIENT).connect(VIP), (Reason::NewFlow, OTHER_BACKEND));
    }

    /// behaviour.md 6.1: by the client's address, shared with packets that come from there.
    fn rule_6_1_affinity_is_by_source_address_and_shared_with_packets<F>() {
        let world = world_with_affinity::<F>();
        world.random.borrow_mut().push_back(SECOND);
        assert_eq!(Process::new(&world, TCP).connect(VIP), (Reason::NewFlow, OTHER_BACKEND));
        assert_eq!(Process::new(&world, UDP).send(VIP), (Reason::NewFlow, OTHER_BACKEND));
        assert_eq!(world.enter(&Segment::first(TCP, (NODE, 40_000), VIP)).destination, OTHER_BACKEND);
        assert_eq!(Process::new(&world, TCP).bound(NODE).connect(VIP), (Reason::NewFlow, OTHER_BACKEND));
        // Another client is on its own.
        assert_eq!(Process::new(&world, TCP).bound(CLIENT).connect(VIP), (Reason::NewFlow, BACKEND));
    }

    /// behaviour.md 3.6, 3.7: nodePorts at the node's addresses, and to its processes at loopback addresses; never to packets,
    /// and not at the loopback address of a pod, which is the pod's own.
    fn rule_3_7_node_ports_are_served_at_loopback_to_processes_of_the_host<F>() {
        let world = world::<F>((0, NODE_PORT), 0);
        for protocol in [TCP, UDP] {
            for address in [NODE, LOOPBACK] {
                let to = (address, NODE_PORT);
                let mut process = Process::new(&world, protocol);
                assert_eq!(process.connect(to), (Reason::NewFlow, BACKEND));
                assert_eq!(process.peer_name(BACKEND), to);
                assert_eq!(process.send(to), (Reason::NewFlow, BACKEND));
                assert_eq!(process.receive(BACKEND), to);
            }
            let at_loopback = (LOOPBACK, NODE_PORT);
            assert_eq!(Process::in_pod(&world, protocol).connect(at_loopback), (Reason::Unrelated, at_loopback));
            let packet = Segment::first(protocol, (CLIENT, 40_000), at_loopback);
            assert_eq!(world.enter(&packet).reason, Reason::NoFrontend);
        }
    }

    /// behaviour.md 2.11, 7.10: datagrams of an unconnected socket keep their backend as a flow does: as long as it is used,
    /// longer when it was answered.
    fn rule_2_11_an_unconnected_socket_keeps_its_backend_while_it_is_used<F>() {
        let mut world = world::<F>(VIP, 0);
        world.set_members(13, 0, &[BACKEND, OTHER_BACKEND]);
        world.set_service(VIP, ServiceValue { cluster_set: 13, cluster_count: 2, ..frontend(0) });
        let mut process = Process::new(&world, UDP);
        let later = |ticks: u32| world.now.set(world.now.get() + ticks);
        let next = |random: u32| world.random.replace([random].into());
        assert_eq!(process.send(VIP), (Reason::NewFlow, BACKEND));
        for _ in 0..3 {
            later(TIMEOUTS.udp_opening);
            next(SECOND);
            assert_eq!(process.send(VIP), (Reason::Established, BACKEND));
        }
        later(TIMEOUTS.udp_opening + 1);
        next(SECOND);
        assert_eq!(process.send(VIP), (Reason::NewFlow, OTHER_BACKEND));
        assert_eq!(process.receive(OTHER_BACKEND), VIP);
        later(TIMEOUTS.udp_established);
        next(0);
        assert_eq!(process.send(VIP), (Reason::Established, OTHER_BACKEND));
        // An answer is a use as well.
        later(TIMEOUTS.udp_established);
        assert_eq!(process.receive(OTHER_BACKEND), VIP);
        later(TIMEOUTS.udp_established);
        assert_eq!(process.send(VIP), (Reason::Established, OTHER_BACKEND));
        later(TIMEOUTS.udp_established + 1);
        assert_eq!(process.send(VIP), (Reason::NewFlow, BACKEND));
        assert_eq!(world.counts.borrow()[&7].connections, 3);
    }

    /// One socket asks several Services, and is told which one answers.
    fn an_unconnected_socket_serves_several_frontends<F>() {
        let mut world = world::<F>(VIP, 0);
        world.serve(OTHER_VIP, &[OTHER_BACKEND]);
        let mut process = Process::new(&world, UDP);
        assert_eq!(process.send(VIP), (Reason::NewFlow, BACKEND));
        assert_eq!(process.send(OTHER_VIP), (Reason::NewFlow, OTHER_BACKEND));
        assert_eq!(process.receive(BACKEND), VIP);
        assert_eq!(process.receive(OTHER_BACKEND), OTHER_VIP);
        // Of two frontends with one backend the one that was used last: its answers don't tell.
        world.serve(OTHER_VIP, &[BACKEND]);
        let mut process = Process::new(&world, UDP).bound(NODE);
        world.remembered.borrow_mut().clear();
        for vip in [VIP, OTHER_VIP, VIP] {
            assert_eq!(process.send(vip).1, BACKEND);
            assert_eq!(process.receive(BACKEND), vip);
        }
    }

    /// behaviour.md 7.3: when the entry is taken away, as its backend serves no more, the next datagram goes elsewhere.
    fn rule_7_3_without_its_entry_the_next_datagram_is_resolved_anew<F>() {
        let mut world = world::<F>(VIP, 0);
        assert_eq!(Process::new(&world, UDP).send(VIP), (Reason::NewFlow, BACKEND));
        world.set_members(13, 0, &[OTHER_BACKEND]);
        world.set_service(VIP, ServiceValue { cluster_set: 13, ..frontend(0) });
        assert_eq!(Process::new(&world, UDP).send(VIP), (Reason::Established, BACKEND));
        world.remembered.borrow_mut().clear();
        assert_eq!(Process::new(&world, UDP).send(VIP), (Reason::NewFlow, OTHER_BACKEND));
    }

    /// A pod's address is not known before it has sent something: where that matters, the edge serves its packets.
    fn sockets_of_pods_are_served_where_it_does_not_matter_who_they_are<F>() {
        let free = [0, service_flags::LOCAL, service_flags::MASQUERADE_OUTSIDERS];
        for (flags, backend) in free.into_iter().zip([BACKEND, OTHER_BACKEND, BACKEND]) {
            let world = world::<F>(VIP, flags);
            assert_eq!(Process::in_pod(&world, TCP).connect(VIP), (Reason::NewFlow, backend));
        }
        for flags in [
            service_flags::RESTRICTED,
            service_flags::LOCAL | service_flags::SHORT_CIRCUIT,
            service_flags::MASQUERADE,
            service_flags::LOCAL | service_flags::MASQUERADE_HOST,
        ] {
            let world = world::<F>(VIP, flags);
            assert_eq!(Process::in_pod(&world, TCP).connect(VIP), (Reason::Unrelated, VIP));
        }
        let world = world_with_affinity::<F>();
        assert_eq!(Process::in_pod(&world, UDP).send(VIP), (Reason::Unrelated, VIP));
        assert!(world.remembered.borrow().is_empty());
    }

    /// behaviour.md 5.8: in a cluster whose pods' range holds the node's addresses, the node is a pod to it.
    fn rule_5_8_a_node_in_the_range_of_pods_counts_as_one<F>() {
        let mut world = world::<F>(VIP, service_flags::LOCAL | service_flags::SHORT_CIRCUIT);
        world.add_source(LOCAL_PODS, CLIENT);
        assert_eq!(Process::new(&world, TCP).bound(CLIENT).connect(VIP), (Reason::NewFlow, BACKEND));
    }

    /// An entry that is replaced while it is read is read again.
    fn a_torn_entry_is_read_again<F>() {
        let world = world::<F>(VIP, 0);
        world.torn.set(1);
        world.random.borrow_mut().push_back(SECOND);
        assert_eq!(Process::new(&world, TCP).connect(VIP), (Reason::NewFlow, BACKEND));
        world.torn.set(2);
        world.random.borrow_mut().extend([SECOND, SECOND]);
        assert_eq!(Process::new(&world, TCP).connect(VIP), (Reason::EndpointMissing, VIP));
    }
}
