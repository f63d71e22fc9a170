//! The lab itself: without a proxy its pods reach each other, and nothing of it stays.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use etherparse::{IpNumber, PacketBuilder};
use proxy_tests::{
    lab::{
        Addresses, Builder, Connection, Family, Lab, Load, PATIENCE, Protocol, RequestError, Shape,
        address::{self, OUTSIDE},
        raw::{self, Capture},
        standing,
    },
    require_root,
};

/// Where servers listen.
const PORT: u16 = 8080;

/// Asks over every protocol and family; the server must see the client under an address that is right.
fn reaches(lab: &Lab, from: &str, server: &str, to: Addresses, seen_rightly: impl Fn(IpAddr) -> bool) -> Result<()> {
    for family in Family::ALL {
        for protocol in Protocol::ALL {
            let answer = lab
                .request(from, protocol, to.with_port(family, PORT))
                .with_context(|| format!("{from} to {server}, {protocol} {family}"))?;
            ensure!(
                answer.backend == server && seen_rightly(answer.peer.ip()),
                "{from} to {server}, {protocol} {family}: {answer:?}"
            );
        }
    }
    Ok(())
}

/// From pods to pods, nodes and the outside, from a node to pods, and, if nodes let them in, from outside to pods.
fn everything_is_reachable(lab: &Lab, strict: bool) -> Result<()> {
    let pod = |name| lab.pod(name).addresses();
    let node = |name| lab.node(name).addresses();
    let is = |own: Addresses| move |seen| own.both().contains(&seen);
    for server in ["client", "near", "far", "node-a", "node-b", "outside"] {
        lab.serve(server, PORT)?;
    }
    for name in ["near", "far"] {
        reaches(lab, "client", name, pod(name), is(pod("client")))?;
        reaches(lab, "node-a", name, pod(name), |seen| lab.node("node-a").holds(seen))?;
        if !strict {
            reaches(lab, "outside", name, pod(name), is(OUTSIDE))?;
        }
    }
    reaches(lab, "far", "client", pod("client"), is(pod("far")))?;
    reaches(lab, "client", "node-a", node("node-a"), is(pod("client")))?;
    let leaving = if strict { node("node-a") } else { pod("client") };
    reaches(lab, "client", "node-b", node("node-b"), is(leaving))?;
    reaches(lab, "client", "outside", OUTSIDE, is(leaving))?;
    reaches(lab, "outside", "node-a", node("node-a"), is(OUTSIDE))?;
    Ok(())
}

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

#[test]
fn everybody_reaches_everybody_in_every_shape() -> Result<()> {
    require_root!();
    for shape in Shape::ALL {
        cluster()
            .shape(shape)
            .outside()
            .run(|lab| everything_is_reachable(lab, false).with_context(|| shape.to_string()))?;
    }
    Ok(())
}

