//! Nodes that let nothing doubtful through, as careful administrators set them up: reverse path filter on every device, a
//! forward chain that drops what is neither from a pod nor from a node by default, connection tracking that drops what it calls invalid, and a CNI's masquerade of
//! what leaves the cluster. A proxy passes here only if the stack sees nothing but `client <-> backend`.
//!
//! One exception: on a bridge without bridge netfilter, connection tracking sees only the requests of flows between pods of
//! the node (replies go from port to port), and calls the acknowledgement of a handshake whose answer it missed invalid.
//! No proxy can change that, so there packets that are routed from the bridge back to it may be invalid.

use anyhow::Result;

use super::{
    BridgeNetfilter, Cni, Lab, Node,
    address::{OUTSIDE, POD_NETWORK_V4, POD_NETWORK_V6, WIRE_V4, WIRE_V6, pod_networks},
};

/// Sets a node up that has no devices yet; those made later inherit it.
pub(super) fn apply(node: &Node, cni: Cni) -> Result<()> {
    node.namespace
        .sysctl(&[("ipv4/conf/all/rp_filter", "1"), ("ipv4/conf/default/rp_filter", "1")])?;
    let half_seen = match cni {
        Cni::Bridge(BridgeNetfilter::Off) => "ct state invalid iifname cni0 oifname cni0 counter accept",
        Cni::PointToPoint | Cni::Bridge(BridgeNetfilter::On) => "",
    };
    let [pods_v4, pods_v6] = pod_networks(node.number);
    // Multicast and neighbour discovery, which are never routed, are met where a bridge shows its packets to netfilter.
    // The kernel has no rp_filter for IPv6; the fib expression is what firewalls use instead. Link-local sources, those
    // of neighbour discovery, have no route back.
    let rules = format!(
        "table inet strict {{
            chain way_back {{
                type filter hook prerouting priority raw; policy accept;
                ip6 saddr fe80::/10 accept
                meta nfproto ipv6 fib saddr . iif oif 0 counter drop comment \"no way back\"
            }}
            chain admitted {{
            }}
            chain forwarded {{
                type filter hook forward priority filter; policy drop;
                {half_seen}
                ip daddr 224.0.0.0/4 accept
                ip6 daddr ff00::/8 accept
                icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
                ct state invalid counter drop comment \"invalid\"
                ct state established,related counter accept
                ct state new ip saddr {POD_NETWORK_V4} counter accept
                ct state new ip6 saddr {POD_NETWORK_V6} counter accept
                ct state new ip saddr {WIRE_V4} ip daddr {POD_NETWORK_V4} counter accept
                ct state new ip6 saddr {WIRE_V6} ip6 daddr {POD_NETWORK_V6} counter accept
                jump admitted
                counter comment \"not expected\"
            }}
            chain leaving {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {pods_v4} ip daddr != {{ {POD_NETWORK_V4}, 224.0.0.0/4 }} counter masquerade comment \"leaves the cluster\"
                ip6 saddr {pods_v6} ip6 daddr != {{ {POD_NETWORK_V6}, ff00::/8 }} counter masquerade comment \"leaves the cluster\"
            }}
        }}\n"
    );
    node.namespace.tool("nft", &["-f", "-"], &rules).map(drop)
}

impl Lab {
    /// Lets the client outside reach pods, and nodes behind nodes, through strict nodes, as a NetworkPolicy does: kube-proxy
    /// does nothing about the firewalls of others (behaviour.md 5.9).
    pub fn admit_outside(&self) -> Result<()> {
        let rules = format!(
            "add rule inet strict admitted ct state new ip saddr {} ip daddr {{ {POD_NETWORK_V4}, {WIRE_V4} }} accept
             add rule inet strict admitted ct state new ip6 saddr {} ip6 daddr {{ {POD_NETWORK_V6}, {WIRE_V6} }} accept\n",
            OUTSIDE.v4, OUTSIDE.v6
        );
        let mut nodes = self.nodes().iter();
        nodes.try_for_each(|node| node.namespace.tool("nft", &["-f", "-"], &rules).map(drop))
    }
}

/// The commented rules that packets met. They are those that no packet between a client, a ClusterIP and a pod may meet.
pub(super) fn offended(node: &Node) -> Result<Vec<String>> {
    let rules = node.namespace.tool("nft", &["list", "table", "inet", "strict"], "")?;
    let offended = rules
        .lines()
        .filter(|rule| rule.contains("comment") && !rule.contains("packets 0 "));
    Ok(offended.map(|rule| format!("{}: {}", node.name, rule.trim())).collect())
}
