//! Datagrams larger than the MTU: every kind of frontend, both families, there and back, in whatever order the fragments come.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context as _, Result, ensure};
use proxy_common::datapath::Reason;
use proxy_tests::{
    lab::{
        BridgeNetfilter, Cni, Family, Interconnect, Lab, Policy, Protocol, RequestError, Service, Shape, UdpClient, raw,
    },
    require_root,
};

use super::{
    POD_PORT, PORT,
    outside::{cluster, expose, expose_each, frontends, start_agents},
};

/// Payloads of datagrams: three fragments, and about as many as there can be.
const LENGTHS: [usize; 2] = [4000, 60_000];
/// Payload of raw fragments, which fit into every MTU.
const SIZE: u16 = 1232;

/// The UDP frontends of a Service for a client outside, and in the cluster.
fn datagram_frontends(lab: &Lab, service: &Service, from: &str) -> Vec<SocketAddr> {
    let mut found: Vec<_> = frontends(lab, service)
        .into_iter()
        .filter_map(|(protocol, to)| (protocol == Protocol::Udp).then_some(to))
        .collect();
    if from != "outside" {
        found.extend(Family::ALL.map(|family| service.frontend(family, PORT)));
    }
    found
}

/// Bytes that differ wherever a fragment may be misplaced.
fn payload(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Large datagrams there and back, from clients to every frontend of every Service.
fn large_datagrams_are_answered(lab: &Lab, clients: &[&str], services: &[(&str, Service)]) -> Result<()> {
    for from in clients {
        for (backend, service) in services {
            for to in datagram_frontends(lab, service, from) {
                for length in LENGTHS {
                    let ask = || UdpClient::bind(0, to)?.ask_with(to, &payload(length));
                    let mut answer = lab.namespace(from).run(ask);
                    // Of a path narrower than its own link a client learns so (RFC 8201), and sends again.
                    if answer.as_ref().is_err_and(RequestError::is_too_long) {
                        answer = lab.namespace(from).run(ask);
                    }
                    let answer = answer.with_context(|| format!("{length} bytes from {from} to {to}, {backend}"))?;
                    ensure!(
                        answer.backend == *backend,
                        "{length} bytes from {from} to {to}: {answer:?}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Checksums that somebody found wrong, and packets that nobody could put together, would be counted.
fn nothing_arrived_broken(lab: &Lab) -> Result<()> {
    for name in ["outside", "client", "near", "far", "node-a", "node-b"] {
        let errors = lab.namespace(name).checksum_errors()?;
        ensure!(errors == 0, "{name} received {errors} wrong checksums");
    }
    Ok(())
}

/// Pods that serve themselves are among the clients (behaviour.md 5.2).
#[test]
pub(super) fn large_datagrams_through_every_frontend() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far", "node-a", "node-b"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        large_datagrams_are_answered(lab, &["outside", "client", "near"], &services)?;
        nothing_arrived_broken(lab)
    })
}

/// behaviour.md 5.5
#[test]
pub(super) fn large_datagrams_by_policy_local() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "node-a"], Policy::Local)?;
        let _agents = start_agents(lab)?;
        large_datagrams_are_answered(lab, &["outside"], &services)?;
        nothing_arrived_broken(lab)
    })
}

/// Connection tracking puts packets together in the middle, and the stack takes them apart again.
#[test]
pub(super) fn large_datagrams_on_strict_nodes() -> Result<()> {
    require_root!();
    cluster().strict().run(|lab| {
        lab.admit_outside()?;
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        large_datagrams_are_answered(lab, &["outside", "client", "near"], &services)?;
        let offended = lab.offended_rules()?;
        ensure!(offended.is_empty(), "{offended:#?}");
        nothing_arrived_broken(lab)
    })
}

/// An order in which fragments are sent: of this place of so many, the fragment.
type Order = fn(usize, usize) -> usize;

const ORDERS: [(&str, Order); 3] = [
    ("last first", |index, count| count - 1 - index),
    ("first last", |index, count| (index + 1) % count),
    ("first in the middle", |index, count| (index + count / 2) % count),
];

/// Sends a datagram in fragments by hand.
fn send_in_fragments(
    lab: &Lab,
    namespace: &str,
    (from, to): (SocketAddr, SocketAddr),
    payload: &[u8],
    (identification, order): (u16, Order),
) -> Result<()> {
    let fragments = raw::fragments(&raw::udp(from, to, payload)?, SIZE, identification)?;
    (0..fragments.len())
        .try_for_each(|index| raw::send(lab.namespace(namespace), &fragments[order(index, fragments.len())]))
}

/// The address that a client's datagrams to `to` are from.
fn local_address(lab: &Lab, from: &str, client: &UdpClient, to: SocketAddr) -> Result<SocketAddr> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let local = || -> Result<IpAddr> {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    };
    Ok(SocketAddr::new(lab.namespace(from).run(local)?, client.local_port()?))
}

