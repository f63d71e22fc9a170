//! Processes of the host itself: translated at their sockets, before there is a packet.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Answer, Connection, Family, FrontendKind, Lab, PATIENCE, Policy, Protocol, RequestError, Service, UdpClient,
        address::OUTSIDE, wait_until,
    },
    require_root,
};

use super::{
    PORT,
    change::change,
    outside::{NODE_PORT, cluster, expose, expose_each, start_agents},
};

/// How a process talks to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Tcp,
    /// UDP, every datagram with an address
    Datagrams,
    /// UDP over a connected socket
    ConnectedUdp,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Tcp, Self::Datagrams, Self::ConnectedUdp];

    /// Asks a server who it is. To the process, its peer must be who it asked.
    pub(super) fn ask(self, to: SocketAddr) -> Result<Answer, RequestError> {
        let is = |peer: SocketAddr| {
            let told = RequestError::Wrong(format!("connected to {peer} instead of {to}"));
            if peer == to { Ok(()) } else { Err(told) }
        };
        match self {
            Self::Tcp => {
                let mut connection = Connection::open(to)?;
                is(connection.peer()?)?;
                connection.ask()
            }
            Self::Datagrams => UdpClient::bind(0, to)?.ask(to),
            Self::ConnectedUdp => {
                let mut client = UdpClient::bind(0, to)?;
                client.connect(to)?;
                is(client.peer()?)?;
                client.ask_peer(to)
            }
        }
    }
}

/// An IPv4 address as those with IPv6 sockets write it.
fn mapped(to: SocketAddr) -> Option<SocketAddr> {
    match to.ip() {
        IpAddr::V4(address) => Some(SocketAddr::new(address.to_ipv6_mapped().into(), to.port())),
        IpAddr::V6(_) => None,
    }
}

/// The loopback address of a family.
pub(super) fn loopback(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::from(([127, 0, 0, 1], port)),
        Family::V6 => SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port)),
    }
}

/// Every address that a process on node-a reaches a Service by.
fn frontends(lab: &Lab, service: &Service) -> Vec<SocketAddr> {
    let [here, there] = ["node-a", "node-b"].map(|node| lab.node(node));
    let of_family = |family| {
        let at = |kind, node| service.frontend_of(kind, family, "tcp", node);
        let node_port = at(FrontendKind::NodePort, here);
        [
            service.frontend(family, PORT),
            at(FrontendKind::ExternalIp, here),
            at(FrontendKind::LoadBalancer, here),
            node_port,
            at(FrontendKind::NodePort, there),
            loopback(family, node_port.port()),
        ]
    };
    Family::ALL.into_iter().flat_map(of_family).collect()
}

/// Asks in every way, also by the mapped address; every answer must be right.
pub(super) fn ask_every_way(lab: &Lab, from: &str, to: SocketAddr, rightly: impl Fn(&Answer) -> bool) -> Result<()> {
    for to in [Some(to), mapped(to)].into_iter().flatten() {
        for way in Way::ALL {
            let answer = lab.namespace(from).run(|| way.ask(to));
            let answer = answer.with_context(|| format!("{way:?} from {from} to {to}"))?;
            ensure!(rightly(&answer), "{way:?} from {from} to {to}: {answer:?}");
        }
    }
    Ok(())
}

/// behaviour.md 3.5, 3.7: processes of the host, and pods in its network, reach every frontend, whichever the backend; at the
/// loopback addresses as well. The backend sees an address of the node.
#[test]
fn rule_3_5_processes_of_the_host_reach_every_frontend() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far", "node-a", "node-b"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        for (backend, service) in &services {
            for to in frontends(lab, service) {
                let elsewhere = lab.node("node-b").addresses().both().contains(&to.ip());
                ask_every_way(lab, "node-a", to, |answer| {
                    let seen = answer.peer.ip();
                    // By the other node's nodePort the other node asks.
                    answer.backend == *backend
                        && (lab.node("node-a").holds(seen) || elsewhere && lab.node("node-b").holds(seen))
                })
                .with_context(|| service.full_name())?;
            }
        }
        Ok(())
    })
}

