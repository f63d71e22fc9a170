//! A Service changes while it is used: its type, ports, policies, ranges and affinity.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_tests::{
    lab::{
        Answer, Connection, Family, FrontendKind, Lab, Policy, Protocol, Service, UdpClient,
        address::{self, OUTSIDE},
    },
    require_root,
};

use super::{
    POD_PORT, PORT,
    outside::{cluster, expose, frontends, start_agents},
    serve, service,
    silence::dropped,
};

const NODE_PORT: u16 = 30_080;

/// Gives the agents a Service and waits until both serve it.
pub(super) fn change(lab: &Lab, service: &Service) -> Result<()> {
    lab.apply(service)?;
    lab.settle_everywhere()
}

/// A request is answered, over either protocol and family, by exactly these kinds of frontends; nobody serves the others,
/// not even with a refusal of ours, except that the node itself refuses at its own address.
fn expect_served(lab: &Lab, service: &Service, described: &Service, kinds: &[FrontendKind]) -> Result<()> {
    change(lab, service)?;
    let all = [
        FrontendKind::ClusterIp,
        FrontendKind::NodePort,
        FrontendKind::LoadBalancer,
    ];
    for kind in all {
        let from = if kind == FrontendKind::ClusterIp {
            "client"
        } else {
            "outside"
        };
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let port = protocol.to_string().to_lowercase();
                let to = described.frontend_of(kind, family, &port, lab.node("node-a"));
                let outcome = lab.request(from, protocol, to);
                ensure!(
                    outcome.is_ok() == kinds.contains(&kind),
                    "{protocol} {kind:?} {to} of {kinds:?}: {outcome:?}"
                );
            }
        }
    }
    Ok(())
}

/// behaviour.md 3.1
#[test]
fn rule_3_1_the_type_of_a_live_service_changes() -> Result<()> {
    use FrontendKind::{ClusterIp, LoadBalancer, NodePort};
    require_root!();
    cluster().run(|lab| {
        lab.announce(address::balancer(1), &["node-a"])?;
        let plain = serve(lab, "web", 1, &["near", "far"])?;
        let nodes = plain.clone().node_port("tcp", NODE_PORT).node_port("udp", NODE_PORT);
        let balanced = nodes.clone().balancer(address::balancer(1), None);
        let _agents = start_agents(lab)?;
        let mut open = lab
            .namespace("client")
            .run(|| Connection::open(plain.frontend(Family::V4, PORT)))?;
        let backend = open.ask()?.backend;
        for (service, kinds) in [
            (&plain, &[ClusterIp][..]),
            (&nodes, &[ClusterIp, NodePort]),
            (&balanced, &[ClusterIp, NodePort, LoadBalancer]),
            (&plain, &[ClusterIp]),
        ] {
            expect_served(lab, service, &balanced, kinds)?;
            ensure!(open.ask()?.backend == backend, "the connection moved");
        }
        Ok(())
    })
}