#[test]
fn pods_reach_each_other_through_strict_nodes_in_every_shape() -> Result<()> {
    require_root!();
    for shape in Shape::ALL {
        cluster().shape(shape).outside().strict().run(|lab| {
            everything_is_reachable(lab, true).with_context(|| shape.to_string())?;
            let offended = lab.offended_rules()?;
            ensure!(
                offended.iter().all(|rule| rule.contains("leaves the cluster")),
                "{shape}: {offended:#?}"
            );
            // Nobody opened this way: the forward chain must not let it through.
            let refused = lab.namespace("outside").run(|| {
                let to = lab.pod("near").addresses().with_port(Family::V4, PORT);
                std::net::TcpStream::connect_timeout(&to, Duration::from_millis(300))
            });
            ensure!(
                refused.is_err(),
                "{shape}: a strict node let a connection from outside through"
            );
            lab.admit_outside()?;
            let to = lab.pod("near").addresses();
            reaches(lab, "outside", "near", to, |seen| OUTSIDE.both().contains(&seen))?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Two routers on the way, a node's second address, and an address that is announced but bound nowhere.
#[test]
fn a_client_far_outside_reaches_both_uplinks_of_a_node() -> Result<()> {
    require_root!();
    cluster().far_outside().second_uplink().run(|lab| {
        lab.serve("node-a", PORT)?;
        let node = lab.node("node-a");
        for to in [node.addresses(), node.second_addresses()] {
            reaches(lab, "outside", "node-a", to, |seen| OUTSIDE.both().contains(&seen))?;
        }
        let moved = address::balancer(1);
        lab.announce(moved, &["node-a", "node-b"])?;
        ensure!(lab.udp_request("outside", moved.with_port(Family::V4, PORT)).is_err());
        // The announcement leads to the nodes: one that holds the address answers.
        lab.announce(moved, &["node-b"])?;
        lab.namespace("node-b").ip(&format!(
            "addr add {}/32 dev lo\naddr add {}/128 dev lo\n",
            moved.v4, moved.v6
        ))?;
        for family in Family::ALL {
            let refused = lab.tcp_request("outside", moved.with_port(family, PORT));
            ensure!(
                refused.as_ref().is_err_and(RequestError::is_refused),
                "{family}: {refused:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_macvlan_pod_is_on_the_wire_and_has_no_device_on_its_node() -> Result<()> {
    require_root!();
    let cluster = Lab::builder().node("node-a", &["near"]).macvlan_pod("client");
    cluster.node("node-b", &["far"]).run(|lab| {
        lab.serve("far", PORT)?;
        let client = lab.pod("client");
        ensure!(client.host_device().is_none());
        let own = client.addresses().both();
        reaches(lab, "client", "far", lab.pod("far").addresses(), |seen| {
            own.contains(&seen)
        })
    })
}

/// Nobody listens: a TCP client and a UDP client learn it at once, by a reset and by an ICMP error.
#[test]
fn a_closed_port_refuses() -> Result<()> {
    require_root!();
    cluster().outside().run(|lab| {
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let refused = lab.request("outside", protocol, lab.pod("far").addresses().with_port(family, PORT));
                ensure!(
                    refused.as_ref().is_err_and(RequestError::is_refused),
                    "{protocol} {family}: {refused:?}"
                );
            }
        }
        Ok(())
    })
}

/// A smaller MTU on the way: what doesn't fit is answered with an ICMP error, and the sender learns it.
#[test]
fn a_narrow_hop_is_discovered() -> Result<()> {
    require_root!();
    cluster().far_outside().run(|lab| {
        lab.serve("near", PORT)?;
        lab.set_mtu("router", "border", 1300)?;
        lab.set_mtu("border", "router", 1300)?;
        for family in Family::ALL {
            let to = lab.pod("near").addresses().with_port(family, PORT);
            lab.namespace("outside").run(|| -> Result<()> {
                let mut connection = Connection::open(to)?;
                connection.pull(100_000)?;
                connection.push(100_000)?;
                Ok(())
            })?;
            let learnt = lab
                .namespace("near")
                .tool("ip", &["route", "get", &OUTSIDE.of(family).to_string()], "")?;
            ensure!(learnt.contains("mtu 1300"), "{family}: {learnt}");
        }
        Ok(())
    })
}

/// A datagram in three fragments, the last one first: the server gets it whole, and its answer comes in fragments.
#[test]
fn fragments_out_of_order_are_one_datagram() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        lab.serve("far", PORT)?;
        let client = lab.pod("client");
        for family in Family::ALL {
            let to = lab.pod("far").addresses().with_port(family, PORT);
            let from = client.addresses().with_port(family, 4242);
            let socket = client.namespace().run(|| UdpSocket::bind(from))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let question = vec![0x5a; 3000];
            let mut sniffer = Capture::start(lab.namespace("far"), "eth0")?;
            for fragment in raw::fragments(&raw::udp(from, to, &question)?, 1200, 7)?.iter().rev() {
                raw::send(client.namespace(), fragment)?;
            }
            let mut answer = vec![0; 4000];
            let (length, peer) = socket.recv_from(&mut answer)?;
            ensure!(
                peer == to && answer[..length].ends_with(&question),
                "{length} bytes from {peer}"
            );
            let seen = sniffer.take_until("last fragment of the question", |packet| {
                packet.is_ip_payload_fragmented() && packet.ip_payload().is_some_and(|found| found.payload.len() < 1200)
            })?;
            let parts = seen
                .iter()
                .filter(|packet| packet.windows(100).any(|part| part == &question[..100]));
            ensure!(parts.count() == 1, "the last fragment was not the first to come");
        }
        Ok(())
    })
}

/// No socket here speaks SCTP, but its packets are packets.
#[test]
fn raw_packets_of_any_protocol_arrive() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let [from, to] = ["client", "far"].map(|pod| lab.pod(pod).addresses().v4);
        let chunk = b"\x30\x39\x00\x07 and the rest of an SCTP packet";
        let mut packet = Vec::new();
        PacketBuilder::ipv4(from.octets(), to.octets(), 64).write(&mut packet, IpNumber::SCTP, chunk)?;
        let mut sniffer = Capture::start(lab.namespace("far"), "eth0")?;
        raw::send(lab.namespace("client"), &packet)?;
        sniffer.take_until("SCTP packet", |packet| {
            packet
                .ip_payload()
                .is_some_and(|payload| payload.ip_number == IpNumber::SCTP && payload.payload == chunk)
        })?;
        Ok(())
    })
}

