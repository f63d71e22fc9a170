//! Tables in memory, a clock that stands still until it is set, and chance as scripted.

mod tables;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    rc::Rc,
};

use super::segment::{Endpoint, Segment, TestFamily, assert_checksums, endpoints};
use crate::{
    datapath::{Reason, Scratch, Verdict, egress, ingress},
    layout::{
        AffinityKey, AffinityValue, Backend, Counter, EGRESS, EndpointKey, Event, FlowKey, FlowValue, FragmentKey,
        FragmentValue, HeldFragment, HeldKey, INGRESS, Member, MemberKey, Opening, ServiceCounter, ServiceKey,
        ServiceValue, SlotKey, SocketKey, SocketValue, Timeouts, Watcher, service_flags,
    },
    packet::{BufferPacket, SCTP, TCP, UDP},
};

/// A client.
pub(super) const CLIENT: u128 = 1;
/// A frontend, and another that tests may add.
pub(super) const VIP: Endpoint = (2, 80);
/// See [`VIP`].
pub(super) const OTHER_VIP: Endpoint = (3, 80);
/// An endpoint, and another that tests may add.
pub(super) const BACKEND: Endpoint = (4, 8080);
/// See [`BACKEND`].
pub(super) const OTHER_BACKEND: Endpoint = (5, 8080);
/// The masquerade address of the edge, if it has one.
pub(super) const NODE: u128 = 6;
/// An address of no Service.
pub(super) const STRANGER: Endpoint = (7, 443);

/// Timeouts that tell states apart.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    tcp_opening: 10,
    tcp_answered: 15,
    tcp_established: 1000,
    tcp_half_closed: 500,
    tcp_closing: 20,
    udp_opening: 30,
    udp_established: 40,
    sctp_opening: 50,
    sctp_established: 60,
    sctp_closing: 70,
};

/// Flows by key.
type Flows<A> = Rc<RefCell<HashMap<FlowKey<A>, FlowValue<A>>>>;

/// Endpoints that clients used last.
type Affinities<A> = HashMap<AffinityKey<A>, AffinityValue<A>>;

/// What stands in place of addresses to sockets.
type Remembered<A> = HashMap<SocketKey<A>, SocketValue<A>>;

/// What becomes of fragments, by what those of a packet share.
type Fragments<A> = HashMap<FragmentKey<A>, FragmentValue<A>>;

/// All that the datapath needs, for one edge.
pub(super) struct World<F: TestFamily> {
    services: HashMap<ServiceKey<F::Address>, ServiceValue>,
    slots: HashMap<SlotKey, Backend<F::Address>>,
    /// How many look-ups of a frontend come while its entry is being replaced, half of which is seen
    pub(super) torn: Cell<u32>,
    affinities: RefCell<Affinities<F::Address>>,
    members: HashMap<MemberKey<F::Address>, Member>,
    /// What becomes of fragments
    pub(super) fragments: RefCell<Fragments<F::Address>>,
    /// Fragments that wait
    pub(super) held: RefCell<BTreeMap<HeldKey, HeldFragment>>,
    /// Room for these
    pub(super) held_capacity: Cell<usize>,
    /// A packet that comes to the ingress hook on another CPU while a fragment is put into its table
    pub(super) meanwhile: RefCell<Option<(Moment, Vec<u8>)>>,
    /// What became of that packet, and those that it sent to the hook again
    pub(super) elsewhere: RefCell<Vec<Vec<u8>>>,
    /// Addresses that a service id, or the cluster's pods, have as sources
    sources: HashSet<(u32, F::Address)>,
    /// The node's own addresses
    addresses: HashMap<F::Address, u32>,
    /// Addresses of the Service range
    service_addresses: HashSet<F::Address>,
    /// The device's flags
    pub(super) device_flags: Cell<u32>,
    /// Flags of devices that have others
    pub(super) flags_of: RefCell<HashMap<u32, u32>>,
    /// What sockets are connected to or send to
    pub(super) remembered: RefCell<Remembered<F::Address>>,
    /// Keys of packets that sockets of the node get
    sockets: HashSet<FlowKey<F::Address>>,
    frontends: HashSet<F::Address>,
    backends: HashSet<F::Address>,
    scratch: Cell<Scratch<F::Address>>,
    pub(super) flows: Flows<F::Address>,
    /// Halves that the previous generation of programs has
    pub(super) previous: RefCell<HashSet<FlowKey<F::Address>>>,
    /// Flows opened, the oldest first
    pub(super) openings: RefCell<VecDeque<Opening<F::Address>>>,
    /// How many there would be room for in the kernel
    pub(super) opening_slots: Cell<usize>,
    /// How many of them were taken since a flow was given up
    pub(super) looks: Cell<usize>,
    /// Room in the flow table
    pub(super) capacity: Cell<usize>,
    pub(super) masquerade: Option<u128>,
    pub(super) now: Cell<u32>,
    /// Nanoseconds since the tick began
    pub(super) nanoseconds: Cell<u64>,
    answers_full: Cell<u64>,
    /// Random numbers to come; 0 when there are no more
    pub(super) random: RefCell<VecDeque<u32>>,
    pub(super) reasons: RefCell<BTreeMap<Reason, Counter>>,
    pub(super) counts: RefCell<BTreeMap<u32, ServiceCounter>>,
    /// Refused packets by service port and reason
    pub(super) refusals: RefCell<BTreeMap<(u32, Reason), Counter>>,
    /// Traffic by endpoint
    pub(super) endpoints: RefCell<BTreeMap<EndpointKey, ServiceCounter>>,
    /// Who watches, by place
    pub(super) watchers: RefCell<BTreeMap<u32, Watcher>>,
    /// What they were told, by place
    pub(super) events: RefCell<Vec<(u32, Event)>>,
    /// What there was no room for, by place
    pub(super) events_lost: RefCell<BTreeMap<u32, u64>>,
    /// Room for events
    pub(super) event_room: Cell<usize>,
}

