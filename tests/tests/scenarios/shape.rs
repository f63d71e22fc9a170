//! ClusterIPs from pods in every shape of the pod network: backend on the same node, on the other one, and the client itself.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Agent, BridgeNetfilter, Builder, Cni, Connection, Family, Interconnect, Lab, Protocol, Shape, UdpClient},
    require_root,
};

use super::{PORT, serve};

fn cluster(shape: Shape) -> Builder {
    Lab::builder()
        .shape(shape)
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

/// The backend sees the pod's own address (behaviour.md 5.3), or its node where it is its own backend (5.2).
fn every_backend_is_reached(lab: &Lab) -> Result<()> {
    for (number, backend) in (1..).zip(["near", "far", "client"]) {
        let service = serve(lab, backend, number, &[backend])?;
        lab.wait_for_service_everywhere(&service)?;
        for family in Family::ALL {
            let frontend = service.frontend(family, PORT);
            for protocol in Protocol::ALL {
                let answer = lab.request("client", protocol, frontend);
                let answer = answer.with_context(|| format!("{backend} over {protocol} {family}"))?;
                let seen = answer.peer.ip();
                let rightly = if backend == "client" {
                    lab.node("node-a").holds(seen)
                } else {
                    seen == lab.pod("client").addresses().of(family)
                };
                ensure!(answer.backend == backend && rightly, "{protocol} {family}: {answer:?}");
            }
            lab.namespace("client").run(|| -> Result<()> {
                let mut connection = Connection::open(frontend)?;
                connection.pull(100_000)?;
                connection.push(100_000)?;
                let mut socket = UdpClient::bind(0, frontend)?;
                for length in [0, 1, 1200] {
                    socket.ask_with(frontend, &vec![0xa5; length])?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// On strict nodes, so that the stack must see nothing but `client <-> backend` there as well.
fn cluster_ip_works(shapes: impl IntoIterator<Item = Shape>) -> Result<()> {
    for shape in shapes {
        cluster(shape).strict().run(|lab| {
            let _agents: Vec<Agent> = lab.start_agents()?;
            every_backend_is_reached(lab).with_context(|| shape.to_string())?;
            let offended = lab.offended_rules()?;
            ensure!(offended.is_empty(), "{shape}: {offended:#?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// A CNI with every way between nodes.
fn with_every_interconnect(cni: Cni) -> Result<()> {
    let ways = [Interconnect::Native, Interconnect::Vxlan, Interconnect::Tunnel];
    cluster_ip_works(ways.map(|interconnect| Shape { cni, interconnect }))
}

#[test]
fn pods_of_point_to_point_veths_reach_cluster_ips() -> Result<()> {
    require_root!();
    with_every_interconnect(Cni::PointToPoint)
}

#[test]
fn pods_of_a_bridge_reach_cluster_ips() -> Result<()> {
    require_root!();
    with_every_interconnect(Cni::Bridge(BridgeNetfilter::On))
}

#[test]
fn pods_of_a_bridge_without_netfilter_reach_cluster_ips() -> Result<()> {
    require_root!();
    with_every_interconnect(Cni::Bridge(BridgeNetfilter::Off))
}
