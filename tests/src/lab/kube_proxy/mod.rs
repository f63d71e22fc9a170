//! Rules as kube-proxy writes them, for nodes that are taken over from it or handed back to it.

mod iptables;
mod nftables;

use std::{fmt, net::SocketAddr};

use anyhow::Result;

pub use self::{iptables::frame as iptables_frame, nftables::frame as nftables_frame};
use super::{Addresses, Family, FrontendKind, Lab, Protocol, Service};

const FITS: &str = "a string takes everything";

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeProxy {
    /// nftables mode
    Nftables,
    /// iptables mode, by the commands that write nftables
    IptablesNft,
    /// iptables mode, by the commands of old
    IptablesLegacy,
}

impl KubeProxy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];
}

impl fmt::Display for KubeProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nftables => "nftables",
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
        })
    }
}

/// Who uses a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Pods
    Cluster,
    /// Anybody: an address of the Service's own
    External,
    /// Anybody: a port of the node
    NodePort,
}

/// A port of a Service in one family.
struct Port {
    /// As kube-proxy's chains have it
    name: String,
    family: Family,
    protocol: Protocol,
    frontends: Vec<(Reach, SocketAddr)>,
    endpoints: Vec<SocketAddr>,
}

/// What rules are to be written for.
struct Rules {
    node: Addresses,
    ports: Vec<Port>,
}

impl Lab {
    /// Writes the rules on a node that kube-proxy would have there for Services with a frontend of every kind and ports `tcp` and
    /// `udp`.
    pub fn program_kube_proxy(&self, node: &str, mode: KubeProxy, services: &[&Service]) -> Result<()> {
        let node = self.node(node);
        let kinds = [
            (FrontendKind::ClusterIp, Reach::Cluster),
            (FrontendKind::ExternalIp, Reach::External),
            (FrontendKind::LoadBalancer, Reach::External),
            (FrontendKind::NodePort, Reach::NodePort),
        ];
        let mut ports = Vec::new();
        for service in services {
            for (family, protocol) in Family::ALL
                .iter()
                .flat_map(|family| Protocol::ALL.map(|protocol| (*family, protocol)))
            {
                let name = protocol.to_string().to_lowercase();
                let endpoints = service.endpoints().into_iter();
                ports.push(Port {
                    name: format!("{}/{name}", service.full_name()),
                    family,
                    protocol,
                    frontends: kinds
                        .iter()
                        .map(|(kind, reach)| (*reach, service.frontend_of(*kind, family, &name, node)))
                        .collect(),
                    endpoints: endpoints
                        .filter(|endpoint| endpoint.is_ipv4() == (family == Family::V4))
                        .collect(),
                });
            }
        }
        let rules = Rules {
            node: node.addresses(),
            ports,
        };
        for (family, prefix) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            let namespace = node.namespace();
            match mode {
                KubeProxy::Nftables => namespace.tool("nft", &["--file", "-"], &nftables::render(&rules, family)),
                KubeProxy::IptablesNft | KubeProxy::IptablesLegacy => {
                    let variant = if mode == KubeProxy::IptablesNft {
                        "nft"
                    } else {
                        "legacy"
                    };
                    let restore = format!("{prefix}tables-{variant}-restore");
                    namespace.tool(&restore, &["--noflush"], &iptables::render(&rules, family))
                }
            }?;
        }
        Ok(())
    }
}
