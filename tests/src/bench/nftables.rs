//! A workload as the nftables mode of kube-proxy lays it out (`pkg/proxy/nftables/proxier.go`): a verdict map from frontends to
//! a chain a Service, which picks a chain an endpoint, which translates.

use std::{fmt::Write as _, net::SocketAddr};

use super::workload::{Service, Workload};
use crate::lab::{Family, kube_proxy::nftables_frame};

/// The ruleset as `nft --file -` reads it.
pub(super) fn render(workload: Workload, pod_network: &str) -> String {
    let mut rules = nftables_frame(Family::V4);
    let (mut chains, mut frontends, mut addresses) = (String::new(), Vec::new(), Vec::new());
    for Service {
        name,
        frontend,
        endpoints,
    } in workload.services()
    {
        let (address, port) = (frontend.ip(), frontend.port());
        let endpoint_chain = |index: usize| format!("endpoint-bench/{name}/tcp/http__{index}");
        let choice = |index: usize| format!("{index} : goto {}", endpoint_chain(index));
        write!(
            chains,
            "  chain service-bench/{name}/tcp/http {{\n    \
             ip daddr {address} tcp dport {port} ip saddr != {pod_network} jump mark-for-masquerade\n    \
             numgen random mod 2 vmap {{ {}, {} }}\n  }}\n",
            choice(0),
            choice(1)
        )
        .expect(FITS);
        for (index, endpoint) in endpoints.iter().enumerate() {
            write!(
                chains,
                "  chain {} {{\n    ip saddr {} jump mark-for-masquerade\n    meta l4proto tcp dnat to {endpoint}\n  }}\n",
                endpoint_chain(index),
                endpoint.ip()
            )
            .expect(FITS);
        }
        frontends.push(format!("{address} . tcp . {port} : goto service-bench/{name}/tcp/http"));
        addresses.push(address.to_string());
    }
    write!(
        rules,
        "table ip kube-proxy {{\n{chains}}}\n\
         add element ip kube-proxy service-ips {{ {} }}\n\
         add element ip kube-proxy cluster-ips {{ {} }}\n",
        frontends.join(", "),
        addresses.join(", ")
    )
    .expect(FITS);
    rules
}

/// One Service with a nodePort for UDP and an endpoint, as it is laid out for policy Cluster.
pub(super) fn render_node_port(at: SocketAddr, endpoint: SocketAddr) -> String {
    let (node, port) = (at.ip(), at.port());
    format!(
        "{}table ip kube-proxy {{\n  \
         chain external-bench/node-port/udp/udp {{\n    jump mark-for-masquerade\n    \
         goto service-bench/node-port/udp/udp\n  }}\n  \
         chain service-bench/node-port/udp/udp {{\n    \
         numgen random mod 1 vmap {{ 0 : goto endpoint-bench/node-port/udp/udp__0 }}\n  }}\n  \
         chain endpoint-bench/node-port/udp/udp__0 {{\n    ip saddr {} jump mark-for-masquerade\n    \
         meta l4proto udp dnat to {endpoint}\n  }}\n}}\n\
         add element ip kube-proxy service-nodeports {{ udp . {port} : goto external-bench/node-port/udp/udp }}\n\
         add element ip kube-proxy nodeport-ips {{ {node} }}\n",
        nftables_frame(Family::V4),
        endpoint.ip()
    )
}

const FITS: &str = "a string takes everything";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_port_is_an_element_and_three_chains() {
        let rules = render_node_port(
            "172.30.0.1:30080".parse().expect("an address"),
            "10.244.2.10:8080".parse().expect("an address"),
        );
        assert!(rules.contains("udp . 30080 : goto external-bench/node-port/udp/udp"));
        assert!(rules.contains("meta l4proto udp dnat to 10.244.2.10:8080"));
    }

    #[test]
    fn a_service_is_an_element_and_three_chains() {
        let rules = render(super::super::workload::tests::small(), "10.244.0.0/16");
        assert!(rules.contains("10.96.0.2 . tcp . 80 : goto service-bench/service-1/tcp/http"));
        assert!(rules.contains("meta l4proto tcp dnat to 10.244.1.11:8081"));
        assert_eq!(rules.matches("chain endpoint-").count(), 6);
        assert_eq!(rules.matches("numgen random mod 2 vmap").count(), 3);
    }
}
