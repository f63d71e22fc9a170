//! What is between the nodes and around them: wires, routers, and the client outside.

use anyhow::Result;

use super::{
    Addresses, Lab, Namespace,
    address::{self, BORDER, OUTSIDE, OUTSIDE_GATEWAY, ROUTER, ROUTER_TO_BORDER, SECOND_ROUTER},
    xdp::XdpWires,
};

/// Where the client outside the cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Behind the nodes' default gateway, the namespace `router`
    Near,
    /// Behind one more router, the namespace `border`
    Far,
}

/// Everything that is neither node nor pod.
#[derive(Debug)]
pub(super) struct Fabric {
    pub(super) router: Namespace,
    pub(super) border: Option<Namespace>,
    pub(super) outside: Option<Namespace>,
    /// Where nodes have XDP: what their wires need for it
    pub(super) xdp: Option<XdpWires>,
}

impl Fabric {
    pub(super) fn raise(prefix: &str, outside: Option<Outside>, second_wire: bool) -> Result<Self> {
        let mut fabric = Self {
            router: raise_router(prefix, second_wire)?,
            border: None,
            outside: None,
            xdp: None,
        };
        if let Some(place) = outside {
            fabric.raise_outside(prefix, place)?;
        }
        Ok(fabric)
    }

    /// The namespaces by name.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let all = [
            ("router", Some(&self.router)),
            ("border", self.border.as_ref()),
            ("outside", self.outside.as_ref()),
        ];
        all.into_iter().filter_map(|(name, namespace)| Some((name, namespace?)))
    }

    fn raise_outside(&mut self, prefix: &str, place: Outside) -> Result<()> {
        if place == Outside::Far {
            let border = Namespace::create(&format!("{prefix}-border"))?;
            forward(&border)?;
            let (here, there) = (ROUTER_TO_BORDER, BORDER);
            self.router.ip(&format!(
                "link add border type veth peer name router netns {}\n\
                 link set border up\n\
                 addr add {}/24 dev border\n\
                 addr add {}/64 dev border nodad\n\
                 route add default via {}\n\
                 route add ::/0 via {}\n",
                border.name(),
                here.v4,
                here.v6,
                there.v4,
                there.v6
            ))?;
            border.ip(&format!(
                "link set router up\n\
                 addr add {}/24 dev router\n\
                 addr add {}/64 dev router nodad\n\
                 route add default via {}\n\
                 route add ::/0 via {}\n",
                there.v4, there.v6, here.v4, here.v6
            ))?;
            self.border = Some(border);
        }
        let outside = Namespace::create(&format!("{prefix}-outside"))?;
        self.border.as_ref().unwrap_or(&self.router).ip(&format!(
            "link add outside type veth peer name eth0 netns {}\n\
             link set outside up\n\
             addr add {}/24 dev outside\n\
             addr add {}/64 dev outside nodad\n",
            outside.name(),
            OUTSIDE_GATEWAY.v4,
            OUTSIDE_GATEWAY.v6
        ))?;
        outside.ip(&format!(
            "link set eth0 up\n\
             addr add {}/24 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n\
             route add default via {}\n\
             route add ::/0 via {}\n",
            OUTSIDE.v4, OUTSIDE.v6, OUTSIDE_GATEWAY.v4, OUTSIDE_GATEWAY.v6
        ))?;
        self.outside = Some(outside);
        Ok(())
    }

    /// Plugs a node into the wires: `eth0` with the default route, and `eth1`.
    pub(super) fn plug_node(&self, node: &Namespace, number: u8, second_wire: bool) -> Result<()> {
        let own = address::node(number);
        let [pods_v4, pods_v6] = address::pod_networks(number);
        self.plug_into("wire", node, number, "eth0", own)?;
        self.router.ip(&format!(
            "route add {pods_v4} via {}\n\
             route add {pods_v6} via {}\n",
            own.v4, own.v6
        ))?;
        node.ip(&format!(
            "route add default via {}\n\
             route add ::/0 via {}\n",
            ROUTER.v4, ROUTER.v6
        ))?;
        if second_wire {
            self.plug_into(
                "second-wire",
                node,
                number,
                "eth1",
                address::node_on_second_wire(number),
            )?;
        }
        Ok(())
    }

    fn plug_into(&self, wire: &str, node: &Namespace, number: u8, device: &str, own: Addresses) -> Result<()> {
        self.router.ip(&format!(
            "link add {device}-{number} type veth peer name {device} netns {}\n\
             link set {device}-{number} addrgenmode none\n\
             link set {device}-{number} master {wire} up\n",
            node.name()
        ))?;
        node.ip(&format!(
            "link set {device} up\n\
             addr add {}/24 dev {device}\n\
             addr add {}/64 dev {device} nodad\n",
            own.v4, own.v6
        ))
    }
}

impl Lab {
    /// Announces an address as a load balancer does that is bound nowhere (MetalLB with BGP): the router sends packets to it
    /// to these nodes, each flow to one of them. A later call replaces the nodes.
    pub fn announce(&self, addresses: Addresses, nodes: &[&str]) -> Result<()> {
        let hops = |via: fn(Addresses) -> String| {
            let hop = |node: &&str| format!(" nexthop via {}", via(self.node(node).addresses()));
            nodes.iter().map(hop).collect::<String>()
        };
        self.fabric.router.ip(&format!(
            "route replace {}/32{}\n\
             route replace {}/128{}\n",
            addresses.v4,
            hops(|node| node.v4.to_string()),
            addresses.v6,
            hops(|node| node.v6.to_string())
        ))
    }

    /// Sets the MTU of a device in a namespace, in bytes. The ends of a wire are two devices.
    pub fn set_mtu(&self, namespace: &str, device: &str, mtu: u16) -> Result<()> {
        self.namespace(namespace).ip(&format!("link set {device} mtu {mtu}\n"))
    }
}

fn forward(router: &Namespace) -> Result<()> {
    router.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        // A flow, not a pair of hosts, stays on one of several ways.
        ("ipv4/fib_multipath_hash_policy", "1"),
        ("ipv6/fib_multipath_hash_policy", "1"),
    ])
}

/// The wires, bridges, in a namespace that also routes between them and to the outside.
fn raise_router(prefix: &str, second_wire: bool) -> Result<Namespace> {
    let router = Namespace::create(&format!("{prefix}-router"))?;
    forward(&router)?;
    let wires = [("wire", ROUTER), ("second-wire", SECOND_ROUTER)];
    for (wire, own) in wires.into_iter().take(if second_wire { 2 } else { 1 }) {
        router.ip(&format!(
            "link add {wire} type bridge forward_delay 0\n\
             link set {wire} up\n\
             addr add {}/24 dev {wire}\n\
             addr add {}/64 dev {wire} nodad\n",
            own.v4, own.v6
        ))?;
    }
    Ok(router)
}
