//! All endpoints of a Service go and come back while it is used.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Family, FrontendKind, Lab, Load, LoadReport, PATIENCE, Protocol, Service, UdpClient, wait_until},
    require_root,
};

use super::{
    change::change,
    outside::{cluster, expose, frontends, start_agents},
};

const BACKENDS: [&str; 5] = ["near-1", "near-2", "far-1", "far-2", "far-3"];

/// Requests over TCP from one place, each to the next of these frontends.
struct Client {
    name: &'static str,
    targets: Vec<(Protocol, SocketAddr)>,
    load: Load,
}

impl Client {
    fn start(lab: &Lab, name: &'static str, mut targets: Vec<(Protocol, SocketAddr)>) -> Self {
        // A UDP port that the kernel chooses again would tell of an earlier flow.
        let tcp: Vec<_> = targets
            .extract_if(.., |(protocol, _)| *protocol == Protocol::Tcp)
            .collect();
        let load = Load::start(lab.namespace(name), 1, &tcp);
        Self { name, targets, load }
    }

    /// What the load meets with: while the change was taken, and then, at least once at every frontend.
    fn met_with(&self) -> Result<[LoadReport; 2]> {
        // The request under way while the step was taken may have fallen on either side of it.
        self.load.wait_for(2)?;
        let transition = self.load.take();
        self.load.wait_for(self.targets.len())?;
        Ok([transition, self.load.take()])
    }

    /// A datagram to each frontend, each from a port that was never used; gives how many were answered. The others were
    /// refused.
    fn datagrams(&self, lab: &Lab, ports: &mut impl Iterator<Item = u16>) -> Result<usize> {
        let mut answered = 0;
        for &(_, to) in &self.targets {
            let port = ports.next().context("a port")?;
            match lab.namespace(self.name).run(|| UdpClient::bind(port, to)?.ask(to)) {
                Ok(_) => answered += 1,
                Err(error) => ensure!(error.is_refused(), "UDP from {} to {to}: {error}", self.name),
            }
        }
        Ok(answered)
    }
}

/// Every kind of frontend of both families and protocols; those of the ClusterIP only for pods.
fn targets(lab: &Lab, service: &Service, cluster_ips: bool) -> Vec<(Protocol, SocketAddr)> {
    let mut targets = frontends(lab, service);
    for family in Family::ALL.into_iter().filter(|_| cluster_ips) {
        for (protocol, port) in [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")] {
            let to = service.frontend_of(FrontendKind::ClusterIp, family, port, lab.node("node-a"));
            targets.push((protocol, to));
        }
    }
    targets
}

/// From outside and from a pod: requests are refused while there is no endpoint, and only then.
#[test]
fn rule_4_1_requests_are_refused_only_while_there_is_no_endpoint() -> Result<()> {
    require_root!();
    Lab::builder()
        .node("node-a", &["client", "near-1", "near-2"])
        .node("node-b", &["far-1", "far-2", "far-3"])
        .outside()
        .run(|lab| {
            let full = expose(lab, "web", 1, &BACKENDS)?;
            let empty = full.clone().pods(&[]);
            lab.apply(&full)?;
            let _agents = start_agents(lab)?;
            let clients = [("outside", false), ("client", true)]
                .map(|(name, cluster_ips)| Client::start(lab, name, targets(lab, &full, cluster_ips)));
            let mut ports = 20_000..30_000;
            for (step, service) in [&full, &empty, &full].into_iter().enumerate() {
                change(lab, service)?;
                for client in &clients {
                    let [transition, report] = client.met_with()?;
                    let answered = client.datagrams(lab, &mut ports)?;
                    let context = format!("step {step}, from {}: {transition:?}, then {report:?}", client.name);
                    ensure!(transition.failed == transition.refused, "{context}");
                    if step.is_multiple_of(2) {
                        ensure!(report.failed == 0 && answered == client.targets.len(), "{context}");
                    } else {
                        ensure!(
                            report.ok() == 0 && report.failed == report.refused && answered == 0,
                            "{context}"
                        );
                    }
                }
            }
            Ok(())
        })
}

/// A client that goes on from one port hears that nobody is left, by every kind of frontend, and is served again when
/// somebody is.
#[test]
fn rule_7_6_udp_flows_end_with_the_last_endpoint() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let full = expose(lab, "web", 1, &["near", "far"])?;
        let empty = full.clone().pods(&[]);
        lab.apply(&full)?;
        let _agents = start_agents(lab)?;
        let mut sockets = Vec::new();
        for (_, to) in frontends(lab, &full).into_iter().filter(|(of, _)| *of == Protocol::Udp) {
            sockets.push((to, lab.namespace("outside").run(|| UdpClient::bind(0, to))?));
        }
        for (service, is_served) in [(&full, true), (&empty, false), (&full, true)] {
            change(lab, service)?;
            for (to, socket) in &mut sockets {
                let what = format!("{to} is served: {is_served}");
                // Flows are removed after the tables have changed (behaviour.md 7.8).
                wait_until(&what, PATIENCE, || match socket.ask(*to) {
                    Ok(_) => is_served.then_some(()),
                    Err(error) => (!is_served && error.is_refused()).then_some(()),
                })?;
            }
        }
        Ok(())
    })
}
