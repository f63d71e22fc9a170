//! A node is taken over from kube-proxy, and handed back, while it serves.

use std::{collections::HashSet, net::SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_tests::{
    lab::{
        Agent, Connection, Family, FrontendKind, KubeProxy, Lab, Load, LoadReport, PATIENCE, Protocol, Service,
        UdpClient, address, wait_until,
    },
    require_root,
};
use serde_json::Value;

use super::{
    PORT,
    outside::{cluster, expose, frontends},
};

/// What goes on for as long as the scenario wants, and with whom.
struct Standing {
    connections: Vec<(Connection, String)>,
    sockets: Vec<(UdpClient, SocketAddr, String)>,
    /// As `flows` lists them: protocol, client, frontend
    listed: HashSet<(String, SocketAddr, SocketAddr)>,
}

impl Standing {
    /// Opens a connection and a conversation over UDP from everywhere to every kind of frontend, both families.
    fn open(lab: &Lab, service: &Service, hosts: bool) -> Result<Self> {
        let mut standing = Self {
            connections: Vec::new(),
            sockets: Vec::new(),
            listed: HashSet::new(),
        };
        for family in Family::ALL {
            let cluster = FrontendKind::ClusterIp;
            let mut ways = vec![("client", cluster), ("client", FrontendKind::LoadBalancer)];
            ways.extend(FrontendKind::EXTERNAL.map(|kind| ("outside", kind)));
            if hosts {
                ways.push(("node-a", cluster));
            }
            // Several of each, for endpoints are chosen by chance.
            for (from, kind) in ways.repeat(3) {
                let node = lab.node("node-a");
                let [tcp, udp] = ["tcp", "udp"].map(|port| service.frontend_of(kind, family, port, node));
                standing
                    .add(lab, from, tcp, udp)
                    .with_context(|| format!("from {from} to {tcp}"))?;
            }
        }
        Ok(standing)
    }

    fn add(&mut self, lab: &Lab, from: &str, tcp: SocketAddr, udp: SocketAddr) -> Result<()> {
        let namespace = lab.namespace(from);
        let own = match from {
            "outside" => address::OUTSIDE,
            "client" => lab.pod(from).addresses(),
            node => lab.node(node).addresses(),
        };
        let family = if tcp.is_ipv4() { Family::V4 } else { Family::V6 };
        let mut list = |protocol: Protocol, port, to| {
            let client = own.with_port(family, port);
            self.listed.insert((protocol.to_string(), client, to));
        };
        let mut connection = namespace.run(|| Connection::open(tcp))?;
        let backend = connection.ask()?.backend;
        list(Protocol::Tcp, connection.local_port()?, tcp);
        self.connections.push((connection, backend));
        if lab.nodes().iter().any(|node| node.name() == from) {
            // Where an unconnected socket of the node's own sends to is for the socket hooks to say, each time.
            return Ok(());
        }
        let mut socket = namespace.run(|| UdpClient::bind(0, udp))?;
        let backend = socket.ask(udp)?.backend;
        list(Protocol::Udp, socket.local_port()?, udp);
        self.sockets.push((socket, udp, backend));
        Ok(())
    }

    /// All go on, each with the backend that it had.
    fn go_on(&mut self) -> Result<()> {
        self.connections_go_on()?;
        for (socket, to, backend) in &mut self.sockets {
            let answer = socket.ask(*to)?;
            ensure!(answer.backend == *backend, "{to}: from {backend} to {answer:?}");
        }
        Ok(())
    }

    /// The connections do.
    fn connections_go_on(&mut self) -> Result<()> {
        for (connection, backend) in &mut self.connections {
            let answer = connection.ask()?;
            ensure!(answer.backend == *backend, "from {backend} to {answer:?}");
            connection.push(20_000)?;
            connection.pull(20_000)?;
        }
        Ok(())
    }

    /// Which of them this proxy has as flows: those it translates, and those that it leaves to conntrack.
    fn flows(&self, lab: &Lab) -> Result<[usize; 2]> {
        let flows = listed(&self.listed, lab)?;
        let of = |conntrack: bool| flows.iter().filter(|flow| flow["conntrack"] == conntrack).count();
        Ok([of(false), of(true)])
    }

    /// Ends them, and waits until their last packets have been translated.
    fn end(self, lab: &Lab) -> Result<()> {
        let Self {
            connections,
            sockets,
            listed: ended,
        } = self;
        drop((connections, sockets));
        wait_until("the connections have ended", PATIENCE, || {
            let go_on = |flow: &Value| flow["protocol"] == "TCP" && flow["state"] != "closing";
            match listed(&ended, lab) {
                Ok(flows) => (!flows.iter().any(go_on)).then_some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        })?
    }

    fn count(&self) -> usize {
        self.connections.len() + self.sockets.len()
    }
}

/// Those of these flows that node-a has.
fn listed(wanted: &HashSet<(String, SocketAddr, SocketAddr)>, lab: &Lab) -> Result<Vec<Value>> {
    let mut listing = lab.listing("node-a", "flows", &[])?;
    let Value::Array(mut flows) = listing["flows"].take() else {
        bail!("no list `flows`");
    };
    let address = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
    flows.retain(|flow| {
        let protocol = flow["protocol"].as_str().map(str::to_owned);
        let ends = address(&flow["client"]).zip(address(&flow["frontend"]));
        let listed = protocol
            .zip(ends)
            .map(|(protocol, (client, frontend))| (protocol, client, frontend));
        listed.is_some_and(|listed| wanted.contains(&listed))
    });
    Ok(flows)
}

/// Short requests from a pod and from outside, on and on.
struct Loads([Load; 2]);

impl Loads {
    fn start(lab: &Lab, service: &Service) -> Self {
        let inside: Vec<_> = Family::ALL
            .iter()
            .flat_map(|family| Protocol::ALL.map(|protocol| (protocol, service.frontend(*family, PORT))))
            .collect();
        Self([
            Load::start(lab.namespace("client"), 2, &inside),
            Load::start(lab.namespace("outside"), 2, &frontends(lab, service)),
        ])
    }

    /// Waits for some more requests; none may have been lost up to then.
    fn go_on(&self) -> Result<()> {
        for load in &self.0 {
            load.wait_for(100)?;
            load.so_far().expect_no_loss()?;
        }
        Ok(())
    }

    fn stop(self) -> Result<()> {
        let reports: Vec<LoadReport> = self.0.into_iter().map(Load::stop).collect();
        reports.iter().try_for_each(LoadReport::expect_no_loss)
    }
}

/// Has what ended forgotten soon.
fn forget_quickly(lab: &Lab) -> Result<()> {
    lab.namespace("node-a").sysctl(&[
        ("netfilter/nf_conntrack_tcp_timeout_time_wait", "1"),
        ("netfilter/nf_conntrack_tcp_timeout_last_ack", "1"),
        ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
        ("netfilter/nf_conntrack_udp_timeout", "20"),
        ("netfilter/nf_conntrack_udp_timeout_stream", "20"),
    ])
}

/// All that a node's netfilter has, as its tools list it.
fn rules(lab: &Lab) -> Result<String> {
    let node = lab.namespace("node-a");
    let mut rules = node.tool("nft", &["list", "tables"], "")?;
    for family in ["iptables", "ip6tables"] {
        for variant in ["legacy", "nft"] {
            rules += &node.tool(&format!("{family}-{variant}-save"), &[], "")?;
        }
    }
    Ok(rules)
}

/// No packet was lost. That no request was is for the loads to say: this would show what TCP has saved.
fn expect_no_loss(lab: &Lab) -> Result<()> {
    ["client", "outside"]
        .into_iter()
        .try_for_each(|client| lab.namespace(client).expect_no_loss())
}

/// A node is taken over; and when the last of the old connections has ended nothing of kube-proxy is left.
fn take_over(mode: KubeProxy) -> Result<()> {
    cluster().run(|lab| {
        forget_quickly(lab)?;
        let (_agent, mut new) = take_over_under_load(lab, mode)?;
        wait_until("nothing is kept for kube-proxy's connections", PATIENCE * 3, || {
            rules(lab)
                .is_ok_and(|rules| !rules.contains("proxy-agent"))
                .then_some(())
        })?;
        new.connections_go_on()
    })
}

/// Kube-proxy's rules serve; the agent starts; the rules go. What was there goes on, what is new is the agent's, nothing is
/// lost. What was there ends with it.
fn take_over_under_load(lab: &Lab, mode: KubeProxy) -> Result<(Agent, Standing)> {
    let service = expose(lab, "web", 1, &["near", "far"])?;
    lab.apply(&service)?;
    lab.apply_nodes()?;
    lab.program_kube_proxy("node-a", mode, &[&service])?;
    let loads = Loads::start(lab, &service);
    let mut old = Standing::open(lab, &service, true)?;
    loads.go_on()?;

    let agent = lab.start_agent("node-a")?;
    old.go_on()?;
    loads.go_on()?;
    ensure!(
        old.flows(lab)? == [0, old.count()],
        "{:?} of {}",
        old.flows(lab)?,
        old.count()
    );
    let status = lab.ask_agent("node-a", "status", &[])?;
    ensure!(status.contains("cleanup --kube-proxy"), "{status}");
    let mut new = Standing::open(lab, &service, false)?;
    // A port that a request over UDP had just before is still conntrack's.
    let [ours, conntracks] = new.flows(lab)?;
    ensure!(
        ours + conntracks == new.count() && conntracks < new.count() / 10,
        "{ours} ours, {conntracks} of {}",
        new.count()
    );

    let told = lab.ask_agent("node-a", "cleanup", &["--kube-proxy"])?;
    ensure!(told.contains("removed"), "{told}");
    let left = rules(lab)?;
    let is_kube_proxys = |line: &&str| line.contains("KUBE-") || line.contains("kube-proxy");
    // One chain is kubelet's.
    let mut lines = left.lines().filter(|line| !line.contains("KUBE-FIREWALL"));
    ensure!(lines.find(is_kube_proxys).is_none(), "{left}");
    for standing in [&mut old, &mut new] {
        standing.go_on()?;
    }
    loads.go_on()?;
    for standing in [&mut old, &mut new] {
        standing.go_on()?;
    }
    loads.stop()?;
    expect_no_loss(lab)?;
    Ok((agent, new))
}

#[test]
fn a_node_with_nftables_rules_is_taken_over_under_load() -> Result<()> {
    require_root!();
    take_over(KubeProxy::Nftables)
}

#[test]
fn a_node_with_iptables_rules_is_taken_over_under_load() -> Result<()> {
    require_root!();
    take_over(KubeProxy::IptablesNft)
}

#[test]
fn a_node_with_legacy_iptables_rules_is_taken_over_under_load() -> Result<()> {
    require_root!();
    take_over(KubeProxy::IptablesLegacy)
}

/// The same under XDP. (What ends the keeping for conntrack looks at no device.)
pub(super) fn a_node_is_taken_over() -> Result<()> {
    require_root!();
    cluster().run(|lab| take_over_under_load(lab, KubeProxy::Nftables).map(drop))
}

/// The agent serves; kube-proxy's rules come, and the agent goes. What was there goes on, what is new is kube-proxy's, nothing is
/// lost, also not when the last trace is removed.
/// A rule as network policies have them.
const CONNTRACK_AT_WORK: &str = "
table inet policies {
    chain forward {
        type filter hook forward priority filter; policy accept;
        ct state established,related counter accept
    }
}
";

fn hand_back(mode: KubeProxy) -> Result<()> {
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&service)?;
        lab.apply_nodes()?;
        // Conntrack knows no connection that was there before its first rule, and kube-proxy's rules drop what it doesn't know if that is the
        // connection's end.
        lab.namespace("node-a")
            .tool("nft", &["--file", "-"], CONNTRACK_AT_WORK)?;
        let agent = lab.start_agent("node-a")?;
        let loads = Loads::start(lab, &service);
        let mut old = Standing::open(lab, &service, false)?;
        loads.go_on()?;

        lab.program_kube_proxy("node-a", mode, &[&service])?;
        loads.go_on()?;
        agent.terminate()?;
        let told = lab.ask_agent("node-a", "cleanup", &["--keep-connections"])?;
        ensure!(told.contains("connections go on"), "{told}");
        old.go_on()?;
        loads.go_on()?;
        // A port that a request over UDP had just before is still this proxy's.
        let mut new = wait_until("new connections are conntrack's", PATIENCE, || {
            let opened = Standing::open(lab, &service, false).and_then(|new| Ok((new.flows(lab)?, new)));
            opened.map_or_else(
                |error| Some(Err(error)),
                |(flows, new)| (flows == [0; 2]).then_some(Ok(new)),
            )
        })??;
        for standing in [&mut old, &mut new] {
            standing.go_on()?;
        }
        loads.go_on()?;

        old.end(lab)?;
        loads.go_on()?;
        lab.ask_agent("node-a", "cleanup", &[])?;
        loads.go_on()?;
        new.go_on()?;
        loads.stop()?;
        expect_no_loss(lab)?;
        Ok(())
    })
}

