//! The way from node to node: routes to the pods of the other nodes, and the tunnel that they may lead into.

use std::fmt::Write as _;

use anyhow::Result;

use super::{Addresses, Interconnect, Namespace, address};

/// What is left of the wire's 1500 bytes in either tunnel, over IPv4 (as flannel has it).
const TUNNEL_MTU: u16 = 1450;

impl Interconnect {
    /// The MTU of pods, which a CNI sets to what fits between nodes.
    pub(super) const fn pod_mtu(self) -> u16 {
        match self {
            Self::Native => 1500,
            Self::Vxlan | Self::Tunnel => TUNNEL_MTU,
        }
    }

    /// Address of a node on the device that leads to the pods of other nodes.
    pub(super) const fn address(self, node: u8) -> Addresses {
        match self {
            Self::Native => address::node(node),
            Self::Vxlan | Self::Tunnel => address::tunnel(node),
        }
    }

    /// Joins node `number` of `count` to the others.
    pub(super) fn join(self, node: &Namespace, number: u8, count: u8) -> Result<()> {
        let mut lines = self.device(number);
        for other in (1..=count).filter(|&other| other != number) {
            self.way_to(other, &mut lines)?;
        }
        node.ip(&lines)?;
        if matches!(self, Self::Vxlan) {
            let others = (1..=count).filter(|&other| other != number);
            let entries = others.map(|other| {
                let (hardware, there) = (hardware(other), address::node(other).v4);
                format!("fdb append {hardware} dev flannel.1 dst {there}\n")
            });
            node.tool("bridge", &["-batch", "-"], &entries.collect::<String>())?;
        }
        Ok(())
    }

    fn device(self, number: u8) -> String {
        let (name, how) = match self {
            Self::Native => return String::new(),
            Self::Vxlan => (
                "flannel.1",
                format!(
                    "address {} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning",
                    hardware(number),
                    address::node(number).v4
                ),
            ),
            // Packets are sent where their route says.
            Self::Tunnel => ("tunnel", "type vxlan dstport 4790 gpe external".to_owned()),
        };
        let Addresses { v4, v6 } = self.address(number);
        format!(
            "link add {name} mtu {TUNNEL_MTU} {how}\n\
             link set {name} addrgenmode none\n\
             link set {name} up\n\
             addr add {v4}/32 dev {name}\n\
             addr add {v6}/128 dev {name} nodad\n"
        )
    }

    fn way_to(self, other: u8, lines: &mut String) -> Result<()> {
        let [pods_v4, pods_v6] = address::pod_networks(other);
        let Addresses { v4, v6 } = self.address(other);
        match self {
            Self::Native => writeln!(lines, "route add {pods_v4} via {v4}\nroute add {pods_v6} via {v6}")?,
            Self::Vxlan => {
                for (pods, via) in [(pods_v4, v4.to_string()), (pods_v6, v6.to_string())] {
                    let hardware = hardware(other);
                    writeln!(lines, "neigh add {via} lladdr {hardware} dev flannel.1 nud permanent")?;
                    writeln!(lines, "route add {pods} via {via} dev flannel.1 onlink")?;
                }
            }
            Self::Tunnel => {
                let there = address::node(other).v4;
                for pods in [pods_v4, pods_v6] {
                    writeln!(lines, "route add {pods} encap ip id 1 dst {there} ttl 64 dev tunnel")?;
                }
            }
        }
        Ok(())
    }
}

/// Hardware address of a node's `flannel.1`.
fn hardware(node: u8) -> String {
    format!("0e:00:00:00:00:{node:02x}")
}
