//! Connections that the kernel itself opens pass the same hooks as those of processes.
//!
//! A Multipath TCP client shows it without a network file system: a server announces a further address (`ADD_ADDR`, RFC 8684,
//! 3.4.1), and a kernel thread of the client connects to it (`__mptcp_subflow_connect`: `kernel_connect`, as of NFS and SMB).
//! Here that address is a ClusterIP, where nobody answers unless it is translated.

use std::io::{Read as _, Write as _};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{Family, Namespace, PATIENCE, Protocol, Service, address, wait_until},
    require_root, skip,
};
use socket2::{Domain, Socket, Type};

use super::{
    POD_PORT,
    outside::{cluster, start_agents},
};

/// A Multipath TCP socket.
fn socket(family: Family) -> std::io::Result<Socket> {
    let domain = match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    Socket::new(domain, Type::STREAM, Some(socket2::Protocol::MPTCP))
}

/// Says on how many paths, and by how many announced addresses, the kernel may go on by itself.
fn allow_paths(namespace: &Namespace) -> Result<()> {
    let limits = ["mptcp", "limits", "set", "subflows", "4", "add_addr_accepted", "4"];
    namespace.tool("ip", &limits, "").map(drop)
}

/// The first path is opened by the process's own connect, the second by a kernel thread; both to the ClusterIP.
#[test]
fn connections_of_the_kernel_are_served() -> Result<()> {
    require_root!();
    if let Err(error) = socket(Family::V4) {
        skip!("no Multipath TCP: {error}");
    }
    cluster().run(|lab| {
        let near = lab.pod("near");
        // An address that is announced without a port is connected to at the port of the first path: the endpoint's.
        let web = Service::new("default", "web", address::cluster(1)).port("tcp", Protocol::Tcp, POD_PORT, POD_PORT);
        let web = web.pods(&[near]);
        lab.apply(&web)?;
        let _agents = start_agents(lab)?;
        lab.wait_for_service_everywhere(&web)?;
        let (client, server) = (lab.namespace("node-a"), lab.namespace("near"));
        for namespace in [client, server] {
            allow_paths(namespace)?;
        }
        for family in Family::ALL {
            let to = web.frontend(family, POD_PORT);
            let announced = to.ip().to_string();
            server.tool("ip", &["mptcp", "endpoint", "add", &announced, "signal"], "")?;
            let listener = server.run(|| -> Result<Socket> {
                let listener = socket(family)?;
                listener.bind(&near.addresses().with_port(family, POD_PORT).into())?;
                listener.listen(1)?;
                Ok(listener)
            })?;
            let before = client.joined_paths()?;
            let mut asking = client.run(|| -> Result<Socket> {
                let asking = socket(family)?;
                asking
                    .connect(&to.into())
                    .with_context(|| format!("the first path to {to}"))?;
                Ok(asking)
            })?;
            let (mut asked, _) = listener.accept()?;
            // Paths are added when both sides have seen data.
            for _ in 0..2 {
                asking.write_all(b"question")?;
                asked.read_exact(&mut [0; 8])?;
                asked.write_all(b"answer")?;
                asking.read_exact(&mut [0; 6])?;
            }
            wait_until(&format!("the kernel's own path to {to} is answered"), PATIENCE, || {
                (client.joined_paths().ok()? > before).then_some(())
            })?;
            server.tool("ip", &["mptcp", "endpoint", "flush"], "")?;
        }
        ensure!(client.checksum_errors()? == 0, "checksums");
        Ok(())
    })
}