/// Ports of a Service come, go, and get another nodePort or target; connections through the others stay.
#[test]
fn ports_of_a_live_service_change() -> Result<()> {
    const TARGET: u16 = 9090;
    require_root!();
    cluster().run(|lab| {
        let near = expose(lab, "web", 1, &["near"])?;
        lab.serve("near", TARGET)?;
        let more = near.clone().port("more", Protocol::Tcp, PORT + 1, TARGET);
        let moved = more.clone().node_port("more", NODE_PORT);
        let again = moved.clone().node_port("more", NODE_PORT + 1);
        lab.apply(&near)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            let number = more.frontend(family, PORT + 1);
            let at_node =
                |service: &Service| service.frontend_of(FrontendKind::NodePort, family, "more", lab.node("node-a"));
            let reached = |from: &str, to| -> Result<u16> {
                let reached = lab.namespace(from).run(|| Connection::open(to)?.reached());
                Ok(reached.with_context(|| format!("{from} to {to}"))?.port())
            };
            let refused = |from: &str, to: SocketAddr| match lab.tcp_request(from, to) {
                Err(error) if error.is_refused() => Ok(()),
                other => bail!("{from} to {to}: {other:?}"),
            };
            let to = near.frontend_of(FrontendKind::NodePort, family, "tcp", lab.node("node-a"));
            let mut open = lab.namespace("outside").run(|| Connection::open(to))?;
            open.ask()?;
            // behaviour.md 4.6
            refused("client", number)?;
            change(lab, &more)?;
            ensure!(reached("client", number)? == TARGET);
            change(lab, &moved)?;
            ensure!(reached("outside", at_node(&moved))? == TARGET);
            change(lab, &again)?;
            ensure!(reached("outside", at_node(&again))? == TARGET);
            // Nobody listens on the node itself.
            refused("outside", at_node(&moved))?;
            let other_target = again
                .clone()
                .without_port("more")
                .port("more", Protocol::Tcp, PORT + 1, POD_PORT);
            change(lab, &other_target)?;
            ensure!(reached("client", number)? == POD_PORT);
            refused("outside", at_node(&again))?;
            change(lab, &near)?;
            refused("client", number)?;
            open.push(10_000)?;
        }
        Ok(())
    })
}

/// Open connections and UDP conversations from outside, one by each kind of frontend.
struct Conversations<'a> {
    lab: &'a Lab,
    tcp: Vec<(Connection, Answer)>,
    udp: Vec<(UdpClient, SocketAddr, Answer)>,
}

impl<'a> Conversations<'a> {
    fn open(lab: &'a Lab, targets: &[(Protocol, SocketAddr)]) -> Result<Self> {
        let mut conversations = Self {
            lab,
            tcp: Vec::new(),
            udp: Vec::new(),
        };
        for &(protocol, to) in targets {
            lab.namespace("outside").run(|| -> Result<()> {
                if protocol == Protocol::Tcp {
                    let mut connection = Connection::open(to)?;
                    let answer = connection.ask()?;
                    conversations.tcp.push((connection, answer));
                } else {
                    let mut socket = UdpClient::bind(0, to)?;
                    let answer = socket.ask(to)?;
                    conversations.udp.push((socket, to, answer));
                }
                Ok(())
            })?;
        }
        Ok(conversations)
    }

    /// Each goes on with the same backend, seen as the same client.
    fn go_on(&mut self) -> Result<()> {
        let same = |before: &Answer, now: &Answer| {
            let who = |answer: &Answer| (answer.backend.clone(), answer.peer);
            ensure!(who(before) == who(now), "{now:?} after {before:?}");
            Ok(())
        };
        for (connection, before) in &mut self.tcp {
            same(before, &connection.ask()?)?;
            connection.push(10_000)?;
        }
        for (socket, to, before) in &mut self.udp {
            same(before, &socket.ask(*to)?)?;
        }
        ensure!(self.lab.namespace("outside").checksum_errors()? == 0);
        Ok(())
    }
}

/// The policy decides about new connections only: what is open goes on, masqueraded or not, whether or not the new policy
/// has an endpoint for it (behaviour.md 4.4, 7.4).
#[test]
fn rule_4_4_a_policy_changes_under_open_connections() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let other = expose(lab, "other", 2, &["near"])?;
        lab.apply(&other)?;
        let served = other.frontend_of(FrontendKind::NodePort, Family::V4, "udp", lab.node("node-a"));
        let far = expose(lab, "web", 1, &["far"])?;
        let both = expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&far)?;
        let _agents = start_agents(lab)?;
        let targets = frontends(lab, &far);
        let mut masqueraded = Conversations::open(lab, &targets)?;

        change(lab, &far.clone().external_policy(Policy::Local))?;
        dropped(lab, "outside", &targets, served)?;
        masqueraded.go_on().context("Cluster, then Local without an endpoint")?;

        change(lab, &both.clone().external_policy(Policy::Local))?;
        masqueraded.go_on().context("Cluster, then Local")?;
        let mut plain = Conversations::open(lab, &targets)?;
        for answer in plain.tcp.iter().map(|(_, answer)| answer) {
            ensure!(
                answer.backend == "near" && OUTSIDE.both().contains(&answer.peer.ip()),
                "{answer:?}"
            );
        }
        change(lab, &both)?;
        plain.go_on().context("Local, then Cluster")?;
        masqueraded.go_on().context("there and back")
    })
}