/// Requests and answers in fragments, out of order.
fn order_does_not_matter(lab: &Lab, clients: &[&str], services: &[(&str, Service)]) -> Result<()> {
    let mut identification = 1;
    for from in clients {
        for (backend, service) in services {
            for to in datagram_frontends(lab, service, from) {
                let mut client = lab.namespace(from).run(|| UdpClient::bind(0, to))?;
                let seen = client.ask(to)?;
                let ends = (local_address(lab, from, &client, to)?, to);
                let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
                let server = lab.pod(backend).addresses().with_port(family, POD_PORT);
                for length in LENGTHS {
                    for (name, order) in ORDERS {
                        let what = || format!("{length} bytes, {name}, between {from} and {backend} by {to}");
                        identification += 1;
                        send_in_fragments(lab, from, ends, &payload(length), (identification, order))?;
                        let (echo, by) = client.receive().with_context(what)?;
                        ensure!(by == to && echo.ends_with(&payload(length)), "{}: by {by}", what());
                        // What the server says unasked comes back the same way.
                        identification += 1;
                        send_in_fragments(
                            lab,
                            backend,
                            (server, seen.peer),
                            &payload(length),
                            (identification, order),
                        )?;
                        let (answer, by) = client.receive().with_context(what)?;
                        ensure!(by == to && answer == payload(length), "answer to {}: by {by}", what());
                    }
                }
            }
        }
    }
    Ok(())
}

/// From outside, masqueraded: un-masqueraded answers come in, and un-DNATed ones leave, out of order as well.
#[test]
pub(super) fn fragments_in_any_order() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        order_does_not_matter(lab, &["outside", "client"], &services)?;
        let [held, released] =
            [Reason::FragmentHeld, Reason::FragmentReleased].map(|reason| lab.reason_count("node-a", reason));
        let (held, released) = (held?, released?);
        ensure!(
            held > 0 && held == released,
            "{held} fragments were held, {released} released"
        );
        nothing_arrived_broken(lab)
    })
}

#[test]
pub(super) fn fragments_in_any_order_on_strict_nodes() -> Result<()> {
    require_root!();
    cluster().strict().run(|lab| {
        lab.admit_outside()?;
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        order_does_not_matter(lab, &["outside", "client"], &services)?;
        let offended = lab.offended_rules()?;
        ensure!(offended.is_empty(), "{offended:#?}");
        nothing_arrived_broken(lab)
    })
}

/// What is for the node itself passes the same hooks, and must arrive in any order, too.
#[test]
pub(super) fn fragments_for_the_node_in_any_order() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        lab.serve("node-a", POD_PORT)?;
        let _services = expose_each(lab, &["near"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        let mut identification = 1;
        for family in Family::ALL {
            let to = lab.node("node-a").addresses().with_port(family, POD_PORT);
            let client = lab.namespace("outside").run(|| UdpClient::bind(0, to))?;
            let own = local_address(lab, "outside", &client, to)?;
            for (name, order) in ORDERS {
                identification += 1;
                send_in_fragments(lab, "outside", (own, to), &payload(4000), (identification, order))?;
                let (echo, by) = client.receive().with_context(|| format!("{family}, {name}"))?;
                ensure!(by == to && echo.ends_with(&payload(4000)), "{family}, {name}: by {by}");
            }
        }
        Ok(())
    })
}

/// What a node itself sends to endpoints is looked at where it leaves, for a masquerade may have its ports.
fn fragments_of_the_node_in_any_order(lab: &Lab) -> Result<()> {
    let mut identification = 1;
    for backend in ["near", "far"] {
        for family in Family::ALL {
            let to = lab.pod(backend).addresses().with_port(family, POD_PORT);
            let client = lab.namespace("node-a").run(|| UdpClient::bind(0, to))?;
            let own = local_address(lab, "node-a", &client, to)?;
            for (name, order) in ORDERS {
                identification += 1;
                send_in_fragments(lab, "node-a", (own, to), &payload(4000), (identification, order))?;
                let (echo, by) = client
                    .receive()
                    .with_context(|| format!("{family}, {backend}, {name}"))?;
                ensure!(by == to && echo.ends_with(&payload(4000)), "{family}, {name}: by {by}");
            }
        }
    }
    Ok(())
}

/// Between the nodes packets have no Ethernet header, or one of the tunnel's; of a bridge the ports are served.
#[test]
fn fragments_in_any_order_in_every_shape() -> Result<()> {
    require_root!();
    for interconnect in [Interconnect::Tunnel, Interconnect::Vxlan] {
        let shape = Shape {
            cni: Cni::Bridge(BridgeNetfilter::Off),
            interconnect,
        };
        cluster().shape(shape).run(|lab| {
            let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
            let _agents = start_agents(lab)?;
            large_datagrams_are_answered(lab, &["outside", "client"], &services)?;
            order_does_not_matter(lab, &["outside", "client"], &services).with_context(|| shape.to_string())?;
            fragments_of_the_node_in_any_order(lab).with_context(|| shape.to_string())?;
            nothing_arrived_broken(lab)
        })?;
    }
    Ok(())
}

#[test]
fn fragments_of_the_node_itself() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let _services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        fragments_of_the_node_in_any_order(lab)
    })
}

/// behaviour.md 4.1: the first fragment is answered like a whole packet, the others go nowhere.
#[test]
fn rule_4_1_large_datagrams_are_refused() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &[])?;
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        let mut asked = 0;
        for from in ["outside", "client"] {
            for to in datagram_frontends(lab, &service, from) {
                let ask = || UdpClient::bind(0, to)?.ask_with(to, &payload(4000));
                let refused = lab.namespace(from).run(ask);
                ensure!(
                    refused.as_ref().is_err_and(RequestError::is_refused),
                    "from {from} to {to}: {refused:?}"
                );
                asked += 1;
            }
        }
        let dropped = lab.reason_count("node-a", Reason::FragmentRefused)?;
        ensure!(
            dropped == 2 * asked,
            "{dropped} fragments of {asked} datagrams were dropped"
        );
        Ok(())
    })
}
