//! `trace` over every kind of frontend, client, endpoint and configuration, against expectations that are derived here
//! from the rules, not by the code that they are about.

mod advice;
mod oracle;
mod trace;
mod world;

use std::num::NonZeroUsize;

use oracle::Expected;
use trace::Traced;
use world::{CLIENTS, Case, Client, DETECTIONS, Family, KINDS, Kind, PROTOCOLS, SHAPES, World};

/// Every combination of frontend, endpoints, its policy and client, each with two of the ways to tell pods, and with one
/// choice of the rest.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in KINDS {
        for shape in &SHAPES {
            for is_local in [false, true] {
                for client in &CLIENTS {
                    for _ in 0..2 {
                        // Digits without a pattern, and the same in every run.
                        let mix = (cases.len() + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
                        let choice = |place: u32| mix >> place & 1 == 1;
                        let other = choice(0);
                        cases.push(Case {
                            kind,
                            shape,
                            internal_local: if kind == Kind::Cluster { is_local } else { other },
                            external_local: if kind == Kind::Cluster { other } else { is_local },
                            client,
                            detection: DETECTIONS[cases.len() % DETECTIONS.len()],
                            masquerade_all: choice(1),
                            family: if choice(2) { Family::V4 } else { Family::V6 },
                            protocol: PROTOCOLS[(mix >> 3) % PROTOCOLS.len()],
                        });
                    }
                }
            }
        }
    }
    cases
}

/// behaviour.md 2.6, 2.7, 2.9, 2.10, 3.1, 3.5, 4.1, 4.2, 4.3, 4.5, 5.2, 5.3, 5.4, 5.5, 5.6, 5.7, 5.8, 5.11
#[test]
fn every_first_packet_is_treated_by_the_rules() {
    let world = World::new();
    let cases = cases();
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = cases
            .chunks(cases.len().div_ceil(threads))
            .map(|cases| scope.spawn(|| cases.iter().filter_map(|case| check(&world, case)).collect::<Vec<_>>()))
            .collect();
        let found = workers.into_iter().map(|worker| worker.join().expect("no panic"));
        found.flatten().collect()
    });
    let first = wrong.iter().take(10).map(String::as_str).collect::<Vec<_>>();
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{}",
        wrong.len(),
        cases.len(),
        first.join("\n\n")
    );
}

fn check(world: &World, case: &Case) -> Option<String> {
    let tracer = world.tracer(case.shape.name, case.detection, case.masquerade_all);
    let arguments = case.arguments(case.protocol, Some(case.port()));
    let traced = tracer.trace(&arguments);
    let expected = oracle::expected(case);
    let differs = !expected.allows(&traced, case);
    differs.then(|| {
        format!(
            "{}\n{case:?}\nexpected {expected:?}\ntraced {traced:?}",
            tracer.typed(&arguments)
        )
    })
}

/// behaviour.md 4.6, 4.8, 4.9: a cluster address refuses, with endpoints or without, what else is nobody's passes.
#[test]
fn what_no_port_is_for_is_refused_by_cluster_addresses_only() {
    let world = World::new();
    let mut clients = CLIENTS.iter().cycle();
    for (protocol, port) in [("tcp", Some(81)), ("udp", Some(81)), ("sctp", Some(81)), ("icmp", None)] {
        for kind in KINDS {
            for family in [Family::V4, Family::V6] {
                for shape in [&SHAPES[0], &SHAPES[2]] {
                    let client = clients.next().expect("no end");
                    let case = Case::plain(kind, shape, client, family);
                    let tracer = world.tracer(shape.name, case.detection, case.masquerade_all);
                    let traced = tracer.trace(&case.arguments(protocol, port));
                    let verdict = if kind == Kind::Cluster { "reject" } else { "pass" };
                    assert_eq!(traced, Traced::unforwarded(verdict, None), "{protocol} {case:?}");
                }
            }
        }
    }
}

/// behaviour.md 3.4: a protocol of the Service is not another's.
#[test]
fn a_port_is_one_of_its_protocol() {
    let world = World::new();
    let tracer = world.tracer("dns", DETECTIONS[0], false);
    for (port, protocol, verdict) in [(53, "udp", "forward"), (53, "tcp", "reject"), (53, "sctp", "reject")] {
        let traced = tracer.trace(&world::packet(
            "pod",
            protocol,
            "10.244.1.200",
            &format!("10.96.2.1:{port}"),
        ));
        assert_eq!(traced.verdict, verdict, "{protocol}");
    }
}

/// behaviour.md 4.7: whoever asks, whatever the protocol.
#[test]
fn what_no_service_has_of_the_service_ranges_drops() {
    let world = World::new();
    let tracer = world.tracer("dns", DETECTIONS[0], false);
    for client in &CLIENTS {
        for protocol in ["tcp", "udp", "sctp", "icmp"] {
            for (family, address) in [(Family::V4, "10.96.200.1"), (Family::V6, "[fd00:96::200:1]")] {
                let destination = if protocol == "icmp" {
                    address.to_owned()
                } else {
                    format!("{address}:80")
                };
                let arguments = world::packet(client.origin.argument(), protocol, client.source(family), &destination);
                let traced = tracer.trace(&arguments);
                assert_eq!(traced, Traced::unforwarded("drop", None), "{arguments:?}");
            }
        }
    }
}