#[test]
fn a_node_is_handed_back_to_nftables_rules_under_load() -> Result<()> {
    require_root!();
    hand_back(KubeProxy::Nftables)
}

#[test]
fn a_node_is_handed_back_to_iptables_rules_under_load() -> Result<()> {
    require_root!();
    hand_back(KubeProxy::IptablesNft)
}

/// Kube-proxy, which ends such flows, runs no more (behaviour.md 7.3): the agent ends them, in conntrack as well.
#[test]
fn rule_7_3_datagrams_leave_an_endpoint_that_serves_no_more() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&service)?;
        lab.apply_nodes()?;
        lab.program_kube_proxy("node-a", KubeProxy::Nftables, &[&service])?;
        let mut sockets = Vec::new();
        for family in Family::ALL {
            for (from, kind) in [("client", FrontendKind::ClusterIp), ("outside", FrontendKind::NodePort)].repeat(4) {
                let to = service.frontend_of(kind, family, "udp", lab.node("node-a"));
                let mut socket = lab.namespace(from).run(|| UdpClient::bind(0, to))?;
                let backend = socket.ask(to)?.backend;
                sockets.push((socket, to, backend));
            }
        }
        let _agent = lab.start_agent("node-a")?;
        lab.ask_agent("node-a", "cleanup", &["--kube-proxy"])?;
        for (socket, to, backend) in &mut sockets {
            ensure!(socket.ask(*to)?.backend == *backend, "{to} left {backend}");
        }
        lab.apply(&service.without("far"))?;
        lab.settle("node-a")?;
        for (socket, to, backend) in &mut sockets {
            wait_until(&format!("{to} leaves {backend}"), PATIENCE, || {
                let answer = socket.ask(*to).map(|answer| answer.backend);
                answer.map_or_else(
                    |error| Some(Err(error)),
                    |backend| (backend == "near").then_some(Ok(())),
                )
            })??;
        }
        Ok(())
    })
}

