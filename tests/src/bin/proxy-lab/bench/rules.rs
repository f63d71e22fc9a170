//! ClusterIP Services as kube-proxy lays them out: the same chains and lookups a packet meets, in both its modes.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddrV4},
};

use anyhow::Result;
use proxy_tests::lab::{Namespace, address::POD_NETWORK_V4};

/// A TCP Service with one endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub(super) frontend: SocketAddrV4,
    pub(super) endpoint: SocketAddrV4,
}

/// The `number`th of many Services; nobody answers at its endpoint.
pub(super) fn filler(number: u16) -> Rule {
    let [high, low] = number.to_be_bytes();
    Rule {
        frontend: SocketAddrV4::new(Ipv4Addr::new(10, 97, high, low), 80),
        endpoint: SocketAddrV4::new(Ipv4Addr::new(10, 244, 128 + high, low), 8080),
    }
}

/// kube-proxy's nftables mode (kubernetes/pkg/proxy/nftables/proxier.go): one lookup in a verdict map.
pub(super) fn nftables(node: &Namespace, rules: &[Rule]) -> Result<()> {
    let mut chains = String::new();
    let mut elements = Vec::new();
    for (number, Rule { frontend, endpoint }) in rules.iter().enumerate() {
        let (vip, port) = (frontend.ip(), frontend.port());
        elements.push(format!("{vip} . tcp . {port} : goto service-{number}"));
        write!(
            chains,
            "chain endpoint-{number} {{
                ip saddr {} jump mark-for-masquerade
                meta l4proto tcp dnat to {endpoint}
            }}
            chain service-{number} {{
                ip daddr {vip} tcp dport {port} ip saddr != {POD_NETWORK_V4} jump mark-for-masquerade
                numgen random mod 1 vmap {{ 0 : goto endpoint-{number} }}
            }}\n",
            endpoint.ip()
        )?;
    }
    let elements = elements.join(", ");
    let vips: Vec<String> = rules.iter().map(|rule| rule.frontend.ip().to_string()).collect();
    let table = format!(
        "table ip kube-proxy {{
            chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
            {chains}
            set cluster-ips {{ type ipv4_addr; elements = {{ {} }}; }}
            set nodeport-ips {{ type ipv4_addr; }}
            map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
            map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
            map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
            map service-nodeports {{ type inet_proto . inet_service : verdict; }}
            map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {elements} }}; }}
            chain services {{
                ip daddr . meta l4proto . th dport vmap @service-ips
                ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
            }}
            chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
            chain service-endpoints-check {{ ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
            chain nodeport-endpoints-check {{ ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
            chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
            chain masquerading {{
                meta mark & 0x4000 == 0 return
                meta mark set meta mark ^ 0x4000
                masquerade fully-random
            }}
            chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
            chain filter-input {{
                type filter hook input priority 0
                ct state new jump nodeport-endpoints-check
                ct state new jump service-endpoints-check
            }}
            chain filter-forward {{
                type filter hook forward priority 0
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}
            chain filter-output {{
                type filter hook output priority 0
                ct state new jump service-endpoints-check
                ct state new jump cluster-ips-check
            }}
            chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
            chain nat-output {{ type nat hook output priority -100; jump services; }}
            chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
        }}\n",
        vips.join(", ")
    );
    node.tool("nft", &["-f", "-"], &table).map(drop)
}

/// kube-proxy's iptables mode (kubernetes/pkg/proxy/iptables/proxier.go): a list of rules, one a Service.
pub(super) fn iptables(node: &Namespace, rules: &[Rule]) -> Result<()> {
    let mut chains = String::new();
    let mut services = String::new();
    let mut endpoints = String::new();
    for (number, Rule { frontend, endpoint }) in rules.iter().enumerate() {
        let matches = format!("-d {}/32 -p tcp -m tcp --dport {}", frontend.ip(), frontend.port());
        writeln!(chains, ":KUBE-SVC-{number} - [0:0]\n:KUBE-SEP-{number} - [0:0]")?;
        writeln!(services, "-A KUBE-SERVICES {matches} -j KUBE-SVC-{number}")?;
        writeln!(
            endpoints,
            "-A KUBE-SVC-{number} ! -s {POD_NETWORK_V4} {matches} -j KUBE-MARK-MASQ\n\
             -A KUBE-SVC-{number} -j KUBE-SEP-{number}\n\
             -A KUBE-SEP-{number} -s {}/32 -j KUBE-MARK-MASQ\n\
             -A KUBE-SEP-{number} -p tcp -m tcp -j DNAT --to-destination {endpoint}",
            endpoint.ip()
        )?;
    }
    let tables = format!(
        "*filter\n\
         :KUBE-FORWARD - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         -A PREROUTING -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-SERVICES\n\
         -A POSTROUTING -j KUBE-POSTROUTING\n\
         {services}\
         -A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         {endpoints}\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         COMMIT\n"
    );
    // The kernel's own iptables, not its translation to nftables, which has another cost.
    node.tool("iptables-legacy-restore", &["--wait", "--noflush"], &tables)
        .map(drop)
}
