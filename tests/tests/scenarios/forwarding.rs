//! Each protocol and family, backend here and on the other node.

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Builder, Connection, Family, Lab, Protocol, Service, UdpClient},
    require_root,
};

use super::{POD_PORT, PORT, serve};

/// A client with a backend `near` on its node and a backend `far` on the other one.
fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

/// A Service in front of each backend.
fn services(lab: &Lab) -> Result<[Service; 2]> {
    Ok([serve(lab, "near", 1, &["near"])?, serve(lab, "far", 2, &["far"])?])
}

/// A request to each Service over each protocol and family reaches its backend, which sees the client's own address:
/// ClusterIP traffic from pods is not masqueraded (behaviour.md 5.3).
fn every_request_is_served(lab: &Lab, services: &[Service]) -> Result<()> {
    for service in services {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let answer = lab
                    .request("client", protocol, service.frontend(family, PORT))
                    .with_context(|| format!("{} over {protocol} {family}", service.full_name()))?;
                ensure!(
                    service.members().eq([answer.backend.as_str()]),
                    "{protocol} {family}: {answer:?}"
                );
                ensure!(
                    answer.peer.ip() == lab.pod("client").addresses().of(family),
                    "{protocol} {family}: {answer:?}"
                );
            }
        }
    }
    Ok(())
}

/// 1 MiB each way over TCP, and datagrams of all alignments, over both families.
fn bulk_arrives_unchanged(lab: &Lab, services: &[Service]) -> Result<()> {
    const MEBIBYTE: usize = 1 << 20;
    for service in services {
        for family in Family::ALL {
            let frontend = service.frontend(family, PORT);
            lab.namespace("client").run(|| -> Result<()> {
                let mut connection = Connection::open(frontend)?;
                connection.pull(MEBIBYTE)?;
                connection.push(MEBIBYTE)?;
                let mut socket = UdpClient::bind(0, frontend)?;
                for length in [0, 1, 2, 3, 600, 1199, 1200] {
                    socket.ask_with(frontend, &vec![0xa5; length])?;
                }
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Wrong checksums that a pod's stack noticed (`net/snmp`, `net/snmp6`).
fn checksum_errors(lab: &Lab) -> Result<u64> {
    let pods = ["client", "near", "far"].map(|pod| lab.namespace(pod).checksum_errors());
    pods.into_iter().sum()
}

#[test]
fn every_protocol_and_family_here_and_on_the_other_node() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = services(lab)?;
        let _agents = lab.start_agents()?;
        every_request_is_served(lab, &services)
    })
}

#[test]
fn strict_nodes_see_nothing_they_would_drop_or_masquerade() -> Result<()> {
    require_root!();
    cluster().strict().run(|lab| {
        let services = services(lab)?;
        let _agents = lab.start_agents()?;
        every_request_is_served(lab, &services)?;
        bulk_arrives_unchanged(lab, &services)?;
        let offended = lab.offended_rules()?;
        ensure!(offended.is_empty(), "{offended:#?}");
        Ok(())
    })
}

#[test]
fn checksums_are_right_with_offloads() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = services(lab)?;
        let _agents = lab.start_agents()?;
        bulk_arrives_unchanged(lab, &services)?;
        ensure!(checksum_errors(lab)? == 0);
        Ok(())
    })
}

/// Without offloads the sender computes each checksum and the receiver verifies it.
#[test]
fn checksums_are_right_without_offloads() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        lab.set_offloads(false)?;
        let services = services(lab)?;
        let _agents = lab.start_agents()?;
        every_request_is_served(lab, &services)?;
        bulk_arrives_unchanged(lab, &services)?;
        ensure!(checksum_errors(lab)? == 0);
        Ok(())
    })
}

/// A pod reaches itself through its own Service (behaviour.md 5.2): it sees its node as the client.
fn a_pod_reaches_itself(lab: &Lab) -> Result<()> {
    let service = serve(lab, "near", 1, &["near"])?;
    let _agents = lab.start_agents()?;
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let answer = lab.request("near", protocol, service.frontend(family, PORT))?;
            ensure!(answer.backend == "near", "{answer:?}");
            let node = lab.node("node-a").addresses().of(family);
            ensure!(
                answer.peer.ip() == node,
                "{protocol} {family}: not masqueraded as {node}: {answer:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn hairpin() -> Result<()> {
    require_root!();
    cluster().run(|lab| a_pod_reaches_itself(lab))
}

#[test]
fn hairpin_on_strict_nodes() -> Result<()> {
    require_root!();
    cluster().strict().run(|lab| {
        a_pod_reaches_itself(lab)?;
        let offended = lab.offended_rules()?;
        ensure!(offended.is_empty(), "{offended:#?}");
        Ok(())
    })
}

#[test]
fn unrelated_traffic_is_left_alone() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        services(lab)?;
        lab.serve("node-a", POD_PORT)?;
        let _agents = lab.start_agents()?;
        for family in Family::ALL {
            let targets = [
                lab.pod("near").addresses().with_port(family, POD_PORT),
                lab.pod("far").addresses().with_port(family, POD_PORT),
                lab.node("node-a").addresses().with_port(family, POD_PORT),
            ];
            for to in targets {
                let client = lab.pod("client").addresses();
                let (answer, port) = lab.namespace("client").run(|| -> Result<_> {
                    let mut connection = Connection::open(to)?;
                    connection.push(100_000)?;
                    Ok((connection.ask()?, connection.local_port()?))
                })?;
                ensure!(answer.peer == client.with_port(family, port), "{to}: {answer:?}");
                lab.udp_request("client", to)?;
            }
            // An ICMP error finds its way back.
            let closed = lab.pod("far").addresses().with_port(family, POD_PORT + 1);
            let refused = lab.tcp_request("client", closed);
            ensure!(
                refused.as_ref().is_err_and(proxy_tests::lab::RequestError::is_refused),
                "{closed}: {refused:?}"
            );
        }
        let flows = lab.flow_count("node-a")? + lab.flow_count("node-b")?;
        ensure!(flows == 0, "{flows} flow entries were made for traffic of no Service");
        Ok(())
    })
}
