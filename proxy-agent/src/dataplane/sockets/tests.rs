//! Which sockets are told.

use std::collections::HashSet;

use proxy_common::layout::TO_BACKEND;

use super::*;
use crate::dataplane::memory::Memory;

type End = ([u8; 4], u16);

const TCP: u8 = 6;
const SERVICE: u32 = 3;
const GONE: End = ([10, 244, 1, 7], 53);
const THERE: End = ([10, 244, 1, 8], 53);
const COOKIE: u64 = 0x0001_0002_0003_0004;

fn serving(endpoints: &[End]) -> Serving {
    let endpoints: HashSet<_> = endpoints.iter().copied().map(SocketAddr::from).collect();
    Serving::from([(SERVICE, endpoints)])
}

/// An entry of a socket.
fn insert(memory: &Memory, key: SocketKey<[u8; 4]>, service: u32, flags: u16) {
    let value = SocketValue {
        service,
        flags,
        ..SocketValue::default()
    };
    memory.v4.sockets.clone().insert(&key, &value).expect("room");
}

fn connected(cookie: u64, protocol: u8, to: End) -> SocketKey<[u8; 4]> {
    SocketKey::new(TO_FRONTEND, cookie, protocol, to)
}

fn taken(memory: &Memory, serving: &Serving) -> Vec<(u64, SocketAddr)> {
    let taken = take_stale(&mut memory.v4.sockets.clone(), serving).expect("readable");
    let mut taken: Vec<_> = taken.into_iter().collect();
    taken.sort_unstable();
    taken
}

/// behaviour.md 7.3, 7.5: by address and port of the endpoint; each socket once.
#[test]
fn rule_7_3_sockets_connected_to_endpoints_that_serve_no_more_are_told() {
    let memory = Memory::default();
    insert(&memory, connected(COOKIE, UDP, GONE), SERVICE, socket_flags::CONNECTED);
    insert(&memory, connected(1, UDP, THERE), SERVICE, socket_flags::CONNECTED);
    insert(
        &memory,
        connected(2, UDP, (THERE.0, 54)),
        SERVICE,
        socket_flags::CONNECTED,
    );
    let told = [(2, SocketAddr::from((THERE.0, 54))), (COOKIE, SocketAddr::from(GONE))];
    assert_eq!(taken(&memory, &serving(&[THERE])), told);
    assert_eq!(taken(&memory, &serving(&[THERE])), []);
    assert_eq!(memory.v4.sockets.entries().expect("readable").len(), 1);
}

/// behaviour.md 7.1: TCP ends by itself. Unconnected sockets get another endpoint with their next datagram, and other service
/// ports haven't changed.
#[test]
fn rule_7_1_other_sockets_are_not_told() {
    let memory = Memory::default();
    let to_backend = SocketKey::new(TO_BACKEND, COOKIE, UDP, ([10, 96, 0, 1], 53));
    for (key, service, flags) in [
        (connected(1, TCP, GONE), SERVICE, socket_flags::CONNECTED),
        (connected(2, UDP, GONE), SERVICE, socket_flags::ANSWERED),
        (connected(3, UDP, GONE), SERVICE + 1, socket_flags::CONNECTED),
        (to_backend, SERVICE, 0),
    ] {
        insert(&memory, key, service, flags);
    }
    assert_eq!(taken(&memory, &serving(&[])), []);
    assert_eq!(memory.v4.sockets.entries().expect("readable").len(), 4);
}

/// behaviour.md 7.6, 7.7: without endpoints, and without the Service, all are told.
#[test]
fn rule_7_6_no_endpoint_means_all_are_told() {
    let memory = Memory::default();
    for (cookie, to) in [(1, GONE), (2, THERE)] {
        insert(&memory, connected(cookie, UDP, to), SERVICE, socket_flags::CONNECTED);
    }
    assert_eq!(taken(&memory, &serving(&[])).len(), 2);
}
