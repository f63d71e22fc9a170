//! Nodes that let nothing doubtful through, as careful administrators set them up: reverse path filter on every device, a
//! forward chain that drops by default, connection tracking that drops what it calls invalid, and a CNI's masquerade of
//! what leaves the cluster. A proxy passes here only if the stack sees nothing but `client <-> backend`.

use anyhow::Result;

use super::{
    Node,
    address::{POD_NETWORK_V4, POD_NETWORK_V6, pod_networks},
};

/// Sets a node up; devices made later inherit it.
pub(super) fn apply(node: &Node) -> Result<()> {
    node.namespace.sysctl(&[
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/eth0/rp_filter", "1"),
    ])?;
    let [pods_v4, pods_v6] = pod_networks(node.number);
    // The kernel has no rp_filter for IPv6; the fib expression is what firewalls use instead. Link-local sources, those
    // of neighbour discovery, have no route back.
    let rules = format!(
        "table inet strict {{
            chain way_back {{
                type filter hook prerouting priority raw; policy accept;
                ip6 saddr fe80::/10 accept
                meta nfproto ipv6 fib saddr . iif oif 0 counter drop comment \"no way back\"
            }}
            chain forwarded {{
                type filter hook forward priority filter; policy drop;
                ct state invalid counter drop comment \"invalid\"
                ct state established,related counter accept
                ct state new ip saddr {POD_NETWORK_V4} counter accept
                ct state new ip6 saddr {POD_NETWORK_V6} counter accept
                counter comment \"not expected\"
            }}
            chain leaving {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {pods_v4} ip daddr != {POD_NETWORK_V4} counter masquerade comment \"leaves the cluster\"
                ip6 saddr {pods_v6} ip6 daddr != {POD_NETWORK_V6} counter masquerade comment \"leaves the cluster\"
            }}
        }}\n"
    );
    node.namespace.tool("nft", &["-f", "-"], &rules).map(drop)
}

/// The commented rules that packets met. They are those that no packet between a client, a ClusterIP and a pod may meet.
pub(super) fn offended(node: &Node) -> Result<Vec<String>> {
    let rules = node.namespace.tool("nft", &["list", "table", "inet", "strict"], "")?;
    let offended = rules
        .lines()
        .filter(|rule| rule.contains("comment") && !rule.contains("packets 0 "));
    Ok(offended.map(|rule| format!("{}: {}", node.name, rule.trim())).collect())
}
