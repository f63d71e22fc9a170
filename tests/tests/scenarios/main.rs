//! What the proxy must do for real packets between real network namespaces, with the real agent on each node. One theme a
//! file; one binary, because linking each would cost more than running them.

mod absent;
mod agent;
mod balance;
mod change;
mod collision;
mod command;
mod device;
mod diagnosis;
mod empty;
mod endpoint;
mod flood;
mod forwarding;
mod fragment;
mod full;
mod generation;
mod host;
mod ingress;
mod kernel_client;
mod locality;
mod node_port;
mod observe;
mod outside;
mod path_mtu;
mod port;
mod reject;
mod rollout;
mod scale;
mod sctp;
mod shape;
mod silence;
mod size;
mod soak;
mod sockets;
mod takeover;
mod told;
mod unserved;
mod verify;
mod vip;
mod xdp;

use anyhow::Result;
use proxy_tests::lab::{Addresses, Lab, Protocol, Service, address};

/// The port that Services of the scenarios have, and the one that their pods listen on.
const PORT: u16 = 80;
const POD_PORT: u16 = 8080;

/// A Service of that name with TCP and UDP on [`PORT`].
fn service(name: &str, cluster: Addresses) -> Service {
    let service = Service::new("default", name, cluster);
    service
        .port("tcp", Protocol::Tcp, PORT, POD_PORT)
        .port("udp", Protocol::Udp, PORT, POD_PORT)
}

/// Starts servers in pods and gives them to the agents as a Service, ClusterIP by number.
fn serve(lab: &Lab, name: &str, number: u8, pods: &[&str]) -> Result<Service> {
    for pod in pods {
        lab.serve(pod, POD_PORT)?;
    }
    let pods: Vec<_> = pods.iter().map(|pod| lab.pod(pod)).collect();
    let service = service(name, address::cluster(number)).pods(&pods);
    lab.apply(&service)?;
    Ok(service)
}