/// One socket asks two Services in turns, and is answered by who it asked.
#[test]
fn one_socket_asks_several_services() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            lab.namespace("node-a").run(|| {
                let [(_, first), _] = &services[..] else {
                    unreachable!("two Services")
                };
                let mut client = UdpClient::bind(0, first.frontend(family, PORT))?;
                for _ in 0..3 {
                    for (backend, service) in &services {
                        for to in [service.frontend(family, PORT), loopback(family, NODE_PORT + 1)] {
                            let answer = client.ask(to).with_context(|| format!("{to}"))?;
                            let expected = if to.ip().is_loopback() { "near" } else { backend };
                            ensure!(answer.backend == expected, "{to}: {answer:?}");
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// behaviour.md 4.1, 4.6: without endpoints, and at ports that no Service has, the process is told at once.
#[test]
fn rule_4_1_what_has_no_endpoint_is_refused_at_once() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "empty", 1, &[])?;
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        let of_node_a = |to: &SocketAddr| !lab.node("node-b").addresses().both().contains(&to.ip());
        let mut refused: Vec<_> = frontends(lab, &service).into_iter().filter(of_node_a).collect();
        refused.extend(Family::ALL.map(|family| service.frontend(family, PORT + 1)));
        for to in refused {
            for to in [Some(to), mapped(to)].into_iter().flatten() {
                for way in Way::ALL {
                    let outcome = lab.namespace("node-a").run(|| way.ask(to));
                    let refused = outcome.as_ref().is_err_and(RequestError::is_refused);
                    ensure!(refused, "{way:?} to {to}: {outcome:?}");
                }
            }
        }
        Ok(())
    })
}

/// behaviour.md 4.2, 4.3: under policy Local a cluster address without an endpoint here neither answers nor refuses, while
/// outside addresses give the node any endpoint (5.6).
#[test]
fn rule_4_2_and_4_3_policy_local() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["far"])?
            .external_policy(Policy::Local)
            .internal_policy(Policy::Local);
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for to in frontends(lab, &service) {
            if to.ip() == service.frontend(Family::V4, PORT).ip() || to.ip() == service.frontend(Family::V6, PORT).ip()
            {
                for way in [Way::Tcp, Way::Datagrams] {
                    let outcome = lab.namespace("node-a").run(|| way.ask(to));
                    let silent = outcome.as_ref().is_err_and(|error| !error.is_refused());
                    ensure!(silent, "{way:?} to {to}: {outcome:?}");
                }
            } else {
                ask_every_way(lab, "node-a", to, |answer| answer.backend == "far")?;
            }
        }
        Ok(())
    })
}

/// behaviour.md 3.10: processes of the host are let in by the address that their packets would have.
#[test]
fn rule_3_10_source_ranges_hold_for_processes_of_the_host() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let open = expose(lab, "web", 1, &["near"])?;
        lab.apply(&open)?;
        let _agents = start_agents(lab)?;
        let node = lab.node("node-a").addresses();
        let here = [format!("{}/32", node.v4), format!("{}/128", node.v6)];
        let here = here.each_ref().map(String::as_str);
        for (ranges, let_in) in [(&here[..], true), (&["192.0.2.0/24", "2001:db8::/32"][..], false)] {
            change(lab, &open.clone().source_ranges(ranges))?;
            for family in Family::ALL {
                let to = open.frontend_of(FrontendKind::LoadBalancer, family, "tcp", lab.node("node-a"));
                if let_in {
                    ask_every_way(lab, "node-a", to, |answer| answer.backend == "near")?;
                } else {
                    let outcome = lab.namespace("node-a").run(|| Way::Datagrams.ask(to));
                    let silent = outcome.as_ref().is_err_and(|error| !error.is_refused());
                    ensure!(silent, "{to}: {outcome:?}");
                }
                // The other frontends are open.
                ask_every_way(lab, "node-a", open.frontend(family, PORT), |answer| {
                    answer.backend == "near"
                })?;
            }
        }
        Ok(())
    })
}

