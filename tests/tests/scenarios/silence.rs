//! What is dropped without a word (behaviour.md 3.10 and 4).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proxy_tests::{
    lab::{
        Family, FrontendKind, Lab, Policy, Protocol, Service,
        address::{self, OUTSIDE},
        raw::{self, Capture},
    },
    require_root,
};

use super::{
    PORT,
    outside::{cluster, expose, frontends, start_agents},
    serve,
};

/// The ports that a packet comes from and goes to; none for ICMP errors.
fn ports(packet: &SlicedPacket<'_>) -> Option<(u16, u16)> {
    match packet.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => Some((tcp.source_port(), tcp.destination_port())),
        TransportSlice::Udp(udp) => Some((udp.source_port(), udp.destination_port())),
        _ => None,
    }
}

/// Nothing at all comes back: first packets to all targets, then a request to `served`, which is answered. What is seen up
/// to that answer holds no answer to the others, nor an ICMP error.
pub(super) fn dropped(lab: &Lab, from: &str, targets: &[(Protocol, SocketAddr)], served: SocketAddr) -> Result<()> {
    const CLIENT_PORT: u16 = 4242;
    let client = match from {
        "outside" => OUTSIDE,
        name if lab.nodes().iter().any(|node| node.name() == name) => lab.node(name).addresses(),
        pod => lab.pod(pod).addresses(),
    };
    let namespace = lab.namespace(from);
    // The answer before teaches the hardware addresses on the way: nothing waits for them later.
    lab.udp_request(from, served)?;
    let mut capture = Capture::start(namespace, "eth0")?;
    for &(protocol, to) in targets {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let from = client.with_port(family, CLIENT_PORT);
        let packet = match protocol {
            Protocol::Tcp => raw::syn(from, to)?,
            Protocol::Udp | Protocol::Sctp => raw::udp(from, to, b"hello")?,
        };
        raw::send(namespace, &packet)?;
    }
    lab.udp_request(from, served)
        .context("the request to tell the end by")?;
    let seen = capture.take_until("answer to the last request", |packet| {
        ports(packet).is_some_and(|(source, _)| source == served.port())
    })?;
    for packet in &seen {
        let packet = SlicedPacket::from_ip(packet)?;
        let destination = match packet.net.as_ref() {
            Some(NetSlice::Ipv4(ip)) => IpAddr::from(ip.header().destination()),
            Some(NetSlice::Ipv6(ip)) => IpAddr::from(ip.header().destination()),
            _ => continue,
        };
        let answers = match &packet.transport {
            Some(TransportSlice::Icmpv4(_)) => true,
            // The others are neighbour discovery's (RFC 4443, 2.1).
            Some(TransportSlice::Icmpv6(icmp)) => icmp.type_u8() < 128,
            _ => ports(&packet).is_some_and(|(_, destination)| destination == CLIENT_PORT),
        };
        ensure!(
            !(answers && client.both().contains(&destination)),
            "{from} got {packet:?}"
        );
    }
    Ok(())
}

fn cluster_ips(service: &Service, port: u16) -> Vec<(Protocol, SocketAddr)> {
    let of_family = |family| Protocol::ALL.map(|protocol| (protocol, service.frontend(family, port)));
    Family::ALL.into_iter().flat_map(of_family).collect()
}

#[test]
pub(super) fn rule_4_2_internal_policy_local_drops_without_local_endpoint() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let served = serve(lab, "served", 9, &["near"])?.frontend(Family::V4, PORT);
        let service = expose(lab, "web", 1, &["far"])?.internal_policy(Policy::Local);
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        dropped(lab, "client", &cluster_ips(&service, PORT), served)?;
        // A pod on the other node has it at hand.
        lab.tcp_request("far", service.frontend(Family::V4, PORT))?;
        Ok(())
    })
}

#[test]
pub(super) fn rule_4_3_external_policy_local_drops_without_local_endpoint() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let other = expose(lab, "other", 2, &["near"])?;
        lab.apply(&other)?;
        let service = expose(lab, "web", 1, &["far"])?.external_policy(Policy::Local);
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        let served = frontends(lab, &other).into_iter();
        let (_, served) = served
            .into_iter()
            .find(|(protocol, _)| *protocol == Protocol::Udp)
            .context("UDP")?;
        dropped(lab, "outside", &frontends(lab, &service), served)
    })
}

/// Only the address of the load balancer asks where a client comes from.
#[test]
pub(super) fn rule_3_10_source_ranges_guard_the_load_balancer_alone() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let allowed = expose(lab, "allowed", 1, &["near"])?.source_ranges(&["192.0.2.0/24", "2001:db8::/64"]);
        lab.apply(&allowed)?;
        let denied = expose(lab, "denied", 2, &["near"])?.source_ranges(&["198.51.100.0/24", "2001:db8:51::/64"]);
        lab.apply(&denied)?;
        let _agents = start_agents(lab)?;
        for (protocol, to) in frontends(lab, &allowed) {
            lab.request("outside", protocol, to)?;
        }
        let is_guarded = |to: &SocketAddr| address::balancer(2).both().contains(&to.ip());
        let (guarded, open): (Vec<_>, Vec<_>) = frontends(lab, &denied).into_iter().partition(|(_, to)| is_guarded(to));
        for (protocol, to) in open {
            lab.request("outside", protocol, to)?;
        }
        let served = allowed.frontend_of(FrontendKind::NodePort, Family::V4, "udp", lab.node("node-a"));
        dropped(lab, "outside", &guarded, served)
    })
}
