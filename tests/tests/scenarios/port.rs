//! One client port used for several things: where flows could be mistaken for each other.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Builder, Connection, Family, Lab, UdpClient},
    require_root,
};

use super::{POD_PORT, PORT, serve};

/// The client's port in all of this.
const CLIENT_PORT: u16 = 40_000;

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

/// Runs `requests` in the client's namespace for a backend on either node and for each family: with the backend's name, the
/// Service that it alone serves, and its own address.
fn by_service_and_directly(requests: impl Fn(&str, SocketAddr, SocketAddr) -> Result<()> + Sync) -> Result<()> {
    cluster().run(|lab| {
        let services = [
            ("near", serve(lab, "near", 1, &["near"])?),
            ("far", serve(lab, "far", 2, &["far"])?),
        ];
        let _agents = lab.start_agents()?;
        for (pod, service) in services {
            for family in Family::ALL {
                let vip = service.frontend(family, PORT);
                let direct = lab.pod(pod).addresses().with_port(family, POD_PORT);
                lab.namespace("client").run(|| requests(pod, vip, direct))?;
            }
        }
        Ok(())
    })
}

/// After a connection through the Service, one from the same port directly to the same pod: its replies must not be
/// rewritten, or the client would get them from an address that it never asked.
#[test]
fn a_tcp_port_is_used_directly_after_the_service() -> Result<()> {
    require_root!();
    by_service_and_directly(|pod, vip, direct| {
        for to in [vip, direct, vip, direct] {
            let mut connection = Connection::open_from(CLIENT_PORT, to)?;
            let answer = connection.ask()?;
            ensure!(
                answer.backend == pod && answer.peer.port() == CLIENT_PORT,
                "{to}: {answer:?}"
            );
            connection.push(10_000)?;
            connection.reset()?;
        }
        Ok(())
    })
}

/// The same after an orderly end, which leaves the client's side waiting (RFC 9293, TIME-WAIT).
#[test]
fn a_tcp_port_is_used_directly_after_an_orderly_end() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "far", 2, &["far"])?;
        let _agents = lab.start_agents()?;
        for family in Family::ALL {
            let direct = lab.pod("far").addresses().with_port(family, POD_PORT);
            lab.namespace("client").run(|| -> Result<()> {
                for to in [service.frontend(family, PORT), direct] {
                    let mut connection = Connection::open_from(CLIENT_PORT, to)?;
                    let answer = connection.ask()?;
                    ensure!(answer.peer.port() == CLIENT_PORT, "{to}: {answer:?}");
                    connection.pull(10_000)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// UDP has no connections: the latest use of the port wins.
#[test]
fn a_udp_port_is_used_directly_between_uses_of_the_service() -> Result<()> {
    require_root!();
    by_service_and_directly(|pod, vip, direct| {
        let mut socket = UdpClient::bind(CLIENT_PORT, vip)?;
        for to in [vip, direct, direct, vip, vip, direct, vip] {
            let answer = socket.ask(to)?;
            ensure!(answer.backend == pod, "{to}: {answer:?}");
        }
        Ok(())
    })
}

/// Two Services with one backend, used from one client port at once: at the backend's side the two connections must differ.
#[test]
fn two_services_one_client_port_one_backend() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let services = [
            serve(lab, "one", 1, &["far"])?,
            super::service("two", proxy_tests::lab::address::cluster(2)),
        ];
        let two = services[1].clone().pods(&[lab.pod("far")]);
        lab.apply(&two)?;
        let _agents = lab.start_agents()?;
        for family in Family::ALL {
            let vips = [services[0].frontend(family, PORT), two.frontend(family, PORT)];
            lab.namespace("client").run(|| -> Result<()> {
                let mut first = Connection::open_from(CLIENT_PORT, vips[0])?;
                let mut second = Connection::open_from(CLIENT_PORT, vips[1])?;
                for _ in 0..10 {
                    let ports = [first.ask()?.peer.port(), second.ask()?.peer.port()];
                    ensure!(ports[0] == CLIENT_PORT && ports[1] != CLIENT_PORT, "{ports:?}");
                }
                first.push(100_000)?;
                second.push(100_000)?;

                let mut socket = UdpClient::bind(CLIENT_PORT, vips[0])?;
                for round in 0..10 {
                    socket.ask(vips[round % 2])?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}
