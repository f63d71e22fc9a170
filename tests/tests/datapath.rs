//! The datapath library and the kernel programs agree, packet for packet and table for table.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use proptest::{prelude::*, test_runner::TestRunner};
use proxy_agent::dataplane::simulation::Hook;
use proxy_common::{
    datapath::{Reason, Verdict},
    layout::{FlowValue, flow_flags, history},
    packet::{TCP, UDP, V4, V6, tcp_flags},
};
use proxy_tests::{
    fixtures::{
        ETHERNET, Half, Packet, Pair, Places, Scenario, TIMEOUTS, TestFamily, answer, conversations, endpoints,
        fragments, headers, host, icmp_error, icmp_errors, rejects,
    },
    skip,
    test_run::{self, DROP, Kernel, REDIRECT},
};

/// Plays scenarios, each on tables without flows.
fn play<F: TestFamily>(scenarios: &[Scenario]) -> Result<()> {
    let mut kernel = Kernel::load_with(1024, TIMEOUTS, true)?;
    for scenario in scenarios {
        let mut pair = Pair::<F>::new(&mut kernel)?;
        scenario.play(&mut pair).context("a scenario fails")?;
    }
    Ok(())
}

#[test]
fn conversations_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V4>(&conversations::<V4>())
}

#[test]
fn conversations_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V6>(&conversations::<V6>())
}

#[test]
fn headers_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V4>(&headers::<V4>())
}

#[test]
fn headers_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V6>(&headers::<V6>())
}

#[test]
fn icmp_errors_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V4>(&icmp_errors::<V4>())
}

#[test]
fn icmp_errors_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V6>(&icmp_errors::<V6>())
}

#[test]
fn fragments_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V4>(&fragments::<V4>())
}

#[test]
fn fragments_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V6>(&fragments::<V6>())
}

#[test]
fn rejects_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V4>(&rejects::<V4>())
}

#[test]
fn rejects_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V6>(&rejects::<V6>())
}

#[test]
fn host_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V4>(&host::<V4>())
}

#[test]
fn host_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    play::<V6>(&host::<V6>())
}

/// 50 answers at once, and then one a millisecond.
#[test]
fn answers_are_limited() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let mut kernel = Kernel::load_with(16, TIMEOUTS, true)?;
    Pair::<V4>::new(&mut kernel)?;
    let frame = Packet::first(UDP, V4::PLACES.here(), V4::PLACES.empty).frame();
    let start = Instant::now();
    let mut verdicts = BTreeMap::new();
    for _ in 0..1000 {
        *verdicts
            .entry(kernel.run(Hook::Ingress, &frame, 1)?.verdict)
            .or_insert(0) += 1;
    }
    ensure!(verdicts.keys().eq(&[DROP, REDIRECT]), "{verdicts:?}");
    // The clock of the programs goes on every 10 ms at most (CONFIG_HZ); a thread may move to another CPU.
    let at_most = (50 + start.elapsed().as_millis() + 10) * 2;
    ensure!(
        (50..=at_most).contains(&verdicts[&REDIRECT]),
        "{verdicts:?} in {:?}",
        start.elapsed()
    );
    Ok(())
}

