//! Which frontend a packet is for, who may use it, which endpoints apply, and who is hidden from them.

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{BACKEND, CLIENT, NODE, OTHER_BACKEND, STRANGER, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{INGRESS, LOCAL_PODS, ServiceValue, address_flags, device_flags, flow_flags, service_flags},
    packet::{BufferPacket, TCP, UDP},
};

const HERE: Endpoint = (CLIENT, 40_000);
/// The endpoint sets of these tests: [`BACKEND`] for policy Cluster, [`OTHER_BACKEND`] for policy Local.
const CLUSTER_SET: u32 = 11;
const LOCAL_SET: u32 = 12;

/// A frontend with these flags and both lists.
fn frontend(flags: u32) -> ServiceValue {
    ServiceValue {
        service: 7,
        flags: flags | service_flags::HAS_ENDPOINTS,
        cluster_set: CLUSTER_SET,
        cluster_count: 1,
        local_set: LOCAL_SET,
        local_count: 1,
        ..ServiceValue::default()
    }
}

fn world<F: TestFamily>(at: Endpoint, flags: u32) -> World<F> {
    let mut world = World::new();
    world.set_members(CLUSTER_SET, 0, &[BACKEND]);
    world.set_members(LOCAL_SET, 0, &[OTHER_BACKEND]);
    world.set_service(at, frontend(flags));
    world
}

/// Where the first packet of a connection goes, and whether its client is hidden there.
fn forwarded<F: TestFamily>(world: &World<F>, protocol: u8, source: Endpoint, to: Endpoint) -> (Endpoint, bool) {
    let sent = world.enter(&Segment::first(protocol, source, to));
    assert_eq!(sent.reason, Reason::NewFlow, "{source:?} to {to:?}");
    let flow = world.entry(&World::<F>::key(INGRESS, protocol, source, to));
    let flags = flow.expect("a flow").flags;
    (sent.destination, flags & flow_flags::MASQUERADED != 0)
}

/// What becomes of a packet of a protocol without ports.
fn without_ports<F: TestFamily>(world: &World<F>, to: Endpoint) -> Reason {
    /// Generic routing encapsulation (IANA).
    const GRE: u8 = 47;
    let mut bytes = Segment::first(GRE, HERE, to).bytes::<F>();
    let (_, reason) = world.run(INGRESS, &mut BufferPacket::new(&mut bytes));
    reason
}

/// Who a client is: nobody in particular, a local pod by its address, a local pod by the device it comes from, the node.
fn clients<F: TestFamily>(at: Endpoint, flags: u32) -> [World<F>; 4] {
    let [outsider, mut by_source, by_device, mut host] = [(); 4].map(|()| world::<F>(at, flags));
    by_source.add_source(LOCAL_PODS, CLIENT);
    by_device.device_flags.set(device_flags::LOCAL_TRAFFIC);
    host.add_address(CLIENT, address_flags::LOCAL);
    [outsider, by_source, by_device, host]
}

