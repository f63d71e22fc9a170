//! SCTP, by packets that are written and read here: kernels for tests have no sockets for it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use etherparse::{SlicedPacket, TransportSlice};
use proxy_tests::{
    lab::{
        Addresses, Family, FrontendKind, Lab, Policy, Protocol, Service,
        address::{self, OUTSIDE},
        raw::{self, Capture, Chunk, Sctp},
    },
    require_root,
};

use super::outside::{cluster, start_agents};

const NODE_PORT: u16 = 30_007;
const SERVICE_PORT: u16 = 7;
const TARGET: u16 = 7007;
const CLIENT_PORT: u16 = 40_007;

/// A Service with a frontend of every kind, its ports different from its pods'.
fn signalling(lab: &Lab, number: u8, pods: &[&str]) -> Result<Service> {
    let pods: Vec<_> = pods.iter().map(|pod| lab.pod(pod)).collect();
    lab.announce(address::balancer(number), &["node-a"])?;
    lab.announce(address::external(number), &["node-a"])?;
    let service = Service::new("default", &format!("sctp-{number}"), address::cluster(number));
    Ok(service
        .port("sctp", Protocol::Sctp, SERVICE_PORT, TARGET)
        .node_port("sctp", NODE_PORT + u16::from(number))
        .external(address::external(number))
        .balancer(address::balancer(number), None)
        .pods(&pods))
}

fn addresses(lab: &Lab, name: &str) -> Addresses {
    match name {
        "outside" => OUTSIDE,
        pod => lab.pod(pod).addresses(),
    }
}

/// Sends a packet from one namespace; gives it as it arrives in the other.
fn cross(lab: &Lab, from: &str, to: &str, packet: &[u8], tag: u32) -> Result<Sctp> {
    let mut capture = Capture::start(lab.namespace(to), "eth0")?;
    raw::send(lab.namespace(from), packet)?;
    let is_it = |packet: &SlicedPacket<'_>| Sctp::read(packet).is_some_and(|found| found.tag == tag);
    let seen = capture.take_until("the SCTP packet", is_it)?;
    let seen = seen.last().context("a packet")?;
    let seen = Sctp::read(&SlicedPacket::from_ip(seen)?).context("SCTP")?;
    ensure!(seen.intact, "the checksum of {seen:?} is wrong");
    Ok(seen)
}

/// Opens an association from a client to a pod behind a frontend, and sends data both ways.
fn associate(lab: &Lab, (from, port): (&str, u16), frontend: SocketAddr, pod: &str, masqueraded: bool) -> Result<()> {
    let family = if frontend.is_ipv4() { Family::V4 } else { Family::V6 };
    let client = addresses(lab, from).with_port(family, port);
    let backend = addresses(lab, pod).with_port(family, TARGET);
    let mut peer = None;
    for (request, reply, round) in [(Chunk::Init, Chunk::InitAck, 0), (Chunk::Data, Chunk::Data, 2)] {
        let arrived = cross(lab, from, pod, &raw::sctp(client, frontend, request, round)?, round)?;
        let seen = arrived.from;
        let rightly = if masqueraded {
            lab.node("node-a").holds(seen.ip())
        } else {
            seen == client
        };
        ensure!(arrived.to == backend && rightly, "at {pod}: {arrived:?}");
        ensure!(
            *peer.get_or_insert(seen) == seen,
            "one association, two clients: {peer:?} and {seen}"
        );
        let answer = raw::sctp(backend, seen, reply, round + 1)?;
        let answered = cross(lab, pod, from, &answer, round + 1)?;
        ensure!(
            (answered.from, answered.to) == (frontend, client),
            "at {from}: {answered:?}"
        );
    }
    Ok(())
}

/// Both addresses and both ports are translated, there and back, and the CRC32c with them.
#[test]
fn sctp_crosses_every_frontend() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let cases = [
            (1, "near", Policy::Cluster),
            (2, "far", Policy::Cluster),
            (3, "near", Policy::Local),
        ];
        let mut services = Vec::new();
        for (number, pod, policy) in cases {
            let service = signalling(lab, number, &[pod])?.external_policy(policy);
            lab.apply(&service)?;
            services.push((service, pod, policy == Policy::Cluster));
        }
        let _agents = start_agents(lab)?;
        // A port for each: two associations of one port with one pod would have to differ at the pod.
        let mut ports = CLIENT_PORT..;
        let mut port = move || ports.next().context("a port");
        for (service, pod, masqueraded) in &services {
            for family in Family::ALL {
                let frontend = |kind| service.frontend_of(kind, family, "sctp", lab.node("node-a"));
                associate(lab, ("client", port()?), frontend(FrontendKind::ClusterIp), pod, false)
                    .with_context(|| format!("{family}, ClusterIP to {pod}"))?;
                for kind in FrontendKind::EXTERNAL {
                    associate(lab, ("outside", port()?), frontend(kind), pod, *masqueraded)
                        .with_context(|| format!("{family}, {kind:?} to {pod}"))?;
                }
            }
        }
        Ok(())
    })
}

/// behaviour.md 4.1
#[test]
fn rule_4_1_sctp_without_endpoints_is_refused() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = signalling(lab, 1, &[])?;
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            let clients = [("client", FrontendKind::ClusterIp), ("outside", FrontendKind::NodePort)];
            for (from, kind) in clients {
                let frontend = service.frontend_of(kind, family, "sctp", lab.node("node-a"));
                let client = addresses(lab, from).with_port(family, CLIENT_PORT);
                let namespace = lab.namespace(from);
                let mut capture = Capture::start(namespace, "eth0")?;
                raw::send(namespace, &raw::sctp(client, frontend, Chunk::Init, 0)?)?;
                let refused = |packet: &SlicedPacket<'_>| match &packet.transport {
                    // Port unreachable (RFC 792; RFC 4443, 3.1).
                    Some(TransportSlice::Icmpv4(icmp)) => (icmp.type_u8(), icmp.code_u8()) == (3, 3),
                    Some(TransportSlice::Icmpv6(icmp)) => (icmp.type_u8(), icmp.code_u8()) == (1, 4),
                    _ => false,
                };
                capture
                    .take_until("ICMP port unreachable", refused)
                    .with_context(|| format!("{from}, {kind:?} {frontend}"))?;
            }
        }
        Ok(())
    })
}
