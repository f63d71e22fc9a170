//! The nftables mode (`pkg/proxy/nftables/proxier.go`): a verdict map from frontends to a chain a Service, which picks a chain an
//! endpoint, which translates.

use std::fmt::Write as _;

use super::{FITS, Reach, Rules};
use crate::lab::{Family, address};

/// Everything that doesn't depend on Services, for IPv4: base chains in their hooks and priorities, empty sets and maps.
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

/// Everything that doesn't depend on Services.
pub fn frame(family: Family) -> String {
    match family {
        Family::V4 => FRAME.to_owned(),
        Family::V6 => FRAME
            .replace("table ip ", "table ip6 ")
            .replace("ip daddr", "ip6 daddr")
            .replace("ipv4_addr", "ipv6_addr"),
    }
}

/// The ruleset of a family, as `nft --file -` reads it.
pub(super) fn render(rules: &Rules, family: Family) -> String {
    let (ip, pod_network) = match family {
        Family::V4 => ("ip", address::POD_NETWORK_V4),
        Family::V6 => ("ip6", address::POD_NETWORK_V6),
    };
    let (mut chains, mut elements) = (String::new(), String::new());
    let mut add = |set: &str, element: String| {
        writeln!(elements, "add element {ip} kube-proxy {set} {{ {element} }}").expect(FITS);
    };
    add("nodeport-ips", rules.node.of(family).to_string());
    for port in rules.ports.iter().filter(|port| port.family == family) {
        let (name, protocol) = (&port.name, port.protocol.to_string().to_lowercase());
        let endpoint_chain = |index: usize| format!("endpoint-{name}/{protocol}__{index}");
        let choices = 0..port.endpoints.len();
        let choices: Vec<String> = choices
            .map(|index| format!("{index} : goto {}", endpoint_chain(index)))
            .collect();
        write!(
            chains,
            "  chain external-{name}/{protocol} {{\n    jump mark-for-masquerade\n    goto service-{name}/{protocol}\n  }}\n  \
             chain service-{name}/{protocol} {{\n"
        )
        .expect(FITS);
        for (reach, frontend) in &port.frontends {
            let (address, number) = (frontend.ip(), frontend.port());
            match reach {
                Reach::Cluster => {
                    writeln!(
                        chains,
                        "    {ip} daddr {address} {protocol} dport {number} {ip} saddr != {pod_network} jump mark-for-masquerade"
                    )
                    .expect(FITS);
                    add("cluster-ips", address.to_string());
                    let verdict = format!("{address} . {protocol} . {number} : goto service-{name}/{protocol}");
                    add("service-ips", verdict);
                }
                Reach::External => {
                    let verdict = format!("{address} . {protocol} . {number} : goto external-{name}/{protocol}");
                    add("service-ips", verdict);
                }
                Reach::NodePort => {
                    let verdict = format!("{protocol} . {number} : goto external-{name}/{protocol}");
                    add("service-nodeports", verdict);
                }
            }
        }
        writeln!(
            chains,
            "    numgen random mod {} vmap {{ {} }}\n  }}",
            choices.len(),
            choices.join(", ")
        )
        .expect(FITS);
        for (index, endpoint) in port.endpoints.iter().enumerate() {
            write!(
                chains,
                "  chain {} {{\n    {ip} saddr {} jump mark-for-masquerade\n    \
                 meta l4proto {protocol} dnat to {endpoint}\n  }}\n",
                endpoint_chain(index),
                endpoint.ip()
            )
            .expect(FITS);
        }
    }
    format!("{}table {ip} kube-proxy {{\n{chains}}}\n{elements}", frame(family))
}