/// Ranges decide about new connections only.
#[test]
fn rule_3_10_source_ranges_change_under_open_connections() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        let served = service.frontend_of(FrontendKind::NodePort, Family::V4, "udp", lab.node("node-a"));
        let is_guarded = |to: &SocketAddr| address::balancer(1).both().contains(&to.ip());
        let targets = frontends(lab, &service).into_iter();
        let targets: Vec<_> = targets.filter(|(_, to)| is_guarded(to)).collect();
        let mut open = Conversations::open(lab, &targets)?;
        for _ in 0..2 {
            change(
                lab,
                &service.clone().source_ranges(&["198.51.100.0/24", "2001:db8:51::/64"]),
            )?;
            open.go_on().context("outside the new ranges")?;
            dropped(lab, "outside", &targets, served)?;
            change(
                lab,
                &service.clone().source_ranges(&["192.0.2.10/32", "2001:db8::10/128"]),
            )?;
            open.go_on().context("within the new ranges")?;
            Conversations::open(lab, &targets)?.go_on()?;
        }
        change(lab, &service)?;
        Conversations::open(lab, &targets)?.go_on()
    })
}

/// behaviour.md 6.5: clients stay with an endpoint as long as affinity is on; connections stay in any case.
#[test]
fn rule_6_5_affinity_is_switched_on_and_off() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let loose = expose(lab, "web", 1, &["near", "far"])?;
        let sticky = loose.clone().affinity(Duration::from_hours(1));
        lab.apply(&loose)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            let to = loose.frontend_of(FrontendKind::NodePort, family, "tcp", lab.node("node-a"));
            // One endpoint of two is chosen 40 times by chance once in 10^12 cases.
            let backends = || -> Result<usize> {
                let answers = (0..40).map(|_| Ok(lab.tcp_request("outside", to)?.backend));
                let mut backends = answers.collect::<Result<Vec<_>>>()?;
                backends.sort_unstable();
                backends.dedup();
                Ok(backends.len())
            };
            let mut open = lab.namespace("outside").run(|| Connection::open(to))?;
            let backend = open.ask()?.backend;
            for (service, expected) in [(&loose, 2), (&sticky, 1), (&loose, 2), (&sticky, 1)] {
                change(lab, service)?;
                let found = backends()?;
                ensure!(found == expected, "{family}: {found} backends instead of {expected}");
                ensure!(open.ask()?.backend == backend, "the connection moved");
            }
            change(lab, &loose)?;
        }
        Ok(())
    })
}

/// Ports of two Services share a nodePort number if their protocols differ (behaviour.md 1.5).
#[test]
fn rule_1_5_tcp_and_udp_have_one_node_port_number() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        for pod in ["near", "far"] {
            lab.serve(pod, POD_PORT)?;
        }
        let of = |name: &str, number, port: &str, without: &str, pod: &str| {
            let service = service(name, address::cluster(number)).without_port(without);
            service.node_port(port, NODE_PORT).pods(&[lab.pod(pod)])
        };
        let _agents = start_agents(lab)?;
        for (tcp, udp) in [("near", "far"), ("far", "near")] {
            lab.apply(&of("stream", 1, "tcp", "udp", tcp))?;
            change(lab, &of("datagram", 2, "udp", "tcp", udp))?;
            for family in Family::ALL {
                let to = lab.node("node-a").addresses().with_port(family, NODE_PORT);
                for (protocol, pod) in [(Protocol::Tcp, tcp), (Protocol::Udp, udp)] {
                    let answer = lab.request("outside", protocol, to)?;
                    ensure!(answer.backend == pod, "{protocol} {to}: {answer:?}");
                }
            }
        }
        Ok(())
    })
}
