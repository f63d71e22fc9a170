//! The Services of the soak and how they change.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;

use crate::lab::{
    Addresses, Builder, Family, FrontendKind, Lab, Node, Policy, Protocol, Service, State,
    address::{self},
};

/// Port that every backend listens on, and port of every Service.
const BACKEND_PORT: u16 = 8080;
const PORT: u16 = 80;
const NODE_PORT: u16 = 30_000;
/// Backends of each node; the first of each never leaves, so that long connections have somewhere to stay.
const BACKENDS: [(&str, &[&str]); 2] = [("node-a", &["a-1", "a-2", "a-3"]), ("node-b", &["b-1", "b-2", "b-3"])];
/// Where floods go: datagrams that a flood crowds out of a server's socket are not the proxy's.
const SINK: &str = "sink";
/// Services that nobody uses, which come and go.
const STRANGERS: u8 = 40;

/// Two nodes with a client and backends, and a client outside.
pub(super) fn describe() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "a-1", "a-2", "a-3"])
        .node("node-b", &["far-client", "b-1", "b-2", "b-3", SINK])
        .outside()
}

/// What can happen to a backend of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Ready,
    /// Keeps its flows and is to get no new ones
    Ending,
    /// The same, and every agent knows it: no request to it is under way any more
    Ended,
    Gone,
}

/// A Service under traffic and the backends that may change.
#[derive(Debug)]
struct Subject {
    service: Service,
    members: Vec<(&'static str, Membership)>,
}

impl Subject {
    fn new(lab: &Lab, name: &str, number: u8, change: impl FnOnce(Service) -> Service) -> Self {
        let service = service(name, number);
        let backends: Vec<&str> = BACKENDS.iter().flat_map(|(_, names)| *names).copied().collect();
        let pods: Vec<_> = backends.iter().map(|name| lab.pod(name)).collect();
        Self {
            service: change(service.pods(&pods)),
            members: backends.into_iter().map(|name| (name, Membership::Ready)).collect(),
        }
    }

    /// The Service as its backends are now.
    fn now(&self) -> Service {
        let service = self.service.clone();
        self.members
            .iter()
            .fold(service, |service, (name, membership)| match membership {
                Membership::Ready => service,
                Membership::Ending | Membership::Ended => service.state(name, State::Terminating),
                Membership::Gone => service.without(name),
            })
    }

    /// Moves one backend on: a ready one begins to end, one that has ended goes, one that is gone comes back.
    fn change(&mut self, random: &mut fastrand::Rng) {
        let changing: Vec<usize> = (0..self.members.len())
            .filter(|&index| !self.members[index].0.ends_with("-1"))
            .collect();
        let (_, membership) = &mut self.members[changing[random.usize(..changing.len())]];
        *membership = match membership {
            Membership::Ready | Membership::Ending => Membership::Ending,
            Membership::Ended => Membership::Gone,
            Membership::Gone => Membership::Ready,
        };
    }
}

/// A Service with a frontend of every kind.
fn service(name: &str, number: u8) -> Service {
    let node_port = NODE_PORT + u16::from(number);
    Service::new("soak", name, address::cluster(number))
        .port("tcp", Protocol::Tcp, PORT, BACKEND_PORT)
        .port("udp", Protocol::Udp, PORT, BACKEND_PORT)
        .node_port("tcp", node_port)
        .node_port("udp", node_port)
        .external(address::external(number))
        .balancer(address::balancer(number), None)
}

/// All Services.
#[derive(Debug)]
pub(super) struct Cluster {
    subjects: Vec<Subject>,
    sink: Service,
    strangers: Vec<u8>,
}

impl Cluster {
    /// Starts the backends and describes the Services to the agents, which need not run yet.
    pub(super) fn apply(lab: &Lab) -> Result<Self> {
        for (_, backends) in BACKENDS {
            for backend in backends {
                lab.serve(backend, BACKEND_PORT)?;
            }
        }
        let hour = Duration::from_hours(1);
        let subjects = vec![
            Subject::new(lab, "web", 1, |service| service),
            Subject::new(lab, "local", 2, |service| service.external_policy(Policy::Local)),
            Subject::new(lab, "sticky", 3, |service| service.affinity(hour)),
        ];
        for (subject, number) in subjects.iter().zip(1..) {
            for announced in [address::external(number), address::balancer(number)] {
                lab.announce(announced, &["node-a"])?;
            }
            lab.apply(&subject.service)?;
        }
        lab.serve(SINK, BACKEND_PORT)?;
        let sink = service(SINK, 4).pods(&[lab.pod(SINK)]);
        lab.apply(&sink)?;
        Ok(Self {
            subjects,
            sink,
            strangers: Vec::new(),
        })
    }

