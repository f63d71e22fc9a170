//! Pods' devices come and go.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Builder, Family, Lab, PATIENCE, Protocol, wait_until},
    require_root,
};

use super::{PORT, serve};

/// "Within milliseconds", with room for a machine that is busy with other tests.
const SOON: Duration = Duration::from_millis(250);

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

/// Asks every millisecond or so until an answer comes, from a new port each time: a datagram that was not served must not
/// decide for the next one. (A receive timeout would be rounded up to the kernel's slower tick.)
pub(super) fn first_answer(lab: &Lab, pod: &str, to: SocketAddr) -> Result<Instant> {
    let mut sockets = Vec::new();
    lab.namespace(pod).run(|| {
        wait_until(&format!("{pod} is answered from {to}"), PATIENCE, || {
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).ok()?;
            socket.set_nonblocking(true).ok()?;
            // Until the pod's routes are there it cannot even be sent.
            let _ = socket.send_to(b"hello", to);
            sockets.push(socket);
            let answered = |socket: &UdpSocket| socket.recv_from(&mut [0; 256]).is_ok_and(|(_, from)| from == to);
            sockets.iter().any(answered).then(Instant::now)
        })
    })
}

#[test]
fn a_new_pod_is_served_within_milliseconds() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "far", 1, &["far"])?;
        let _agents = lab.start_agents()?;
        for (pod, family) in [("late-1", Family::V4), ("late-2", Family::V6), ("late-3", Family::V4)] {
            lab.add_pod("node-a", pod)?;
            let up = lab.plug(pod)?;
            let took = first_answer(lab, pod, service.frontend(family, PORT))?.duration_since(up);
            println!("{pod}: first answer {took:?} after its device went up");
            ensure!(took < SOON, "{pod} was served only after {took:?}");
            lab.tcp_request(pod, service.frontend(family, PORT))?;
        }
        Ok(())
    })
}

/// A pod restarts: its device is another one with the same name and addresses, first the client's, then the backend's.
#[test]
fn a_pods_device_is_deleted_and_made_again() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "near", 1, &["near"])?;
        let _agents = lab.start_agents()?;
        for pod in ["client", "near"] {
            for family in Family::ALL {
                lab.tcp_request("client", service.frontend(family, PORT))?;
            }
            lab.unplug(pod)?;
            lab.plug(pod)?;
            // The pod itself as client: hairpin, where it is the backend, needs its new device as well.
            first_answer(lab, pod, service.frontend(Family::V4, PORT))?;
            for family in Family::ALL {
                for protocol in Protocol::ALL {
                    lab.request("client", protocol, service.frontend(family, PORT))?;
                    lab.request(pod, protocol, service.frontend(family, PORT))?;
                }
            }
        }
        Ok(())
    })
}
