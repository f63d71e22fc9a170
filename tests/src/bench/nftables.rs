//! A workload as the nftables mode of kube-proxy lays it out (`pkg/proxy/nftables/proxier.go`): a verdict map from frontends to
//! a chain a Service, which picks a chain an endpoint, which translates.

use std::{fmt::Write as _, net::SocketAddr};

use super::workload::{Service, Workload};

/// Everything that doesn't depend on Services: base chains in their hooks and priorities, empty sets and maps.
const FRAME: &str = "\
table ip kube-proxy {
  comment \"rules for kube-proxy\"
  set cluster-ips { type ipv4_addr; }
  set nodeport-ips { type ipv4_addr; }
  map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
  map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
  map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
  map service-nodeports { type inet_proto . inet_service : verdict; }

  chain reject-chain { reject; }
  chain mark-for-masquerade { meta mark set meta mark or 0x4000; }
  chain masquerading {
    meta mark & 0x4000 == 0 return
    meta mark set meta mark xor 0x4000
    masquerade fully-random
  }
  chain cluster-ips-check { ip daddr @cluster-ips reject; }
  chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
  chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
  chain nodeport-endpoints-check { ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }
  chain services {
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }

  chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
  chain filter-input {
    type filter hook input priority -110
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }
  chain filter-forward {
    type filter hook forward priority -110
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }
  chain filter-output {
    type filter hook output priority -110
    ct state new jump service-endpoints-check
    ct state new jump firewall-check
  }
  chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
  chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
  chain nat-output { type nat hook output priority -100; jump services; }
  chain nat-postrouting { type nat hook postrouting priority 100; jump masquerading; }
}
";

/// The ruleset as `nft --file -` reads it.
pub(super) fn render(workload: Workload, pod_network: &str) -> String {
    let mut rules = FRAME.to_owned();
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
        "{FRAME}table ip kube-proxy {{\n  \
         chain external-bench/node-port/udp/udp {{\n    jump mark-for-masquerade\n    \
         goto service-bench/node-port/udp/udp\n  }}\n  \
         chain service-bench/node-port/udp/udp {{\n    \
         numgen random mod 1 vmap {{ 0 : goto endpoint-bench/node-port/udp/udp__0 }}\n  }}\n  \
         chain endpoint-bench/node-port/udp/udp__0 {{\n    ip saddr {} jump mark-for-masquerade\n    \
         meta l4proto udp dnat to {endpoint}\n  }}\n}}\n\
         add element ip kube-proxy service-nodeports {{ udp . {port} : goto external-bench/node-port/udp/udp }}\n\
         add element ip kube-proxy nodeport-ips {{ {node} }}\n",
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
