//! Services that nobody is behind.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
use proxy_tests::{
    lab::{Family, Lab, Policy, Protocol, Service, tcp_request},
    require_root,
};

use super::{PORT, outside, serve};

/// What "at once" means for a refusal; a SYN would be sent again after a second (RFC 6298, 2.1).
const AT_ONCE: Duration = Duration::from_millis(500);
/// The answer to a SYN reaches a pod of the same node while it is still in `connect`. Linux 6.18 then forgets it if it is
/// of IPv6 (`LockDroppedIcmps`; the kernel's own `reject` fares alike), and the one to the second SYN ends the wait.
const SECOND_SYN: Duration = Duration::from_millis(1500);

/// Sends from a connected socket, in segments of this size if any, and gives what became of it.
fn send_and_receive(to: SocketAddr, data: &[u8], segment: Option<i32>) -> io::Result<usize> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(2 * AT_ONCE))?;
    if let Some(size) = segment {
        setsockopt(&socket, UdpGsoSegment, &size)?;
    }
    socket.send(data)?;
    socket.recv(&mut [0])
}

/// Fails unless the other side said at once that nobody listens.
fn ensure_refused(what: &str, within: Duration, ask: impl FnOnce() -> ErrorKind) -> Result<()> {
    let start = Instant::now();
    let kind = ask();
    let latency = start.elapsed();
    ensure!(kind == ErrorKind::ConnectionRefused, "{what}: {kind}");
    ensure!(latency < within, "{what}: after {latency:?}");
    Ok(())
}

/// behaviour.md 4.1: TCP and UDP, both families, small packets and those of segmentation offload, whole checksums and those
/// that a device is to complete.
#[test]
pub(super) fn rule_4_1_a_service_without_endpoints_refuses_at_once() -> Result<()> {
    require_root!();
    Lab::builder()
        .node("node-a", &["client", "web-1"])
        .node("node-b", &["web-2"])
        .strict()
        .run(|lab| {
            let full = serve(lab, "empty", 1, &["web-1", "web-2"])?;
            let empty = full.clone().without("web-1").without("web-2");
            lab.apply(&empty)?;
            let _agents = lab.start_agents()?;
            lab.wait_for_service_everywhere(&empty)?;
            let client = lab.namespace("client");
            for offloads in [true, false] {
                lab.set_offloads(offloads)?;
                for family in Family::ALL {
                    let to = empty.frontend(family, PORT);
                    client.run(|| -> Result<()> {
                        let within = if to.is_ipv4() { AT_ONCE } else { SECOND_SYN };
                        ensure_refused(&format!("TCP to {to}"), within, || match tcp_request(to) {
                            Err(error) if error.is_refused() => ErrorKind::ConnectionRefused,
                            _ => ErrorKind::Other,
                        })?;
                        for (length, segment) in [(0, None), (7, None), (1200, None), (10_000, Some(1000))] {
                            ensure_refused(&format!("{length} bytes of UDP to {to}"), AT_ONCE, || {
                                send_and_receive(to, &vec![7; length], segment)
                                    .map_or_else(|error| error.kind(), |_| ErrorKind::Other)
                            })?;
                        }
                        Ok(())
                    })?;
                }
            }
            ensure!(client.checksum_errors()? == 0, "checksums of the answers are right");
            let offended = lab.offended_rules()?;
            ensure!(offended.is_empty(), "{offended:#?}");

            lab.apply(&full)?;
            lab.wait_for_service_everywhere(&full)?;
            lab.udp_request("client", full.frontend(Family::V4, PORT))
                .context("with endpoints again")?;
            Ok(())
        })
}

/// Each request is refused at once.
pub(super) fn refused(lab: &Lab, from: &str, targets: &[(Protocol, SocketAddr)]) -> Result<()> {
    for &(protocol, to) in targets {
        let within = match (protocol, to) {
            (Protocol::Tcp, SocketAddr::V6(_)) => SECOND_SYN,
            _ => AT_ONCE,
        };
        let what = format!("{protocol} from {from} to {to}");
        ensure_refused(&what, within, || match lab.request(from, protocol, to) {
            Err(error) if error.is_refused() => ErrorKind::ConnectionRefused,
            _ => ErrorKind::Other,
        })?;
    }
    Ok(())
}

/// TCP and UDP of both families to a port of the ClusterIPs.
pub(super) fn cluster_ips(service: &Service, port: u16) -> Vec<(Protocol, SocketAddr)> {
    let of_family = |family| Protocol::ALL.map(|protocol| (protocol, service.frontend(family, port)));
    Family::ALL.into_iter().flat_map(of_family).collect()
}

/// behaviour.md 4.1: by every kind of frontend, whatever the policies, from pods and from outside.
#[test]
pub(super) fn rule_4_1_without_endpoints_every_frontend_refuses() -> Result<()> {
    require_root!();
    for policy in [Policy::Cluster, Policy::Local] {
        outside::cluster().run(|lab| {
            let service = outside::expose(lab, "empty", 1, &[])?;
            let service = service.external_policy(policy).internal_policy(policy);
            lab.apply(&service)?;
            let _agents = outside::start_agents(lab)?;
            refused(lab, "client", &cluster_ips(&service, PORT))?;
            refused(lab, "client", &outside::frontends(lab, &service))?;
            refused(lab, "outside", &outside::frontends(lab, &service))
        })?;
    }
    Ok(())
}

/// behaviour.md 4.6
#[test]
pub(super) fn rule_4_6_a_wrong_port_of_a_cluster_ip_refuses() -> Result<()> {
    require_root!();
    outside::cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["near"])?;
        let _agents = lab.start_agents()?;
        refused(lab, "client", &cluster_ips(&service, PORT + 1))
    })
}