#[test]
fn bulk_transfers_are_checked() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near"]).run(|lab| {
        lab.serve("near", 8080)?;
        lab.set_offloads(false)?;
        let to = lab.pod("near").addresses().with_port(Family::V6, 8080);
        lab.namespace("client").run(|| {
            let mut connection = Connection::open(to)?;
            connection.pull(100_000)?;
            connection.push(100_000)?;
            Ok(())
        })
    })
}

#[test]
fn a_pod_without_its_device_is_lost_until_it_is_plugged_again() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near"]).run(|lab| {
        lab.serve("near", 8080)?;
        let to: SocketAddr = lab.pod("near").addresses().with_port(Family::V4, 8080);
        let load = Load::start(lab.namespace("client"), 1, &[(Protocol::Tcp, to)]);
        load.wait_for(10)?;
        load.stop().expect_no_loss()?;
        lab.unplug("near")?;
        ensure!(lab.tcp_request("client", to).is_err());
        lab.plug("near")?;
        lab.tcp_request("client", to)?;
        Ok(())
    })
}

/// Everything on the machine that carries a lab's prefix.
fn traces(prefix: &str) -> Vec<String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().display().to_string())
            .collect::<Vec<_>>()
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found = names("/run");
    found.extend(names("/run/netns"));
    found.extend(mounts.lines().map(str::to_owned));
    found.retain(|name| name.contains(prefix));
    found
}

#[test]
fn nothing_stays_after_a_panic() -> Result<()> {
    require_root!();
    let mut prefix = String::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = Lab::builder().node("node-a", &["client"]).build().expect("a lab");
        prefix = lab
            .directory()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        lab.serve("client", 8080).expect("a server");
        assert!(!traces(&prefix).is_empty());
        panic!("as a failing test does");
    }));
    ensure!(panicked.is_err());
    ensure!(traces(&prefix).is_empty(), "left behind: {:?}", traces(&prefix));
    Ok(())
}

/// Set in the process that is to be killed: the file it tells its lab's directory in.
const ROLE: &str = "PROXY_LAB_TEST_VICTIM";

/// Built by a process of its own (this very test binary), which is killed before it can clean up.
#[test]
fn the_next_lab_removes_what_a_killed_process_left() -> Result<()> {
    require_root!();
    if std::env::var_os(ROLE).is_some() {
        let lab = Lab::builder().node("node-a", &["client"]).build()?;
        fs::write(std::env::var(ROLE)?, lab.directory().display().to_string())?;
        // The parent kills this process; the deadline is for the case that the parent was killed first.
        std::thread::sleep(Duration::from_mins(1));
        return Ok(());
    }
    let note = std::env::temp_dir().join(format!("lab-victim-{}", std::process::id()));
    let test = "the_next_lab_removes_what_a_killed_process_left";
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", test])
        .env(ROLE, &note)
        .spawn()?;
    let directory = proxy_tests::lab::wait_until("the other process has built its lab", PATIENCE, || {
        fs::read_to_string(&note).ok().filter(|text| !text.is_empty())
    });
    victim.kill()?;
    victim.wait()?;
    let directory = directory?;
    fs::remove_file(&note)?;
    ensure!(
        standing()
            .iter()
            .any(|lab| lab.directory().display().to_string() == directory)
    );
    drop(Lab::builder().node("node-a", &[]).build()?);
    let prefix = directory.trim_start_matches("/run/");
    ensure!(traces(prefix).is_empty(), "left behind: {:?}", traces(prefix));
    Ok(())
}
