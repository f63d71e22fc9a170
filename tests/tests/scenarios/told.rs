//! Connected UDP sockets whose endpoint serves no more are told at once; all others are left alone.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Agent, Connection, Family, FrontendKind, Lab, Policy, Service, UdpClient},
    require_root,
};

use super::{
    POD_PORT, PORT,
    change::change,
    outside::{cluster, expose},
};

/// Whose sockets the hooks serve, and whose are tried: processes of the host, and a pod's.
const SERVED: [(&str, &[&str]); 2] = [("host", &["node-a"]), ("all", &["node-a", "client"])];

fn start_agents(lab: &Lab, mode: &str) -> Result<Vec<Agent>> {
    lab.start_agents_with(&lab.cluster_options(&[&format!("--socket-lb={mode}")])?)
}

/// The addresses of a Service, and the IPv4 one also as IPv6 sockets have it.
fn targets(lab: &Lab, service: &Service) -> Vec<SocketAddr> {
    let mut targets =
        Family::ALL.map(|family| service.frontend_of(FrontendKind::ClusterIp, family, "udp", lab.node("node-a")));
    targets.sort_unstable();
    let mapped = targets.iter().filter_map(|to| match to.ip() {
        IpAddr::V4(address) => Some(SocketAddr::new(address.to_ipv6_mapped().into(), to.port())),
        IpAddr::V6(_) => None,
    });
    targets.iter().copied().chain(mapped).collect()
}

/// A UDP socket of somebody, connected.
fn connected(lab: &Lab, from: &str, to: SocketAddr) -> Result<UdpClient> {
    lab.namespace(from).run(|| {
        let client = UdpClient::bind(0, to)?;
        client.connect(to)?;
        Ok(client)
    })
}

/// Who answers a connected socket.
fn answers(client: &mut UdpClient, to: SocketAddr) -> Result<String> {
    let answer = client.ask_peer(to).with_context(|| format!("asking {to}"))?;
    Ok(answer.backend)
}

/// Fails unless the socket is told that its connection is over.
fn ensure_told(client: &UdpClient) -> Result<()> {
    let told = client.receive();
    let kind = told.as_ref().map_err(std::io::Error::kind).err();
    ensure!(kind == Some(ErrorKind::ConnectionAborted), "{told:?}");
    Ok(())
}

/// behaviour.md 7.3 and 7.1: sockets of the host, and of pods where they are served. The same socket connects again, and gets
/// an endpoint that serves. A TCP connection, a socket of another Service and one that uses the endpoint directly go on.
#[test]
fn rule_7_3_connected_sockets_are_told_of_endpoints_that_serve_no_more() -> Result<()> {
    require_root!();
    for (mode, clients) in SERVED {
        cluster().run(|lab| {
            let near = expose(lab, "web", 1, &["near"])?;
            let far = expose(lab, "web", 1, &["far"])?;
            let other = expose(lab, "other", 2, &["near"])?;
            for service in [&near, &other] {
                lab.apply(service)?;
            }
            let _agents = start_agents(lab, mode)?;
            for from in clients {
                for (to, elsewhere) in targets(lab, &near).into_iter().zip(targets(lab, &other)) {
                    told(lab, from, [&near, &far], to, elsewhere)
                        .with_context(|| format!("--socket-lb={mode}, from {from} to {to}"))?;
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// One socket of each kind, while a Service's endpoint is replaced by another.
fn told(lab: &Lab, from: &str, [near, far]: [&Service; 2], to: SocketAddr, elsewhere: SocketAddr) -> Result<()> {
    change(lab, near)?;
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let endpoint = lab.pod("near").addresses().with_port(family, POD_PORT);
    let mut client = connected(lab, from, to)?;
    let mut bystanders = [connected(lab, from, elsewhere)?, connected(lab, from, endpoint)?];
    let bystanders_at = [elsewhere, endpoint];
    let mut connection = lab
        .namespace(from)
        .run(|| Connection::open(near.frontend(family, PORT)))?;
    ensure!(answers(&mut client, to)? == "near", "the endpoint");
    ensure!(connection.ask()?.backend == "near", "TCP");

    change(lab, far)?;
    ensure_told(&client)?;
    lab.namespace(from).run(|| client.connect(to))?;
    ensure!(answers(&mut client, to)? == "far", "connected again");
    for (bystander, to) in bystanders.iter_mut().zip(bystanders_at) {
        ensure!(answers(bystander, to)? == "near", "a socket that is connected to {to}");
    }
    ensure!(connection.ask()?.backend == "near", "TCP goes on");
    Ok(())
}

/// behaviour.md 4.2: what policy Local leaves without an endpoint looks like a lost packet, but a connected socket would stay
/// so; it is told when there are other endpoints.
#[test]
fn rule_4_2_connected_sockets_without_an_endpoint_are_told_of_one() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let far = expose(lab, "web", 1, &["far"])?.internal_policy(Policy::Local);
        let near = expose(lab, "web", 1, &["near"])?.internal_policy(Policy::Local);
        lab.apply(&far)?;
        let _agents = start_agents(lab, "host")?;
        for to in targets(lab, &far) {
            change(lab, &far)?;
            let mut client = connected(lab, "node-a", to)?;
            change(lab, &near)?;
            ensure_told(&client).with_context(|| format!("connected to {to}"))?;
            lab.namespace("node-a").run(|| client.connect(to))?;
            ensure!(answers(&mut client, to)? == "near", "connected to {to} again");
        }
        late_services_are_told(lab)
    })
}

/// behaviour.md 7.3: a socket that was connected to what became a frontend only then. (Its packets would reach nobody ever after.)
fn late_services_are_told(lab: &Lab) -> Result<()> {
    let late = expose(lab, "late", 2, &["near"])?;
    let kinds = [
        FrontendKind::ClusterIp,
        FrontendKind::LoadBalancer,
        FrontendKind::NodePort,
    ];
    let mut clients = Vec::new();
    for (family, kind) in Family::ALL
        .into_iter()
        .flat_map(|family| kinds.map(|kind| (family, kind)))
    {
        let to = late.frontend_of(kind, family, "udp", lab.node("node-a"));
        clients.push((connected(lab, "node-a", to)?, to));
    }
    lab.apply(&late)?;
    for (client, to) in &mut clients {
        ensure_told(client).with_context(|| format!("connected to {to} too early"))?;
        lab.namespace("node-a").run(|| client.connect(*to))?;
        ensure!(answers(client, *to)? == "near", "connected to {to} again");
    }
    Ok(())
}