/// One port of a client, two frontends, one endpoint: conntrack has the first connection, this proxy gets the second, and to the
/// endpoint they are two.
#[test]
fn a_port_that_conntracks_connection_has_is_not_given_twice() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let first = expose(lab, "first", 1, &["near"])?;
        let second = expose(lab, "second", 2, &["near"])?;
        for service in [&first, &second] {
            lab.apply(service)?;
        }
        lab.apply_nodes()?;
        lab.program_kube_proxy("node-a", KubeProxy::Nftables, &[&first, &second])?;
        let ways = [
            ("client", FrontendKind::ClusterIp),
            ("client", FrontendKind::LoadBalancer),
            ("outside", FrontendKind::NodePort),
        ];
        let ways = Family::ALL.iter().flat_map(|family| ways.map(|way| (*family, way)));
        let mut pairs = Vec::new();
        for (port, (family, (from, kind))) in (40_000..).zip(ways) {
            let [to, next] =
                [&first, &second].map(|service| service.frontend_of(kind, family, "tcp", lab.node("node-a")));
            let mut connection = lab.namespace(from).run(|| Connection::open_from(port, to))?;
            connection.ask()?;
            pairs.push((from, connection, next));
        }
        let _agent = lab.start_agent("node-a")?;
        for (from, mut old, to) in pairs {
            let port = old.local_port()?;
            let mut new = lab.namespace(from).run(|| Connection::open_from(port, to))?;
            for _ in 0..2 {
                let [one, other] = [old.ask()?, new.ask()?];
                ensure!(one.peer != other.peer, "{from} to {to}: both are {}", one.peer);
            }
        }
        Ok(())
    })
}
