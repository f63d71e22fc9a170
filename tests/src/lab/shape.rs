//! How pods are joined to their node, and nodes to each other.

use std::fmt;

/// What a CNI plugin builds. Every combination exists somewhere in the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// From a pod to its node
    pub cni: Cni,
    /// From node to node
    pub interconnect: Interconnect,
}

/// How a pod is joined to its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cni {
    /// An address-less veth and a host route for each pod (Calico, kindnet)
    #[default]
    PointToPoint,
    /// Pods' veths are ports of the bridge `cni0`, which has the gateway's address (flannel and other users of the bridge
    /// plugin)
    Bridge(BridgeNetfilter),
}

/// Whether packets from port to port of a bridge pass the node's netfilter (`net.bridge.bridge-nf-call-iptables`).
///
/// It decides what the node's connection tracking sees of a pod that talks to a pod of its own bridge through a ClusterIP:
/// the request is routed, from the bridge and back to it, but the reply goes from port to port. Without bridge netfilter
/// each flow is one-sided, and TCP invalid from its second packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeNetfilter {
    /// As Kubernetes asks for
    On,
    /// Replies between pods of one bridge are invisible; strict nodes make an exception: see [`super::strict`]
    Off,
}

/// How packets between pods get from node to node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interconnect {
    /// Plain routes over the wire
    #[default]
    Native,
    /// Ethernet frames in UDP, from a device `flannel.1`
    Vxlan,
    /// IP packets in UDP, from a device `tunnel` that has no Ethernet header, as those of ipip and wireguard. (It is a vxlan
    /// device as well, with the generic protocol extension: the only tunnel without Ethernet that every kernel with
    /// vxlan has.)
    Tunnel,
}

impl Shape {
    /// Every CNI with every way from node to node.
    pub const ALL: [Self; 9] = {
        const fn with(cni: Cni) -> [Shape; 3] {
            [
                Shape {
                    cni,
                    interconnect: Interconnect::Native,
                },
                Shape {
                    cni,
                    interconnect: Interconnect::Vxlan,
                },
                Shape {
                    cni,
                    interconnect: Interconnect::Tunnel,
                },
            ]
        }
        let [a, b, c] = with(Cni::PointToPoint);
        let [d, e, f] = with(Cni::Bridge(BridgeNetfilter::On));
        let [g, h, i] = with(Cni::Bridge(BridgeNetfilter::Off));
        [a, b, c, d, e, f, g, h, i]
    };
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cni {
            Cni::PointToPoint => "point-to-point veths",
            Cni::Bridge(BridgeNetfilter::On) => "a bridge with netfilter",
            Cni::Bridge(BridgeNetfilter::Off) => "a bridge without netfilter",
        })?;
        f.write_str(match self.interconnect {
            Interconnect::Native => ", native routes",
            Interconnect::Vxlan => ", vxlan",
            Interconnect::Tunnel => ", a tunnel without Ethernet",
        })
    }
}
