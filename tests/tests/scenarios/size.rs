//! What is larger than a packet may be: paths with a smaller MTU.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Connection, Family, Lab, Policy, Protocol, UdpClient},
    require_root,
};

use super::outside::{expose_each, frontends, start_agents};

/// A hop with a smaller MTU: its ICMP errors reach the server behind the frontend, translated, and it sends smaller packets.
fn path_mtu_is_discovered(protocol: Protocol, exchange: impl Fn(SocketAddr) -> Result<()> + Sync) -> Result<()> {
    let nodes = Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"]);
    nodes.far_outside().run(|lab| {
        let services = expose_each(lab, &["near", "far"], Policy::Cluster)?;
        let _agents = start_agents(lab)?;
        lab.set_mtu("router", "border", 1300)?;
        lab.set_mtu("border", "router", 1300)?;
        for (backend, service) in &services {
            for (_, to) in frontends(lab, service).into_iter().filter(|(of, _)| *of == protocol) {
                let outcome = lab.namespace("outside").run(|| exchange(to));
                outcome.with_context(|| format!("{}, {protocol} {to}", service.full_name()))?;
            }
            for family in Family::ALL {
                // The server knows its masqueraded client by the node's address.
                let client = lab.node("node-a").addresses().of(family).to_string();
                let route = ["route", "get", &client];
                let learnt = lab.namespace(backend).tool("ip", &route, "")?;
                ensure!(learnt.contains("mtu 1300"), "{backend} {family}: {learnt}");
            }
        }
        Ok(())
    })
}

#[test]
pub(super) fn tcp_discovers_the_path_mtu_through_every_frontend() -> Result<()> {
    require_root!();
    path_mtu_is_discovered(Protocol::Tcp, |to| {
        let mut connection = Connection::open(to)?;
        connection.pull(100_000)?;
        connection.push(100_000)?;
        Ok(())
    })
}

/// Datagrams are not sent again: one is lost for each end that learns. From then on they go in fragments.
#[test]
fn udp_discovers_the_path_mtu_through_every_frontend() -> Result<()> {
    require_root!();
    path_mtu_is_discovered(Protocol::Udp, |to| {
        let question = vec![0xa5; 1400];
        let mut socket = UdpClient::bind(0, to)?;
        let mut ask = || socket.ask_with(to, &question);
        ask().or_else(|_| ask()).or_else(|_| ask())?;
        Ok(())
    })
}