/// When something happens meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Before,
    After,
}

/// What came of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) reason: Reason,
    pub(super) source: Endpoint,
    pub(super) destination: Endpoint,
}

impl<F: TestFamily> World<F> {
    /// A world without Services.
    pub(super) fn new() -> Self {
        Self {
            services: HashMap::new(),
            slots: HashMap::new(),
            torn: Cell::new(0),
            affinities: RefCell::default(),
            members: HashMap::new(),
            fragments: RefCell::default(),
            held: RefCell::default(),
            held_capacity: Cell::new(usize::MAX),
            meanwhile: RefCell::default(),
            elsewhere: RefCell::default(),
            sources: HashSet::new(),
            addresses: HashMap::new(),
            service_addresses: HashSet::new(),
            device_flags: Cell::new(0),
            flags_of: RefCell::default(),
            remembered: RefCell::default(),
            sockets: HashSet::new(),
            frontends: HashSet::new(),
            backends: HashSet::new(),
            flows: Flows::default(),
            openings: RefCell::default(),
            opening_slots: Cell::new(usize::MAX),
            looks: Cell::new(0),
            capacity: Cell::new(usize::MAX),
            masquerade: None,
            scratch: Cell::default(),
            now: Cell::new(100),
            nanoseconds: Cell::new(0),
            answers_full: Cell::new(0),
            random: RefCell::default(),
            reasons: RefCell::default(),
            counts: RefCell::default(),
            refusals: RefCell::default(),
            endpoints: RefCell::default(),
            previous: RefCell::default(),
            watchers: RefCell::default(),
            events: RefCell::default(),
            events_lost: RefCell::default(),
            event_room: Cell::new(usize::MAX),
        }
    }

    /// A world where [`VIP`] has the endpoint [`BACKEND`].
    pub(super) fn with_service() -> Self {
        let mut world = Self::new();
        world.serve(VIP, &[BACKEND]);
        world
    }

    /// The same, and every client of it is masqueraded with [`NODE`].
    pub(super) fn masquerading() -> Self {
        let mut world = Self::with_service();
        world.masquerade_with(NODE);
        let service = ServiceValue {
            service: 2,
            flags: service_flags::MASQUERADE,
            cluster_set: 2,
            cluster_count: 1,
            ..ServiceValue::default()
        };
        world.set_service(VIP, service);
        world
    }

    /// Adds a frontend for TCP, UDP and SCTP; the number of its address is its service id and set.
    pub(super) fn serve(&mut self, frontend: Endpoint, endpoints: &[Endpoint]) {
        self.serve_as(u32::try_from(frontend.0).expect("a small number"), frontend, endpoints);
    }

    /// [`World::serve`] with this service id and set.
    pub(super) fn serve_as(&mut self, id: u32, frontend: Endpoint, endpoints: &[Endpoint]) {
        let service = ServiceValue {
            service: id,
            cluster_set: id,
            cluster_count: u32::try_from(endpoints.len()).expect("a short list"),
            ..ServiceValue::default()
        };
        self.set_service(frontend, service);
        self.set_endpoints(id, endpoints);
    }

    /// Writes an entry for a frontend, for TCP, UDP and SCTP.
    pub(super) fn set_service(&mut self, (address, port): Endpoint, service: ServiceValue) {
        let address = F::address(address);
        self.frontends.insert(address);
        for protocol in [TCP, UDP, SCTP] {
            self.services.insert(ServiceKey::new(address, port, protocol), service);
        }
    }