/// In a full table the oldest flow that nobody has answered makes room; established ones stay, and none is left in part.
fn full_table<F: TestFamily>() -> Result<()> {
    let mut kernel = Kernel::load_with(5, TIMEOUTS, true)?;
    let mut pair = Pair::<F>::new(&mut kernel)?;
    let Places {
        web, backend, client, ..
    } = F::PLACES;
    let first = |pair: &mut Pair<'_, F>, address, port, reason| -> Result<Vec<u8>> {
        let frame = Packet::first(TCP, SocketAddr::new(address, port), web).frame();
        let seen = pair.send(Hook::Ingress, &frame)?;
        ensure!(seen.reason == reason, "port {port}: {:?}", seen.reason);
        Ok(seen.frame)
    };
    for port in [1, 2, 3] {
        first(&mut pair, client, port, Reason::NewFlow)?;
        ensure!(pair.flows()?.len() == 4.min(2 * usize::from(port)));
    }
    // A hairpin takes three entries, then a fourth: the others go.
    first(&mut pair, backend.ip(), 4, Reason::NewFlow)?;
    let middle = Packet::first(TCP, SocketAddr::new(backend.ip(), 4), backend).frame();
    ensure!(pair.send(Hook::Egress, &middle)?.reason == Reason::Established);
    ensure!(pair.flows()?.len() == 4);
    // Established, it stays.
    let request = first(&mut pair, client, 5, Reason::NewFlow)?;
    ensure!(pair.flows()?.len() == 2);
    pair.send(Hook::Egress, &answer(&request, tcp_flags::SYN | tcp_flags::ACK)?)?;
    let acknowledgment = Packet::first(TCP, SocketAddr::new(client, 5), web).flags(tcp_flags::ACK);
    pair.send(Hook::Ingress, &acknowledgment.frame())?;
    first(&mut pair, client, 6, Reason::NewFlow)?;
    first(&mut pair, client, 7, Reason::NewFlow)?;
    first(&mut pair, backend.ip(), 8, Reason::NewFlow)?;
    first(&mut pair, client, 5, Reason::Established)?;
    Ok(())
}

#[test]
fn full_flow_table() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    full_table::<V4>()?;
    full_table::<V6>()
}

/// With every port to an endpoint in use, a colliding flow is dropped and changes nothing.
#[test]
fn ports_exhausted() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let mut kernel = Kernel::load_with(1 << 17, TIMEOUTS, true)?;
    let mut pair = Pair::<V4>::new(&mut kernel)?;
    let Places {
        web,
        alias,
        backend,
        client,
        ..
    } = V4::PLACES;
    let here = V4::PLACES.here();
    let seen = pair.send(Hook::Ingress, &Packet::first(UDP, here, web).frame())?;
    ensure!(seen.reason == Reason::NewFlow);
    let reply = |port| Half {
        hook: Hook::Egress,
        protocol: UDP,
        source: backend,
        destination: SocketAddr::new(client, port),
    };
    // Of established flows: others would give theirs up.
    let taken = FlowValue {
        last_seen: pair.flows()?.values().map(|half| half.last_seen).max().unwrap_or(0),
        history: history::SEEN | history::LASTING,
        flags: flow_flags::REPLY,
        ..FlowValue::default()
    };
    let others = (1024..=u16::MAX).filter(|port| *port != here.port());
    pair.insert(others.map(|port| (reply(port).key::<V4>(), taken)))?;
    let seen = pair.send(Hook::Ingress, &Packet::first(UDP, here, alias).frame())?;
    ensure!(seen.reason == Reason::PortsExhausted, "{:?}", seen.reason);
    Ok(())
}

/// What happens in a random walk.
#[derive(Clone, Debug)]
enum Event {
    /// Client, port, frontend, TCP, control bits: a packet through a frontend
    Request(bool, u16, usize, bool, u8),
    /// Client, port, TCP, control bits: a packet directly to an endpoint
    Direct(bool, u16, bool, u8),
    /// The same the other way
    Reply(bool, u16, bool, u8),
    /// An endpoint calls a frontend
    Own(u16, usize, bool, u8),
    /// The last frame leaves through the edge
    Forward,
    /// It is answered: hook and control bits
    Answer(bool, u8),
    /// Hook, from an end: whoever got the last frame, or a router before, sends an ICMP error about it
    Error(bool, bool),
    /// Ticks go by
    Wait(u32),
}

