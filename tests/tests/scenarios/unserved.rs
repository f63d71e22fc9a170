//! What processes of the host send to Services without a socket hook: packets that leave the node as they are, which can be
//! refused, dropped and counted, but not served.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Result, ensure};
use proxy_common::datapath::Reason;
use proxy_tests::{
    lab::{Agent, Family, Lab, Policy, Protocol, Service, address},
    require_root,
};
use socket2::{Domain, Socket, Type};

use super::{
    PORT,
    outside::{cluster, expose},
    reject::{cluster_ips, refused},
    silence::dropped,
};

/// Agents that leave processes of the host alone.
fn start_agents(lab: &Lab) -> Result<Vec<Agent>> {
    lab.start_agents_with(&lab.cluster_options(&["--socket-lb=off"])?)
}

/// Pings an address and gives what came of it.
fn ping(to: SocketAddr) -> io::Result<usize> {
    let (domain, protocol, request) = match to {
        SocketAddr::V4(_) => (Domain::IPV4, socket2::Protocol::ICMPV4, 8),
        SocketAddr::V6(_) => (Domain::IPV6, socket2::Protocol::ICMPV6, 128),
    };
    // A datagram socket of ICMP has its errors told (icmp(7)); the kernel fills in identifier and checksum.
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(&SocketAddr::new(to.ip(), 0).into())?;
    socket.send(&[request, 0, 0, 0, 0, 0, 0, 1, b'p', b'i', b'n', b'g'])?;
    io::Read::read(&mut &socket, &mut [0; 64])
}

/// The ICMP error reaches the host's own stack, past a strict rp_filter: behaviour.md 4.1, and 4.6 for wrong ports and ping.
#[test]
pub(super) fn rule_4_1_the_host_is_refused_without_hooks() -> Result<()> {
    require_root!();
    cluster().strict().run(|lab| {
        let empty = expose(lab, "empty", 1, &[])?;
        lab.apply(&empty)?;
        let web = expose(lab, "web", 2, &["near"])?;
        lab.apply(&web)?;
        let _agents = start_agents(lab)?;
        for service in [&empty, &web] {
            lab.wait_for_service_everywhere(service)?;
        }
        let node = lab.namespace("node-a");
        // Everybody may have datagram sockets of ICMP.
        node.sysctl(&[("ipv4/ping_group_range", "0 2147483647")])?;
        for offloads in [true, false] {
            lab.set_offloads(offloads)?;
            refused(lab, "node-a", &cluster_ips(&empty, PORT))?;
            refused(lab, "node-a", &cluster_ips(&web, PORT + 1))?;
            for family in Family::ALL {
                let told = node.run(|| ping(web.frontend(family, PORT)));
                let kind = told.as_ref().map_err(io::Error::kind).err();
                ensure!(kind == Some(ErrorKind::ConnectionRefused), "ping, {family:?}: {told:?}");
            }
        }
        ensure!(node.checksum_errors()? == 0, "checksums of the answers are right");
        ensure!(
            lab.reason_count("node-a", Reason::HostUnserved)? == 0,
            "all was refused"
        );
        Ok(())
    })
}

/// behaviour.md 4.2, 3.10 and 4.7: nothing comes back.
#[test]
pub(super) fn rule_4_2_what_the_host_may_not_have_is_dropped_without_hooks() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let local = expose(lab, "local", 1, &["far"])?.internal_policy(Policy::Local);
        lab.apply(&local)?;
        let _agents = start_agents(lab)?;
        lab.wait_for_service_everywhere(&local)?;
        let targets = cluster_ips(&local, PORT);
        let before = lab.reason_count("node-a", Reason::NoLocalEndpoints)?;
        // A server outside tells the end.
        lab.serve("outside", PORT)?;
        let served = address::OUTSIDE.with_port(Family::V4, PORT);
        dropped(lab, "node-a", &targets, served)?;
        let dropped = lab.reason_count("node-a", Reason::NoLocalEndpoints)? - before;
        ensure!(dropped == targets.len() as u64, "{dropped} packets were dropped");
        Ok(())
    })
}

/// A packet that would have an endpoint goes on as it is, counted; those of open connections aren't.
#[test]
pub(super) fn what_is_not_served_is_counted() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let web: Service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&web)?;
        let _agents = start_agents(lab)?;
        lab.wait_for_service_everywhere(&web)?;
        let to = web.frontend(Family::V4, PORT);
        lab.namespace("node-a").run(|| -> io::Result<()> {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            for _ in 0..3 {
                socket.send_to(b"hello", to)?;
            }
            Ok(())
        })?;
        let counted = lab.reason_count("node-a", Reason::HostUnserved)?;
        ensure!(counted == 3, "{counted} packets were counted");
        // Pods are served, and nothing of theirs is counted so.
        for protocol in Protocol::ALL {
            lab.request("client", protocol, to)?;
        }
        ensure!(
            lab.reason_count("node-a", Reason::HostUnserved)? == 3,
            "only the host's"
        );
        Ok(())
    })
}