/// behaviour.md 6.1: a client is its address. Packets from outside have chosen an endpoint; then the node gets the client's address,
/// and a process of the host that uses it is given the same one by the socket hooks.
fn sockets_share_what_packets_chose(lab: &Lab, service: &Service) -> Result<()> {
    let ways = || {
        Family::ALL
            .into_iter()
            .flat_map(|family| [(family, Protocol::Tcp), (family, Protocol::Udp)])
    };
    let frontend = |kind, family, protocol: Protocol| {
        let port = protocol.to_string().to_lowercase();
        service.frontend_of(kind, family, &port, lab.node("node-a"))
    };
    let chosen = ways()
        .map(|(family, protocol)| {
            let to = frontend(FrontendKind::LoadBalancer, family, protocol);
            Ok(lab.request("outside", protocol, to)?.backend)
        })
        .collect::<Result<Vec<_>>>()?;
    lab.namespace("node-a").ip(&format!(
        "addr add {}/32 dev lo\naddr add {}/128 dev lo nodad\n",
        OUTSIDE.v4, OUTSIDE.v6
    ))?;
    for ((family, protocol), first) in ways().zip(chosen) {
        let (local, to) = (
            OUTSIDE.with_port(family, 0),
            frontend(FrontendKind::ClusterIp, family, protocol),
        );
        let answer = lab.namespace("node-a").run(|| match protocol {
            Protocol::Tcp => Connection::open_at(local, to)?.ask(),
            _ => UdpClient::bind_at(local)?.ask(to),
        });
        let answer = answer.with_context(|| format!("from {local} to {to}, {protocol}"))?;
        ensure!(answer.backend == first, "{local}, {protocol}: {answer:?} after {first}");
    }
    Ok(())
}

/// behaviour.md 6.1: a process of the host keeps its endpoint, over all its sockets and by every frontend.
#[test]
fn rule_6_1_processes_of_the_host_keep_their_endpoint() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far", "node-b"])?.affinity(Duration::from_secs(1000));
        // Their answers come back wherever the client's address is.
        let here = expose(lab, "here", 2, &["near", "client", "node-a"])?.affinity(Duration::from_secs(1000));
        for service in [&service, &here] {
            lab.apply(service)?;
        }
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            for port in ["tcp", "udp"] {
                let way = if port == "tcp" { Way::Tcp } else { Way::Datagrams };
                let ask = |kind| {
                    let to = service.frontend_of(kind, family, port, lab.node("node-a"));
                    lab.namespace("node-a").run(|| way.ask(to))
                };
                let first = ask(FrontendKind::ClusterIp)?.backend;
                for _ in 0..5 {
                    for kind in [
                        FrontendKind::ClusterIp,
                        FrontendKind::ExternalIp,
                        FrontendKind::LoadBalancer,
                    ] {
                        let answer = ask(kind)?;
                        ensure!(answer.backend == first, "{kind:?}, {port}: {answer:?} after {first}");
                    }
                }
            }
        }
        sockets_share_what_packets_chose(lab, &here)
    })
}

/// behaviour.md 7.3: a socket that sends datagrams one by one follows the endpoints.
#[test]
fn rule_7_3_unconnected_sockets_leave_endpoints_that_serve_no_more() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let near = expose(lab, "web", 1, &["near"])?;
        let far = expose(lab, "web", 1, &["far"])?;
        lab.apply(&near)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            let to = near.frontend_of(FrontendKind::ClusterIp, family, "udp", lab.node("node-a"));
            let mut client = lab.namespace("node-a").run(|| UdpClient::bind(0, to))?;
            for (service, backend) in [(&near, "near"), (&far, "far"), (&near, "near")] {
                change(lab, service)?;
                // The change is there before the sockets are told.
                wait_until(&format!("{backend} answers at {to}"), PATIENCE, || {
                    (client.ask(to).ok()?.backend == backend).then_some(())
                })?;
            }
        }
        Ok(())
    })
}

/// Where the addresses that processes use have no other meaning, nothing changes for them.
#[test]
fn other_traffic_of_processes_is_left_alone() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&service)?;
        lab.serve("node-a", PORT)?;
        lab.serve("outside", PORT)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            for (name, addresses) in [("node-a", lab.node("node-a").addresses()), ("outside", OUTSIDE)] {
                let to = addresses.with_port(family, PORT);
                ask_every_way(lab, "node-a", to, |answer| answer.backend == name)?;
            }
            // A backend that is used directly is known by its own address.
            let to = lab.pod("near").addresses().with_port(family, super::POD_PORT);
            ask_every_way(lab, "node-a", to, |answer| answer.backend == "near")?;
        }
        Ok(())
    })
}