/// behaviour.md 3.6, 3.8: a nodePort's number on an address of the node that is not chosen for it is left alone; so it is
/// on addresses that are none of the node's.
#[test]
fn a_node_port_is_served_where_it_is_to_be() {
    let world = World::new();
    let tracer = world.tracer_with(
        "nodePortAddresses: [172.30.0.0/16]",
        &["172.30.0.1", "172.31.0.1", "fd00:172:30::1"],
    );
    for (from, source, destination, verdict) in [
        ("uplink", "192.0.2.50", "172.30.0.1:30053", "forward"),
        ("uplink", "192.0.2.50", "172.31.0.1:30053", "pass"),
        ("pod", "10.244.1.200", "172.31.0.1:30053", "pass"),
        ("uplink", "192.0.2.50", "172.30.0.2:30053", "pass"),
        // A family that nothing is said about is open.
        ("uplink", "2001:db8::50", "[fd00:172:30::1]:30053", "forward"),
        // On loopback addresses for processes of the host only, and not where other ranges are given (3.7).
        ("host", "127.0.0.1", "127.0.0.1:30053", "pass"),
        ("host", "::1", "[::1]:30053", "forward"),
        ("uplink", "::1", "[::1]:30053", "pass"),
        ("pod", "::1", "[::1]:30053", "pass"),
    ] {
        let traced = tracer.trace(&world::packet(from, "udp", source, destination));
        assert_eq!(traced.verdict, verdict, "{from} {source} {destination}");
    }
}

/// behaviour.md 3.7: where the configuration names no addresses, or loopback ones.
#[test]
fn rule_3_7_node_ports_are_served_at_loopback_to_processes_of_the_host() {
    let world = World::new();
    for configuration in [
        "",
        "nodePortAddresses: [127.0.0.0/8, '::1/128']",
        "nodePortAddresses: [0.0.0.0/0]",
    ] {
        let tracer = world.tracer_with(configuration, &["172.30.0.1", "fd00:172:30::1"]);
        for (address, destination) in [("127.0.0.1", "127.0.0.1:30053"), ("::1", "[::1]:30053")] {
            for (from, verdict) in [("host", "forward"), ("pod", "pass"), ("uplink", "pass")] {
                let traced = tracer.trace(&world::packet(from, "udp", address, destination));
                assert_eq!(traced.verdict, verdict, "{configuration} {from} {destination}");
            }
        }
    }
}

/// behaviour.md 3.10: only on the load balancer's address, for pods as well, before it matters whether there are
/// endpoints; a family without a range is open. The node's address in a range lets the load balancer's own in.
#[test]
fn source_ranges_guard_the_load_balancer_first() {
    let world = World::new();
    let tracer = world.tracer("dns", DETECTIONS[0], false);
    let is_let_in = |client: &Client| ["192.0.2.50", "172.30.0.1"].contains(&client.source(Family::V4));
    for client in &CLIENTS {
        for (service, served) in [(2, "forward"), (3, "reject")] {
            let trace = |family: Family, destination: &str| {
                let arguments = world::packet(client.origin.argument(), "udp", client.source(family), destination);
                tracer.trace(&arguments).verdict
            };
            let guarded = if is_let_in(client) { served } else { "drop" };
            assert_eq!(
                trace(Family::V4, &format!("198.51.101.{service}:53")),
                guarded,
                "{client:?}"
            );
            assert_eq!(
                trace(Family::V6, &format!("[2001:db8:2:1::{service}]:53")),
                served,
                "{client:?}"
            );
            assert_eq!(
                trace(Family::V4, &format!("10.96.2.{service}:53")),
                served,
                "{client:?}"
            );
            assert_eq!(
                trace(Family::V4, &format!("172.30.0.1:3005{}", service + 2)),
                served,
                "{client:?}"
            );
        }
    }
    let from_itself = world::packet("host", "udp", "198.51.101.2", "198.51.101.2:53");
    assert_eq!(tracer.trace(&from_itself).verdict, "forward");
    let from_another = world::packet("host", "udp", "198.51.101.3", "198.51.101.2:53");
    assert_eq!(tracer.trace(&from_another).verdict, "drop");
}

/// The oracle itself: expectations that are written down, not derived.
#[test]
fn the_oracle_is_right_where_it_is_plain() {
    let outsider = CLIENTS
        .iter()
        .find(|client| client.name == "outsider")
        .expect("an outsider");
    let case = Case::plain(Kind::NodePort, &SHAPES[2], outsider, Family::V4);
    let expected = Expected::Forward {
        candidates: &[1, 11],
        masquerade: true,
    };
    assert_eq!(oracle::expected(&case), expected);
    let local = Case {
        external_local: true,
        ..case
    };
    let expected = Expected::Forward {
        candidates: &[1],
        masquerade: false,
    };
    assert_eq!(oracle::expected(&local), expected);
}
