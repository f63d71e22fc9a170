//! An agent that is killed at any write: packets notice nothing, and the next agent makes everything good.

use std::{collections::BTreeSet, num::NonZeroU32};

use proptest::prelude::*;

use super::{
    Plan, frontend, object, plan,
    property::services,
    world::{State, World, parse},
};
use crate::{
    dataplane::faults::Faults,
    plan::{Family, Frontend, Kind, LocalSources, Protocol, TrafficPolicy},
};

/// The frontends of a Service in both families: cluster address, load balancer and nodePort.
fn service(name: &str, number: u8, endpoints: &[u8]) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    for family in Family::ALL {
        let addresses = match family {
            Family::V4 => [format!("10.96.0.{number}:80"), format!("192.0.2.{number}:80")],
            Family::V6 => [format!("[fd00::{number}]:80"), format!("[2001:db8::{number}]:80")],
        };
        let endpoints: Vec<String> = endpoints
            .iter()
            .map(|host| match family {
                Family::V4 => format!("10.244.0.{host}:8080"),
                Family::V6 => format!("[fd01:0:0:1::{host}]:8080"),
            })
            .collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let [cluster, balancer] = addresses.map(|address| frontend(name, &address, &endpoints));
        let balancer = Frontend {
            kind: Kind::LoadBalancer,
            ..balancer
        };
        let node_port = Frontend {
            kind: Kind::NodePort,
            address: None,
            port: 30_000 + u16::from(number),
            ..balancer.clone()
        };
        frontends.extend([cluster, balancer, node_port]);
    }
    frontends
}

fn changed(frontends: Vec<Frontend>, change: impl Fn(&mut Frontend)) -> Vec<Frontend> {
    let mut frontends = frontends;
    frontends.iter_mut().for_each(change);
    frontends
}

/// Each of these lists goes with what it may not lead to: the endpoints of the first, the ranges of a load balancer.
fn local(frontend: &mut Frontend) {
    if frontend.kind != Kind::ClusterIP {
        frontend.policy = TrafficPolicy::LocalForOutsiders;
        let first = frontend.cluster.iter().flatten().next().copied();
        frontend.local = Some(first.into_iter().collect());
    }
}

fn restricted(frontend: &mut Frontend, v4: &str, v6: &str) {
    if frontend.kind == Kind::LoadBalancer {
        frontend.sources = vec![parse(if frontend.family == Family::V4 { v4 } else { v6 })];
    }
}

/// A life of a node.
pub(super) fn states() -> Vec<(&'static str, State)> {
    let state = |frontends: &[Vec<Frontend>]| State {
        plan: plan(&frontends.concat()),
        ..State::default()
    };
    let affine = |frontends| changed(frontends, |frontend| frontend.affinity = NonZeroU32::new(10_800));
    let (web, api) = (service("web", 1, &[1, 2, 3]), service("api", 2, &[4]));
    let scaled = service("web", 1, &[2, 3, 4, 5]);
    let local = |frontends| changed(frontends, local);
    let near = |frontends| {
        changed(frontends, |frontend| {
            restricted(frontend, "198.51.100.0/24", "2001:db8:51::/48");
        })
    };
    let far = |frontends| {
        changed(frontends, |frontend| {
            restricted(frontend, "203.0.113.0/24", "2001:db8:ffff::/48");
        })
    };
    let udp = changed(service("web", 3, &[1, 2]), |frontend| {
        frontend.service_port.protocol = Protocol::Udp;
        frontend.serving = frontend.cluster.clone().unwrap_or_default();
    });
    let last = state(&[api.clone(), udp]);
    let mut moved = last.clone();
    moved.node.node_port_addresses = ["192.0.2.101", "2001:db8::100"].map(parse).into();
    moved.node.local_addresses = ["192.0.2.101", "2001:db8::100"].map(parse).into();
    let mut other_pods = moved.clone();
    other_pods.node.local_sources = LocalSources::Ranges(["10.245.0.0/16"].map(parse).into());
    let mut other_ranges = other_pods.clone();
    other_ranges.node.service_ranges = ["10.96.0.0/16", "10.97.0.0/16"].map(parse).into();
    vec![
        ("add", state(&[web.clone(), api.clone()])),
        ("change endpoints", state(&[scaled.clone(), api.clone()])),
        ("none left", state(&[service("web", 1, &[]), api.clone()])),
        ("some again", state(&[web.clone(), api.clone()])),
        ("change policy", state(&[local(web.clone()), api.clone()])),
        ("affinity", state(&[affine(local(web)), api.clone()])),
        (
            "endpoints with affinity",
            state(&[affine(local(scaled.clone())), api.clone()]),
        ),
        ("let some in", state(&[near(affine(scaled.clone())), api.clone()])),
        ("let others in", state(&[far(affine(scaled.clone())), api.clone()])),
        ("let all in, no affinity", state(&[scaled, api.clone()])),
        ("remove", state(&[api])),
        ("another by that name", last),
        ("move the node", moved),
        ("other pods", other_pods),
        ("other ranges", other_ranges),
        ("the end", State::default()),
    ]
}

