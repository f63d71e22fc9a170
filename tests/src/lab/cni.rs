//! The way from a pod to its node.

use std::time::Instant;

use anyhow::{Result, bail};

use super::{Addresses, BridgeNetfilter, Cni, Lab, Namespace, Pod, Shape, address};

/// A pod's gateways where it has a device of its own: no device has these addresses, the node's side of the veth answers for
/// them (as Calico does).
const GATEWAY_V4: &str = "169.254.1.1";
const GATEWAY_V6: &str = "fe80::1";
/// Hardware address of the gateway: of the node's side of every veth, or of the bridge.
const GATEWAY_HARDWARE: &str = "ee:ee:ee:ee:ee:ee";
/// The bridge of a node's pods.
const BRIDGE: &str = "cni0";

/// How one pod is joined to its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// As the lab's shape says
    Shape,
    /// A macvlan device on the node's uplink: nothing of it is on the node
    Macvlan,
}

impl Cni {
    /// Address of a node on the device that leads to its own pods.
    pub(super) const fn address(self, node: u8) -> Addresses {
        match self {
            Self::PointToPoint => address::node(node),
            Self::Bridge(_) => address::gateway(node),
        }
    }

    /// Makes a node ready for pods.
    pub(super) fn prepare(self, node: &Namespace, number: u8) -> Result<()> {
        let Self::Bridge(netfilter) = self else {
            return Ok(());
        };
        let Addresses { v4, v6 } = address::gateway(number);
        node.ip(&format!(
            "link add {BRIDGE} address {GATEWAY_HARDWARE} type bridge forward_delay 0\n\
             link set {BRIDGE} up\n\
             addr add {v4}/24 dev {BRIDGE}\n\
             addr add {v6}/64 dev {BRIDGE} nodad\n"
        ))?;
        let switch = match netfilter {
            BridgeNetfilter::On => "1",
            BridgeNetfilter::Off => "0",
        };
        node.sysctl(&[
            ("bridge/bridge-nf-call-iptables", switch),
            ("bridge/bridge-nf-call-ip6tables", switch),
        ])
    }
}

impl Lab {
    /// Connects a pod to its node, as a CNI does for a new pod: device, addresses, routes. Returns the time just before the
    /// node's side of the device went up.
    pub fn plug(&self, pod: &str) -> Result<Instant> {
        let pod = self.pod(pod);
        plug(&self.node(&pod.node).namespace, pod, self.shape)
    }

    /// Deletes the device between a pod and its node.
    ///
    /// # Errors
    /// It is a macvlan pod: there is no device between.
    pub fn unplug(&self, pod: &str) -> Result<()> {
        let pod = self.pod(pod);
        let Some(device) = pod.host_device() else {
            bail!("{} has no device on its node", pod.name);
        };
        self.node(&pod.node).namespace.ip(&format!("link del {device}\n"))
    }
}

/// See [`Lab::plug`].
pub(super) fn plug(node: &Namespace, pod: &Pod, shape: Shape) -> Result<Instant> {
    let Addresses { v4, v6 } = pod.addresses;
    let Some(device) = pod.host_device() else {
        return plug_macvlan(node, pod);
    };
    let mtu = shape.interconnect.pod_mtu();
    let in_pod = |prefixes: [u8; 2]| {
        let [long_v4, long_v6] = prefixes;
        format!(
            "link set eth0 up\n\
             addr add {v4}/{long_v4} dev eth0\n\
             addr add {v6}/{long_v6} dev eth0 nodad\n"
        )
    };
    let own_address = match shape.cni {
        Cni::PointToPoint => format!("address {GATEWAY_HARDWARE}"),
        Cni::Bridge(_) => String::new(),
    };
    node.ip(&format!(
        "link add {device} {own_address} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n",
        pod.namespace.name()
    ))?;
    match shape.cni {
        Cni::PointToPoint => {
            pod.namespace.ip(&format!(
                "{}\
                 neigh replace {GATEWAY_V4} lladdr {GATEWAY_HARDWARE} dev eth0 nud permanent\n\
                 neigh replace {GATEWAY_V6} lladdr {GATEWAY_HARDWARE} dev eth0 nud permanent\n\
                 route add default via {GATEWAY_V4} dev eth0 onlink\n\
                 route add ::/0 via {GATEWAY_V6} dev eth0\n",
                in_pod([32, 128])
            ))?;
            // Up last: a pod that can be reached is one that can answer.
            let up = Instant::now();
            node.ip(&format!(
                "link set {device} up\n\
                 route add {v4}/32 dev {device}\n\
                 route add {v6}/128 dev {device}\n"
            ))?;
            Ok(up)
        }
        Cni::Bridge(_) => {
            let gateway = address::gateway(pod.node_number);
            pod.namespace.ip(&format!(
                "{}\
                 route add default via {}\n\
                 route add ::/0 via {}\n",
                in_pod([24, 64]),
                gateway.v4,
                gateway.v6
            ))?;
            let up = Instant::now();
            // The bridge's own MTU is that of its smallest port.
            node.ip(&format!(
                "link set {device} addrgenmode none\n\
                 link set {device} master {BRIDGE} up\n"
            ))?;
            Ok(up)
        }
    }
}

/// On the wire like a node of its own: the way between it and its own node is the only one that isn't there.
fn plug_macvlan(node: &Namespace, pod: &Pod) -> Result<Instant> {
    let Addresses { v4, v6 } = pod.addresses;
    let inside = pod.namespace.name();
    node.ip(&format!(
        "link add link eth0 name eth0 netns {inside} type macvlan mode bridge\n"
    ))?;
    let up = Instant::now();
    pod.namespace.ip(&format!(
        "link set eth0 up\n\
         addr add {v4}/24 dev eth0\n\
         addr add {v6}/64 dev eth0 nodad\n\
         route add default via {}\n\
         route add ::/0 via {}\n",
        address::ROUTER.v4,
        address::ROUTER.v6
    ))?;
    Ok(up)
}