    /// Answers for the ports of an address that no Service has.
    pub(super) fn set_wildcard(&mut self, address: u128) {
        let address = F::address(address);
        self.frontends.insert(address);
        self.services
            .insert(ServiceKey::wildcard(address), ServiceValue::default());
    }

    /// Adds endpoints to a set that [`World::serve_as`] made or that is new, and lets affinity lead to them.
    pub(super) fn set_members(&mut self, set: u32, since: u32, endpoints: &[Endpoint]) {
        self.set_endpoints(set, endpoints);
        for (address, port) in endpoints {
            let key = MemberKey::new(set, F::address(*address), *port);
            self.members.insert(key, Member { since });
        }
    }

    /// Writes the slots of a set.
    fn set_endpoints(&mut self, set: u32, endpoints: &[Endpoint]) {
        for (index, (address, port)) in (0..).zip(endpoints) {
            let address = F::address(*address);
            self.backends.insert(address);
            let backend = Backend {
                address,
                port: *port,
                reserved: 0,
            };
            self.slots.insert(SlotKey { set, index }, backend);
        }
    }

    /// Lets an address in as a source of a service id, or as a local pod's.
    pub(super) fn add_source(&mut self, service: u32, address: u128) {
        self.sources.insert((service, F::address(address)));
    }

    /// Makes an address the node's own.
    pub(super) fn add_address(&mut self, address: u128, flags: u32) {
        let address = F::address(address);
        self.frontends.insert(address);
        self.addresses.insert(address, flags);
    }

    /// Makes an address one of the Service range.
    pub(super) fn add_service_address(&mut self, address: u128) {
        self.service_addresses.insert(F::address(address));
    }

    /// Opens a socket of the node.
    pub(super) fn add_socket(&mut self, protocol: u8, local: Endpoint, remote: Endpoint) {
        self.sockets.insert(Self::key(INGRESS, protocol, remote, local));
    }

    /// Gives the edge a masquerade address: one of the node's own, so that packets to it are looked up.
    pub(super) fn masquerade_with(&mut self, address: u128) {
        self.masquerade = Some(address);
        self.frontends.insert(F::address(address));
    }

    /// Sends bytes through the hook of a direction.
    pub(super) fn run(&self, direction: u8, packet: &mut BufferPacket<'_>) -> (Verdict, Reason) {
        let outcome = if direction == INGRESS {
            ingress::<F, _, _, _>(packet, self, self)
        } else {
            egress::<F, _, _, _>(packet, self, self)
        };
        (outcome.verdict, outcome.reason)
    }

    /// Lets happen what is to happen at that moment.
    fn happen(&self, moment: Moment) {
        let next = self.meanwhile.borrow_mut().take_if(|(when, _)| *when == moment);
        if let Some((_, mut bytes)) = next {
            let mut resent = |bytes: &[u8]| self.elsewhere.borrow_mut().push(bytes.to_vec());
            let (verdict, reason) = self.run(INGRESS, &mut BufferPacket::with_resent(&mut bytes, &mut resent));
            assert_eq!(verdict, Verdict::Rewrite, "{reason}");
            self.elsewhere.borrow_mut().insert(0, bytes);
        }
    }

    /// Sends a packet through the hook of a direction; its checksums must be right afterwards, and it must be untouched
    /// unless it is to be rewritten.
    pub(super) fn send(&self, direction: u8, segment: &Segment) -> Sent {
        let before = segment.bytes::<F>();
        let mut bytes = before.clone();
        let (verdict, reason) = self.run(direction, &mut BufferPacket::new(&mut bytes));
        assert_eq!(verdict, reason.verdict());
        if verdict != Verdict::Rewrite {
            assert_eq!(bytes, before, "{reason}: untouched");
        }
        assert_checksums::<F>(&mut bytes);
        let (source, destination) = endpoints::<F>(&mut bytes);
        Sent {
            reason,
            source,
            destination,
        }
    }

    /// Sends a packet into the node.
    pub(super) fn enter(&self, segment: &Segment) -> Sent {
        self.send(INGRESS, segment)
    }

    /// Sends a packet out of the node.
    pub(super) fn leave(&self, segment: &Segment) -> Sent {
        self.send(EGRESS, segment)
    }

    /// Key of a flow.
    pub(super) fn key(direction: u8, protocol: u8, source: Endpoint, destination: Endpoint) -> FlowKey<F::Address> {
        let endpoint = |(address, port): Endpoint| (F::address(address), port);
        FlowKey::new(direction, protocol, endpoint(source), endpoint(destination))
    }

    /// The entry of a flow.
    pub(super) fn entry(&self, key: &FlowKey<F::Address>) -> Option<FlowValue<F::Address>> {
        self.flows.borrow().get(key).copied()
    }

    /// Number of entries in the flow table.
    pub(super) fn entries(&self) -> usize {
        self.flows.borrow().len()
    }
}
