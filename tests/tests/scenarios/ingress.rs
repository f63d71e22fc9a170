//! An ingress controller: a request from outside comes in by one node, reaches the controller on a second one, and the
//! controller asks a Service whose pod is on a third.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Builder, Connection, Family, FrontendKind, Lab, Policy, Protocol, Service,
        address::{self, OUTSIDE},
    },
    require_root,
};

use super::{PORT, outside::start_agents, serve};

/// The controller's ports: name, number, the pod's own, nodePort.
const PORTS: [(&str, u16, u16, u16); 4] = [
    ("web", 80, 8000, 30_000),
    ("websecure", 443, 8443, 30_001),
    ("traefik", 9000, 9000, 30_900),
    ("metrics", 9100, 9101, 31_958),
];

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client"])
        .node("node-b", &["controller"])
        .node("node-c", &["backend"])
        .outside()
        .strict()
}

/// The controller behind its Service; its ports have names in the pod as well.
fn controller(lab: &Lab, policy: Policy) -> Result<Service> {
    let mut service = Service::new("ingress", "controller", address::cluster(2));
    for (name, number, target, node_port) in PORTS {
        lab.serve("controller", target)?;
        service = service
            .port(name, Protocol::Tcp, number, target)
            .target_name(name, name)
            .node_port(name, node_port);
    }
    Ok(service.pods(&[lab.pod("controller")]).external_policy(policy))
}

/// One request all the way, and some more on the same connection; gives whom the controller saw.
fn request_through(lab: &Lab, to: SocketAddr, backend: SocketAddr) -> Result<IpAddr> {
    let ask = || -> Result<IpAddr> {
        let mut connection = Connection::open(to)?;
        let mut seen = None;
        for _ in 0..3 {
            let [own, onward] = connection.ask_through(backend)?;
            ensure!(own.backend == "controller", "{own:?}");
            // The controller is a pod, and is seen as one (behaviour.md 5.3).
            let controller = lab.pod("controller").addresses().both();
            ensure!(
                onward.backend == "backend" && controller.contains(&onward.peer.ip()),
                "{onward:?}"
            );
            seen = Some(own.peer.ip());
        }
        seen.context("an answer")
    };
    lab.namespace("outside").run(ask).with_context(|| format!("by {to}"))
}

/// By a node that the controller isn't on under policy Cluster, by its own one under policy Local, to each of its ports;
/// `rightly_seen` says whether it saw the right client.
fn requests_pass(policy: Policy, entry: &str, rightly_seen: impl Fn(&Lab, IpAddr) -> bool) -> Result<()> {
    cluster().run(|lab| {
        let web = serve(lab, "web", 1, &["backend"])?;
        let ingress = controller(lab, policy)?;
        lab.apply(&ingress)?;
        let _agents = start_agents(lab)?;
        lab.admit_outside()?;
        // Its Service is given another nodePort for the same port, as in a cluster that chose it by hand.
        let moved = ingress.clone().node_port("websecure", 31_443);
        for (service, of_backend) in [(&ingress, Family::V4), (&moved, Family::V6)] {
            lab.apply(service)?;
            lab.settle_everywhere()?;
            for family in Family::ALL {
                for (name, _, target, _) in PORTS {
                    let to = service.frontend_of(FrontendKind::NodePort, family, name, lab.node(entry));
                    let seen = request_through(lab, to, web.frontend(of_backend, PORT))?;
                    ensure!(rightly_seen(lab, seen), "by {to}: the controller saw {seen}");
                    let reached = lab.namespace("outside").run(|| Connection::open(to)?.reached())?;
                    ensure!(reached.port() == target, "by {to}: {reached}");
                }
            }
        }
        let offended = lab.offended_rules()?;
        ensure!(offended.is_empty(), "{offended:#?}");
        Ok(())
    })
}

#[test]
fn rule_5_4_a_request_passes_a_controller_of_another_node() -> Result<()> {
    require_root!();
    requests_pass(Policy::Cluster, "node-a", |lab, seen| lab.node("node-a").holds(seen))
}

#[test]
fn rule_5_5_a_controller_on_the_node_sees_the_client() -> Result<()> {
    require_root!();
    requests_pass(Policy::Local, "node-b", |_, seen| OUTSIDE.both().contains(&seen))
}
