//! Clients that keep their endpoint (behaviour.md 6).

use super::{
    both_families,
    segment::{Endpoint, Segment, TestFamily},
    world::{CLIENT, OTHER_VIP, VIP, World},
};
use crate::{
    datapath::Reason,
    layout::{ServiceValue, Timeouts, service_flags},
    packet::{TCP, UDP},
};

const SET: u32 = 11;
const TIMEOUT: u32 = 50;

fn endpoints(count: u8) -> Vec<Endpoint> {
    (0..count).map(|number| (100 + u128::from(number), 8080)).collect()
}

fn frontend(service: u32, set: u32, endpoints: &[Endpoint]) -> ServiceValue {
    ServiceValue {
        service,
        flags: service_flags::HAS_ENDPOINTS,
        cluster_set: set,
        cluster_count: u32::try_from(endpoints.len()).expect("a short list"),
        affinity_timeout: TIMEOUT,
        ..ServiceValue::default()
    }
}

/// [`VIP`] with ten endpoints that keep their clients.
fn world<F: TestFamily>() -> World<F> {
    let mut world = World::new();
    let endpoints = endpoints(10);
    world.set_members(SET, 0, &endpoints);
    world.set_service(VIP, frontend(7, SET, &endpoints));
    world
}

/// The endpoint of a new connection, were chance to pick the one with this number of ten.
fn connect<F: TestFamily>(world: &World<F>, client: u128, port: u16, to: Endpoint, chance: u32) -> u128 {
    world.random.borrow_mut().clear();
    world.random.borrow_mut().push_back(u32::MAX / 10 * chance + 1000);
    let sent = world.enter(&Segment::first(TCP, (client, port), to));
    assert_eq!(sent.reason, Reason::NewFlow);
    sent.destination.0 - 100
}

both_families! {
    /// behaviour.md 6.1: by the client's address, whatever its port, on all frontends of the service port.
    fn rule_6_1_client_keeps_its_endpoint<F>() {
        let mut world = world::<F>();
        world.set_service(OTHER_VIP, frontend(7, SET, &endpoints(10)));
        assert_eq!(connect(&world, CLIENT, 1, VIP, 3), 3);
        assert_eq!(connect(&world, CLIENT, 2, VIP, 5), 3);
        assert_eq!(connect(&world, CLIENT, 3, OTHER_VIP, 5), 3);
        assert_eq!(connect(&world, CLIENT + 50, 1, VIP, 5), 5);
        let sent = world.enter(&Segment::first(UDP, (CLIENT, 4), VIP));
        assert_eq!(sent.destination.0, 103);
        // Another service port.
        world.set_service(OTHER_VIP, frontend(8, SET, &endpoints(10)));
        assert_eq!(connect(&world, CLIENT, 5, OTHER_VIP, 5), 5);
    }

    /// behaviour.md 6.2: counted from the last new connection; packets of open ones don't matter.
    fn rule_6_2_only_new_connections_refresh<F>() {
        let world = world::<F>();
        let ticks = Timeouts::ticks(TIMEOUT);
        assert_eq!(connect(&world, CLIENT, 1, VIP, 3), 3);
        world.now.set(100 + ticks);
        assert_eq!(connect(&world, CLIENT, 2, VIP, 5), 3);
        world.now.set(100 + 2 * ticks);
        assert_eq!(connect(&world, CLIENT, 3, VIP, 5), 3);
        // The handshake lets the connection live that long.
        world.leave(&Segment::later(TCP, (103, 8080), (CLIENT, 3)));
        world.enter(&Segment::later(TCP, (CLIENT, 3), VIP));
        world.now.set(101 + 3 * ticks);
        assert_eq!(world.enter(&Segment::later(TCP, (CLIENT, 3), VIP)).reason, Reason::Established);
        assert_eq!(connect(&world, CLIENT, 4, VIP, 5), 5);
    }

    /// behaviour.md 6.3: whoever has no endpoint, or has none any more, gets any, and keeps that.
    fn rule_6_3_any_endpoint_becomes_the_clients<F>() {
        let world = world::<F>();
        for (port, chance) in [(1, 3), (2, 6), (3, 9)] {
            assert_eq!(connect(&world, CLIENT, port, VIP, chance), chance.into());
            assert_eq!(connect(&world, CLIENT, 10 + port, VIP, 0), chance.into());
            world.now.set(world.now.get() + Timeouts::ticks(TIMEOUT) + 1);
        }
    }

    /// behaviour.md 6.4: an endpoint that is gone loses its clients, and starts without them when it comes back.
    fn rule_6_4_endpoint_that_left_is_forgotten<F>() {
        let mut world = world::<F>();
        assert_eq!(connect(&world, CLIENT, 1, VIP, 3), 3);
        let without: Vec<_> = endpoints(10).into_iter().filter(|endpoint| endpoint.0 != 103).collect();
        world.set_members(SET + 1, 0, &without);
        world.set_service(VIP, frontend(7, SET + 1, &without));
        assert_ne!(connect(&world, CLIENT + 1, 1, VIP, 3), 3);
        world.set_members(SET + 2, 101, &endpoints(10));
        world.set_service(VIP, frontend(7, SET + 2, &endpoints(10)));
        world.now.set(102);
        assert_eq!(connect(&world, CLIENT, 2, VIP, 5), 5);
    }

    /// behaviour.md 6.4: what another list has no endpoint for is ignored there, and stays.
    fn rule_6_4_lists_do_not_disturb_each_other<F>() {
        let mut world = world::<F>();
        let local = [(104, 8080), (105, 8080)];
        world.set_members(SET + 1, 0, &local);
        let policy_local = ServiceValue {
            flags: service_flags::HAS_ENDPOINTS | service_flags::LOCAL,
            local_set: SET + 1,
            local_count: 2,
            ..frontend(7, 0, &[])
        };
        world.set_service(OTHER_VIP, policy_local);
        assert_eq!(connect(&world, CLIENT, 1, VIP, 3), 3);
        assert_eq!(connect(&world, CLIENT, 2, OTHER_VIP, 9), 5);
        assert_eq!(connect(&world, CLIENT, 3, VIP, 8), 3);
        assert_eq!(connect(&world, CLIENT, 4, OTHER_VIP, 1), 5);
        // The first use of a list takes what the other one knows, if it has it.
        assert_eq!(connect(&world, CLIENT + 1, 1, OTHER_VIP, 1), 4);
        assert_eq!(connect(&world, CLIENT + 1, 2, VIP, 8), 4);
    }

    /// behaviour.md 6.5: without affinity nothing is remembered.
    fn rule_6_5_off_means_any_endpoint<F>() {
        let mut world = world::<F>();
        assert_eq!(connect(&world, CLIENT, 1, VIP, 3), 3);
        world.set_service(VIP, ServiceValue { affinity_timeout: 0, ..frontend(7, SET, &endpoints(10)) });
        assert_eq!(connect(&world, CLIENT, 2, VIP, 5), 5);
    }
}