fn event() -> impl Strategy<Value = Event> {
    let flags = || {
        prop::sample::select(vec![
            tcp_flags::SYN,
            tcp_flags::SYN,
            tcp_flags::ACK,
            tcp_flags::ACK,
            tcp_flags::FIN | tcp_flags::ACK,
            tcp_flags::RST,
        ])
    };
    let (port, frontend) = (|| 40_000..40_002_u16, || 0..6_usize);
    prop_oneof![
        6 => (any::<bool>(), port(), frontend(), any::<bool>(), flags())
            .prop_map(|(client, port, frontend, tcp, flags)| Event::Request(client, port, frontend, tcp, flags)),
        2 => (any::<bool>(), port(), any::<bool>(), flags())
            .prop_map(|(client, port, tcp, flags)| Event::Direct(client, port, tcp, flags)),
        3 => (any::<bool>(), port(), any::<bool>(), flags())
            .prop_map(|(client, port, tcp, flags)| Event::Reply(client, port, tcp, flags)),
        3 => (port(), frontend(), any::<bool>(), flags())
            .prop_map(|(port, frontend, tcp, flags)| Event::Own(port, frontend, tcp, flags)),
        6 => Just(Event::Forward),
        6 => (any::<bool>(), flags()).prop_map(|(ingress, flags)| Event::Answer(ingress, flags)),
        3 => any::<(bool, bool)>().prop_map(|(ingress, end)| Event::Error(ingress, end)),
        2 => (1..6_u32).prop_map(Event::Wait),
    ]
}

/// Walks; library and kernel must agree at every step.
fn walk<F: TestFamily>(kernel: &mut Kernel, events: &[Event]) -> Result<()> {
    let mut pair = Pair::<F>::new(kernel)?;
    let places = &F::PLACES;
    let packet = |tcp, from, to, flags| {
        Packet::first(if tcp { TCP } else { UDP }, from, to)
            .flags(flags)
            .frame()
    };
    let at = |other, port| SocketAddr::new(if other { places.other_client } else { places.client }, port);
    let mut last = packet(true, places.here(), places.web, tcp_flags::SYN);
    for event in events {
        let (hook, frame) = match *event {
            Event::Request(other, port, frontend, tcp, flags) => (
                Hook::Ingress,
                packet(tcp, at(other, port), places.frontends()[frontend], flags),
            ),
            Event::Direct(other, port, tcp, flags) => {
                (Hook::Ingress, packet(tcp, at(other, port), places.backend, flags))
            }
            Event::Reply(other, port, tcp, flags) => {
                (Hook::Egress, packet(tcp, places.backend, at(other, port), flags))
            }
            Event::Own(port, frontend, tcp, flags) => {
                let own = SocketAddr::new(places.backend.ip(), port);
                (Hook::Ingress, packet(tcp, own, places.frontends()[frontend], flags))
            }
            Event::Forward => (Hook::Egress, last.clone()),
            Event::Answer(ingress, flags) => {
                let hook = if ingress { Hook::Ingress } else { Hook::Egress };
                (hook, answer(&last, flags)?)
            }
            Event::Error(ingress, end) => {
                let hook = if ingress { Hook::Ingress } else { Hook::Egress };
                let (_, from, to) = endpoints(&last)?;
                let source = if end { to.ip() } else { places.stranger };
                let error = icmp_error(&last[ETHERNET..], source, from.ip());
                pair.send(hook, &error).with_context(|| format!("{event:?}"))?;
                continue;
            }
            Event::Wait(ticks) => {
                pair.age(ticks)?;
                continue;
            }
        };
        let seen = pair.send(hook, &frame).with_context(|| format!("{event:?}"))?;
        if seen.reason.verdict() != Verdict::Reject {
            last = seen.frame;
        }
    }
    Ok(())
}

/// Whatever a few clients send, in whatever order.
#[test]
fn random_walks() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    let kernel = RefCell::new(Kernel::load_with(1024, TIMEOUTS, true)?);
    let config = ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let events = prop::collection::vec(event(), 1..80);
    let walked = TestRunner::new(config).run(&(events, any::<bool>()), |(events, ipv6)| {
        let kernel = &mut *kernel.borrow_mut();
        let walked = if ipv6 {
            walk::<V6>(kernel, &events)
        } else {
            walk::<V4>(kernel, &events)
        };
        walked.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    walked.map_err(|error| anyhow::anyhow!("{error}"))
}
