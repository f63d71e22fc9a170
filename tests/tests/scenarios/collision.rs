//! One port number used by several clients of one backend: where masqueraded flows could be mistaken for each other, or for
//! the node's own.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Connection, Family, FrontendKind, Lab, Policy, Protocol, Service, UdpClient},
    require_root,
};

use super::{
    POD_PORT,
    outside::{cluster, expose_each, start_agents},
};

/// A conversation from a port that was chosen. UDP sockets of one port would take each other's datagrams: they share one.
enum Conversation {
    Tcp(Connection),
    Udp(Arc<Mutex<UdpClient>>, SocketAddr),
}

impl Conversation {
    fn open(lab: &Lab, from: &str, port: u16, protocol: Protocol, to: SocketAddr) -> Result<Self> {
        let open = || -> Result<Self> {
            Ok(match protocol {
                Protocol::Tcp => Self::Tcp(Connection::open_from(port, to)?),
                _ => Self::Udp(Arc::new(Mutex::new(UdpClient::bind(port, to)?)), to),
            })
        };
        let mut conversation = lab.namespace(from).run(open)?;
        conversation
            .peer()
            .with_context(|| format!("{protocol} from {from}:{port} to {to}"))?;
        Ok(conversation)
    }

    /// The same from the same port to another address, from a UDP socket that is open already.
    fn beside(&self, to: SocketAddr) -> Option<Self> {
        match self {
            Self::Tcp(_) => None,
            Self::Udp(socket, _) => Some(Self::Udp(Arc::clone(socket), to)),
        }
    }

    /// Whom the backend sees.
    fn peer(&mut self) -> Result<SocketAddr> {
        Ok(match self {
            Self::Tcp(connection) => connection.ask()?,
            Self::Udp(socket, to) => socket.lock().expect("nobody panics here").ask(*to)?,
        }
        .peer)
    }

    /// Goes on with some data.
    fn go_on(&mut self) -> Result<()> {
        match self {
            Self::Tcp(connection) => connection.push(20_000).map(drop)?,
            Self::Udp(socket, to) => {
                let mut socket = socket.lock().expect("nobody panics here");
                socket.ask_with(*to, &[0xa5; 1000]).map(drop)?;
            }
        }
        Ok(())
    }
}

/// All go on, in turns, and the backend tells each from the others.
fn all_differ(what: &str, conversations: &mut [Conversation]) -> Result<()> {
    let mut before = Vec::new();
    for _ in 0..3 {
        let mut peers = Vec::new();
        for conversation in &mut *conversations {
            peers.push(conversation.peer().with_context(|| what.to_owned())?);
            conversation.go_on().with_context(|| what.to_owned())?;
        }
        ensure!(
            before.is_empty() || before == peers,
            "{what}: {peers:?} after {before:?}"
        );
        let mut sorted = peers.clone();
        sorted.sort_unstable();
        sorted.dedup();
        ensure!(sorted.len() == peers.len(), "{what}: {peers:?}");
        before = peers;
    }
    Ok(())
}

/// Every family and protocol, with ports that no other case has used.
fn cases() -> impl Iterator<Item = (Family, Protocol, u16)> {
    let all = Family::ALL
        .into_iter()
        .flat_map(|family| Protocol::ALL.map(|protocol| (family, protocol)));
    all.zip((20_000..).step_by(10))
        .map(|((family, protocol), port)| (family, protocol, port))
}

fn frontend(
    lab: &Lab,
    service: &Service,
    kind: FrontendKind,
    family: Family,
    protocol: Protocol,
    node: &str,
) -> SocketAddr {
    service.frontend_of(kind, family, &protocol.to_string().to_lowercase(), lab.node(node))
}

/// Two clients, and one of them through every external frontend and through nodePorts of two nodes: from one port each time.
#[test]
fn rule_5_1_one_source_port_by_many_ways_to_one_backend() -> Result<()> {
    use FrontendKind::{ExternalIp, LoadBalancer, NodePort};
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        for (_, service) in &services {
            for (family, protocol, port) in cases() {
                let ways = [
                    ("outside", LoadBalancer, "node-a"),
                    ("client", LoadBalancer, "node-a"),
                    ("outside", ExternalIp, "node-a"),
                    ("client", ExternalIp, "node-a"),
                    ("outside", NodePort, "node-a"),
                    ("outside", NodePort, "node-b"),
                ];
                let what = format!("{}, {protocol} {family}", service.full_name());
                let mut conversations: Vec<(&str, Conversation)> = Vec::new();
                for (from, kind, node) in ways {
                    let to = frontend(lab, service, kind, family, protocol, node);
                    let earlier = conversations.iter().find(|(client, _)| *client == from);
                    let conversation = match earlier.and_then(|(_, earlier)| earlier.beside(to)) {
                        Some(conversation) => conversation,
                        None => Conversation::open(lab, from, port, protocol, to).with_context(|| what.clone())?,
                    };
                    conversations.push((from, conversation));
                }
                let mut conversations: Vec<_> = conversations
                    .into_iter()
                    .map(|(_, conversation)| conversation)
                    .collect();
                all_differ(&what, &mut conversations)?;
            }
        }
        Ok(())
    })
}

/// The node itself talks to a backend from the very port that a masquerade has taken, or would take.
#[test]
fn rule_5_1_a_masquerade_and_the_nodes_own_connection_have_one_port() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        for (backend, service) in &services {
            for (family, protocol, port) in cases() {
                let to = frontend(lab, service, FrontendKind::LoadBalancer, family, protocol, "node-a");
                let direct = lab.pod(backend).addresses().with_port(family, POD_PORT);
                for (port, own_first) in [(port, true), (port + 1, false)] {
                    let own = || Conversation::open(lab, "node-a", port, protocol, direct);
                    let masqueraded = || Conversation::open(lab, "outside", port, protocol, to);
                    let what = format!("{protocol} {family} to {backend}, the node's own first: {own_first}");
                    let opened = if own_first {
                        own().and_then(|first| Ok([first, masqueraded()?]))
                    } else {
                        masqueraded().and_then(|first| Ok([first, own()?]))
                    };
                    all_differ(&what, &mut opened.context(what.clone())?)?;
                }
            }
        }
        Ok(())
    })
}
