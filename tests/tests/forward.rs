//! XDP: the datapath library and the kernel program agree, packet for packet and table for table.

use std::{net::SocketAddr, process::Command, thread};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use proxy_agent::dataplane::simulation::Hook;
use proxy_common::{
    datapath::{Hop, Reason},
    layout::{device_flags, express, flow_flags, service_flags},
    packet::{TCP, UDP, V4, V6, tcp_flags},
};
use proxy_tests::{
    fixtures::{Half, Packet, Pair, Places, TIMEOUTS, TestFamily, answer, endpoints},
    skip,
    test_run::{self, DEVICE, Kernel},
};

/// The routes of a node with one uplink: every packet leaves by it to a router whose address is known.
const ROUTES: &[&str] = &[
    "link set lo up",
    "link add uplink address 02:00:00:00:00:01 type veth peer name wire",
    "link set wire up",
    "addr add 172.30.0.1/24 dev uplink",
    "addr add fd00:172:30::1/64 dev uplink nodad",
    "link set uplink up",
    "neigh add 172.30.0.254 lladdr 02:00:00:00:00:02 dev uplink nud permanent",
    "neigh add fd00:172:30::fe lladdr 02:00:00:00:00:02 dev uplink nud permanent",
    "route add default via 172.30.0.254",
    "-6 route add default via fd00:172:30::fe",
];

/// Runs a test in a network namespace of its own, with [`ROUTES`].
fn on_a_router(test: impl FnOnce(Hop) -> Result<()> + Send) -> Result<()> {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        for arguments in ROUTES {
            let done = Command::new("ip").args(arguments.split(' ')).status()?;
            ensure!(done.success(), "ip {arguments}: {done}");
        }
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{key}"), "1").context(key)?;
        }
        test(Hop {
            device: nix::net::if_::if_nametoindex("uplink")?,
            destination: [2, 0, 0, 0, 0, 2],
            source: [2, 0, 0, 0, 0, 1],
        })
    };
    thread::scope(|scope| scope.spawn(run).join().expect("no panic"))
}

/// Lets the Services masquerade, and gives XDP to both devices.
fn prepare<F: TestFamily>(pair: &mut Pair<'_, F>, uplink: u32) -> Result<()> {
    pair.change(|tables| {
        let mut device = tables.devices.get(&DEVICE)?.context("a device")?;
        device.flags |= express::NATIVE << device_flags::EXPRESS_SHIFT;
        for index in [DEVICE, uplink] {
            tables.devices.insert(&index, &device)?;
        }
        let services = &mut F::tables_mut(tables).services;
        for (key, mut value) in services.entries()? {
            value.flags |= service_flags::MASQUERADE;
            services.insert(&key, &value)?;
        }
        Ok(())
    })
}

/// A conversation, some ticks long, over `frontend`.
fn converse<F: TestFamily>(
    pair: &mut Pair<'_, F>,
    hop: Hop,
    protocol: u8,
    client: SocketAddr,
    frontend: SocketAddr,
) -> Result<()> {
    let request = Packet::first(protocol, client, frontend);
    let mut reason = Reason::NewFlow;
    for flags in [tcp_flags::SYN, tcp_flags::ACK, tcp_flags::FIN | tcp_flags::ACK] {
        let frame = request.clone().flags(flags).frame();
        let seen = pair.forward(Some(hop), &frame)?;
        ensure!(seen.reason == reason, "{:?}", seen.reason);
        ensure!(seen.frame != frame);
        let reply = answer(&seen.frame, flags | tcp_flags::ACK)?;
        let back = pair.forward(Some(hop), &reply)?;
        ensure!(back.reason == Reason::Established, "{:?}", back.reason);
        let (_, source, destination) = endpoints(&back.frame)?;
        ensure!((source, destination) == (frontend, client));
        pair.age(1)?;
        reason = Reason::Established;
    }
    Ok(())
}

fn conversations<F: TestFamily>(hop: Hop) -> Result<()> {
    let Places {
        web,
        spread,
        empty,
        broken,
        stranger,
        client,
        backend,
        ..
    } = F::PLACES;
    let mut kernel = Kernel::load_with(64, TIMEOUTS, true)?;
    let mut pair = Pair::<F>::new(&mut kernel)?;
    prepare(&mut pair, hop.device)?;
    for protocol in [TCP, UDP] {
        for (port, frontend) in [(1, web), (2, spread)] {
            let client = SocketAddr::new(client, port);
            converse(&mut pair, hop, protocol, client, frontend)
                .with_context(|| format!("protocol {protocol}, {frontend}"))?;
        }
    }
    ensure!(pair.flows()?.values().all(|half| half.flags & flow_flags::EXPRESS != 0));
    let flows = pair.flows()?.len();
    ensure!(flows == 16, "{flows} entries for four flows");
    // What is refused, and what is nobody's.
    for to in [empty, broken, SocketAddr::new(stranger, 80), backend] {
        let frame = Packet::first(TCP, SocketAddr::new(client, 1), to).frame();
        let seen = pair.forward(Some(hop), &frame)?;
        ensure!(seen.frame == frame && seen.reason == Reason::Unrelated, "{seen:?}");
    }
    ensure!(pair.flows()?.len() == flows);
    Ok(())
}

#[test]
fn conversations_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    on_a_router(conversations::<V4>)
}

#[test]
fn conversations_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    on_a_router(conversations::<V6>)
}

/// A packet too large for the route leaves entries that the hooks go on with.
fn left_to_the_hooks<F: TestFamily>(hop: Hop) -> Result<()> {
    let Places { web, client, .. } = F::PLACES;
    let mut kernel = Kernel::load_with(64, TIMEOUTS, true)?;
    let mut pair = Pair::<F>::new(&mut kernel)?;
    prepare(&mut pair, hop.device)?;
    let large = Packet {
        payload: vec![0; 1600],
        ..Packet::first(UDP, SocketAddr::new(client, 1), web)
    };
    let seen = pair.forward(None, &large.frame())?;
    ensure!(seen.frame == large.frame());
    let half = Half {
        hook: Hook::Ingress,
        protocol: UDP,
        source: large.source,
        destination: web,
    };
    let entry = pair.flows()?[&half.key::<F>()];
    ensure!(
        (entry.flags & flow_flags::EXPRESS, entry.history) == (0, 0),
        "{entry:?}"
    );
    let seen = pair.send(Hook::Ingress, &large.frame())?;
    ensure!(seen.reason == Reason::NewFlow, "{:?}", seen.reason);
    let small = Packet::first(UDP, large.source, web).frame();
    let seen = pair.forward(Some(hop), &small)?;
    ensure!(seen.frame == small, "a flow of the hooks stays theirs");
    Ok(())
}

#[test]
fn left_to_the_hooks_ipv4() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    on_a_router(left_to_the_hooks::<V4>)
}

#[test]
fn left_to_the_hooks_ipv6() -> Result<()> {
    if let Some(obstacle) = test_run::obstacle() {
        skip!("{obstacle}");
    }
    on_a_router(left_to_the_hooks::<V6>)
}