/// Issue 4, 3: `kill -9` at every step of a sync. Every packet goes where the old or the new plan has it go, the next agent
/// brings the tables to the plan, and ids and counters stay.
#[test]
fn a_kill_at_any_write_loses_nothing() {
    let mut world = World::new();
    let (mut points, mut before) = (0, State::default());
    for (step, after) in states() {
        for write in 0.. {
            let when = format!("{step}, killed before write {write}");
            world.count_traffic();
            let ids = world.ids();
            let faults = Faults::kill_at(write);
            let survivor = world.sync(&after, &faults);
            world.expect_either(&after, &when);
            if let Some(programmer) = survivor {
                faults.end();
                world.expect_kept(&ids, &after, &when);
                world.expect_settled(programmer, &after, &when);
                break;
            }
            points += 1;
            // The next one is killed as well, somewhere.
            if world.sync(&after, &Faults::kill_at(write / 2)).is_none() {
                world.expect_either(&after, &format!("{when} and again"));
            }
            let programmer = world.sync(&after, &Faults::kill_at(u64::MAX)).expect("alive");
            world.expect_kept(&ids, &after, &when);
            world.expect_settled(programmer, &after, &when);
            // And back, for the next kill.
            let programmer = world.sync(&before, &Faults::kill_at(u64::MAX)).expect("alive");
            world.expect_settled(programmer, &before, &format!("back before {step}"));
        }
        before = after;
    }
    assert!(points > 200, "only {points} writes were visited");
}

/// A plan that a property's Services make. All frontends of a Service let the same sources in, as the planner has it.
pub(super) fn planned(services: Plan) -> State {
    let mut state = State::default();
    for (name, mut frontends) in services {
        let sources: BTreeSet<_> = frontends.iter().flat_map(|frontend| frontend.sources.clone()).collect();
        for frontend in &mut frontends {
            let of_family = |range: &&ipnet::IpNet| Family::of(range.addr()) == frontend.family;
            frontend.sources = match frontend.kind {
                Kind::LoadBalancer => sources.iter().filter(of_family).copied().collect(),
                _ => Vec::new(),
            };
        }
        state.plan.insert(object(&name.name), frontends);
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any plans, any kills, and kills of those who come to repair.
    #[test]
    fn any_kills_are_made_good(
        plans in proptest::collection::vec((services(), proptest::collection::vec(0..60u64, 0..4)), 1..5),
    ) {
        let mut world = World::new();
        for (plan, kills) in plans {
            let after = planned(plan);
            world.count_traffic();
            let ids = world.ids();
            let mut survivor = None;
            for kill in kills.into_iter().chain([u64::MAX]) {
                survivor = world.sync(&after, &Faults::kill_at(kill));
                world.expect_either(&after, &format!("killed before write {kill}"));
            }
            world.expect_kept(&ids, &after, "after all");
            world.expect_settled(survivor.expect("the last one lives"), &after, "after all");
        }
    }
}