both_families! {
    /// behaviour.md 3.4, 3.6, 3.8: a nodePort is served on the addresses that nodePorts are served on, after frontends
    /// with that address; on others the node's own processes may have the port.
    fn node_ports_are_served_on_chosen_addresses<F>() {
        for protocol in [TCP, UDP] {
            let mut world = world::<F>((0, 30_080), 0);
            world.add_address(NODE, address_flags::LOCAL | address_flags::NODE_PORTS);
            world.add_address(NODE + 10, address_flags::LOCAL);
            assert_eq!(forwarded(&world, protocol, HERE, (NODE, 30_080)), (BACKEND, false));
            let reason = |to| world.enter(&Segment::first(protocol, HERE, to)).reason;
            assert_eq!(reason((NODE + 10, 30_080)), Reason::NoFrontend);
            assert_eq!(reason((NODE, 30_081)), Reason::NoFrontend);
            assert_eq!(reason((STRANGER.0, 30_080)), Reason::Unrelated);
            world.set_service((NODE, 30_080), ServiceValue { cluster_set: LOCAL_SET, ..frontend(0) });
            assert_eq!(forwarded(&world, protocol, (CLIENT, 40_001), (NODE, 30_080)), (OTHER_BACKEND, false));
        }
    }

    /// behaviour.md 4.6, 4.9: a cluster address refuses what none of its ports is for; other addresses don't.
    fn wrong_ports_of_a_cluster_address_are_refused<F>() {
        let mut world = world::<F>(VIP, 0);
        let other = (VIP.0, 81);
        for protocol in [TCP, UDP] {
            assert_eq!(world.enter(&Segment::first(protocol, HERE, other)).reason, Reason::NoFrontend);
        }
        world.set_wildcard(VIP.0);
        // Of a Service range, as cluster addresses are: but this one a Service has (4.7).
        world.add_service_address(VIP.0);
        for protocol in [TCP, UDP] {
            assert_eq!(world.enter(&Segment::first(protocol, HERE, other)).reason, Reason::NoPort);
        }
        // No protocol is excepted.
        assert_eq!(without_ports(&world, VIP), Reason::NoPort);
        assert_eq!(forwarded(&world, TCP, HERE, VIP), (BACKEND, false));
        assert_eq!(without_ports(&world, STRANGER), Reason::Unrelated);
    }

    /// behaviour.md 4.7: what the cluster may hand out to Services, and has not, leads nowhere.
    fn unallocated_service_addresses_drop<F>() {
        let mut world = world::<F>(VIP, 0);
        for address in [VIP.0, STRANGER.0] {
            world.add_service_address(address);
        }
        for protocol in [TCP, UDP] {
            assert_eq!(world.enter(&Segment::first(protocol, HERE, STRANGER)).reason, Reason::Unallocated);
        }
        assert_eq!(without_ports(&world, STRANGER), Reason::Unallocated);
        // A filter bit that another address has set makes no difference.
        world.set_service((STRANGER.0, 1), ServiceValue::default());
        for protocol in [TCP, UDP] {
            assert_eq!(world.enter(&Segment::first(protocol, HERE, STRANGER)).reason, Reason::Unallocated);
        }
        assert_eq!(without_ports(&world, STRANGER), Reason::Unallocated);
        assert_eq!(forwarded(&world, TCP, HERE, VIP), (BACKEND, false));
    }

    /// behaviour.md 3.10: before anything else, even where there is no endpoint; and for new connections only.
    fn sources_are_refused_first<F>() {
        let mut world = world::<F>(VIP, service_flags::RESTRICTED);
        world.add_source(7, CLIENT + 20);
        world.add_source(8, CLIENT);
        // A pod must be let in like everybody else.
        world.add_source(LOCAL_PODS, CLIENT);
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::SourceRefused);
        assert_eq!(forwarded(&world, TCP, (CLIENT + 20, 40_000), VIP), (BACKEND, false));
        world.set_service(VIP, ServiceValue { service: 7, flags: service_flags::RESTRICTED, ..ServiceValue::default() });
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::SourceRefused);
        assert_eq!(world.enter(&Segment::first(UDP, (CLIENT + 20, 1), VIP)).reason, Reason::NoEndpoints);
        let later = Segment::later(TCP, (CLIENT + 20, 40_000), VIP);
        assert_eq!(world.enter(&later).reason, Reason::Established);
    }

    /// behaviour.md 5.3: pods are seen as themselves, everybody else as the node.
    fn outsiders_are_hidden_from_cluster_addresses<F>() {
        let worlds = clients::<F>(VIP, service_flags::MASQUERADE_OUTSIDERS);
        let seen = worlds.each_ref().map(|world| forwarded(world, TCP, HERE, VIP));
        assert_eq!(seen, [(BACKEND, true), (BACKEND, false), (BACKEND, false), (BACKEND, true)]);
    }

    /// behaviour.md 5.3, 5.4, 5.7: masqueradeAll, and external addresses with policy Cluster.
    fn everybody_is_hidden<F>() {
        let worlds = clients::<F>(VIP, service_flags::MASQUERADE);
        let seen = worlds.each_ref().map(|world| forwarded(world, UDP, HERE, VIP));
        assert_eq!(seen, [(BACKEND, true); 4]);
    }

    /// behaviour.md 3.1, 4.2: internalTrafficPolicy Local has no exceptions.
    fn policy_local_is_for_everybody<F>() {
        let worlds = clients::<F>(VIP, service_flags::LOCAL);
        let seen = worlds.each_ref().map(|world| forwarded(world, TCP, HERE, VIP));
        assert_eq!(seen, [(OTHER_BACKEND, false); 4]);
        let mut world = world::<F>(VIP, 0);
        world.set_service(VIP, ServiceValue { local_count: 0, ..frontend(service_flags::LOCAL) });
        assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::NoLocalEndpoints);
    }

    /// behaviour.md 5.5, 5.6, 4.3, 5.11: externalTrafficPolicy Local keeps what comes from outside on this node, as it is; local
    /// pods and the node itself reach every endpoint.
    fn external_policy_local_has_short_circuits<F>() {
        let flags = service_flags::LOCAL | service_flags::SHORT_CIRCUIT | service_flags::MASQUERADE_HOST;
        let worlds = clients::<F>(VIP, flags);
        let seen = worlds.each_ref().map(|world| forwarded(world, TCP, HERE, VIP));
        assert_eq!(seen, [(OTHER_BACKEND, false), (BACKEND, false), (BACKEND, false), (BACKEND, true)]);
        // A process of the node that has an address of the pods' is taken for a pod.
        let mut both = world::<F>(VIP, flags);
        both.add_source(LOCAL_PODS, CLIENT);
        both.add_address(CLIENT, address_flags::LOCAL);
        assert_eq!(forwarded(&both, TCP, HERE, VIP), (BACKEND, false));
        for (index, mut world) in worlds.into_iter().enumerate() {
            world.set_service(VIP, ServiceValue { local_count: 0, ..frontend(flags) });
            let reason = world.enter(&Segment::first(UDP, HERE, VIP)).reason;
            assert_eq!(reason, if index == 0 { Reason::NoLocalEndpoints } else { Reason::NewFlow });
        }
    }

    /// behaviour.md 4.1, 4.5: without any endpoint there is nothing to choose a policy for.
    fn no_endpoint_at_all_refuses<F>() {
        for flags in [0, service_flags::LOCAL, service_flags::LOCAL | service_flags::SHORT_CIRCUIT] {
            let mut world = world::<F>(VIP, flags);
            world.set_service(VIP, ServiceValue { flags, ..ServiceValue::default() });
            assert_eq!(world.enter(&Segment::first(TCP, HERE, VIP)).reason, Reason::NoEndpoints);
        }
    }

    /// behaviour.md 5.10: what goes to a process of the node leaves by no edge, and it sees the client as it is.
    fn backends_of_the_node_see_their_clients<F>() {
        let backend = (NODE, 8080);
        for protocol in [TCP, UDP] {
            let mut world = World::<F>::new();
            world.masquerade_with(NODE);
            world.set_members(CLUSTER_SET, 0, &[backend]);
            world.set_service(VIP, frontend(service_flags::MASQUERADE));
            world.add_address(NODE, address_flags::LOCAL);
            assert_eq!(forwarded(&world, protocol, HERE, VIP), (backend, true));
            for tick in [100, 101] {
                world.now.set(tick);
                let sent = world.enter(&Segment::later(protocol, HERE, VIP));
                assert_eq!((sent.source, sent.destination), (HERE, backend));
                let answer = world.leave(&Segment::later(protocol, backend, HERE));
                assert_eq!((answer.source, answer.destination), (VIP, HERE));
            }
        }
    }

    /// A process in the host's network is a backend, and its address a nodePort's: a client that goes on to talk to it
    /// directly must see it as it is.
    fn direct_connections_to_the_node_retire_flows<F>() {
        let backend = (NODE, 8080);
        let mut world = World::<F>::new();
        world.set_members(CLUSTER_SET, 0, &[backend]);
        world.set_service((0, 30_080), frontend(0));
        world.add_address(NODE, address_flags::LOCAL | address_flags::NODE_PORTS);
        assert_eq!(forwarded(&world, TCP, HERE, (NODE, 30_080)), (backend, false));
        let answer = Segment::later(TCP, backend, HERE);
        assert_eq!(world.leave(&answer).source, (NODE, 30_080));
        assert_eq!(world.enter(&Segment::first(TCP, HERE, backend)).reason, Reason::FlowRetired);
        assert_eq!(world.leave(&answer).source, backend);
    }
}