    /// Changes something; the agents are told, not waited for.
    pub(super) fn change(&mut self, lab: &Lab, random: &mut fastrand::Rng) -> Result<()> {
        if random.bool() {
            let index = random.usize(..self.subjects.len());
            self.subjects[index].change(random);
            return lab.apply(&self.subjects[index].now());
        }
        let number = random.u8(..STRANGERS);
        let address = address::cluster(100 + number);
        let stranger = Service::new("soak", &format!("stranger-{number}"), address).port("tcp", Protocol::Tcp, PORT, 1);
        if let Some(known) = self.strangers.iter().position(|&known| known == number) {
            self.strangers.swap_remove(known);
            lab.delete(&stranger)
        } else {
            self.strangers.push(number);
            let nowhere = Addresses {
                v4: [192, 0, 2, number].into(),
                v6: [0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()].into(),
            };
            lab.apply(&stranger.member("nowhere", "", nowhere))
        }
    }

    /// Waits until every agent has taken in every change.
    pub(super) fn settle(&mut self, lab: &Lab) -> Result<()> {
        lab.settle_everywhere()?;
        let members = self.subjects.iter_mut().flat_map(|subject| &mut subject.members);
        for (_, membership) in members.filter(|(_, membership)| *membership == Membership::Ending) {
            *membership = Membership::Ended;
        }
        Ok(())
    }

    /// What is flooded: ClusterIPs and nodePorts of node-a.
    pub(super) fn flooded(&self, lab: &Lab) -> Vec<(Protocol, SocketAddr)> {
        let kinds = [FrontendKind::ClusterIp, FrontendKind::NodePort];
        targets([&self.sink], lab.node("node-a"), &kinds)
    }

    /// What a pod uses, with the nodePorts of its own node: what becomes of those of another under policy Local is left open
    /// (behaviour.md 5.11).
    pub(super) fn targets_of_pod(&self, lab: &Lab, name: &str) -> Vec<(Protocol, SocketAddr)> {
        let kinds = [
            FrontendKind::ClusterIp,
            FrontendKind::NodePort,
            FrontendKind::ExternalIp,
        ];
        self.targets(lab.node(lab.pod(name).node()), &kinds)
    }

    /// What clients outside use.
    pub(super) fn targets_outside(&self, lab: &Lab) -> Vec<(Protocol, SocketAddr)> {
        self.targets(lab.node("node-a"), &FrontendKind::EXTERNAL)
    }

    fn targets(&self, node: &Node, kinds: &[FrontendKind]) -> Vec<(Protocol, SocketAddr)> {
        targets(self.subjects.iter().map(|subject| &subject.service), node, kinds)
    }
}

fn targets<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    node: &Node,
    kinds: &[FrontendKind],
) -> Vec<(Protocol, SocketAddr)> {
    let mut targets = Vec::new();
    for service in services {
        for &kind in kinds {
            for family in Family::ALL {
                for (protocol, port) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
                    targets.push((protocol, service.frontend_of(kind, family, port, node)));
                }
            }
        }
    }
    targets
}
