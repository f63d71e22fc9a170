//! Table `devices`: the edges of the node, by interface index.

use super::plain;

/// Key of the host itself, which no interface has: its masquerade addresses are those that the kernel takes for packets of
/// the node's processes to other machines.
pub const HOST_DEVICE: u32 = 0;

/// What the datapath must know of an edge.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Device {
    /// IPv4 address that masqueraded packets leaving here get; all zero if none
    pub masquerade_v4: [u8; 4],
    /// IPv6 address that masqueraded packets leaving here get; all zero if none
    pub masquerade_v6: [u8; 16],
    /// One of [`role`]
    pub role: u32,
    /// [`device_flags`]
    pub flags: u32,
    /// Why it has its role: a number of the agent's own, for its listings
    pub reason: u32,
    /// Interface name, padded with zero bytes (`IFNAMSIZ`)
    pub name: [u8; 16],
}

/// Values of [`Device::role`].
pub mod role {
    /// The host side of a pod's interface
    pub const POD: u32 = 1;
    /// A way to other nodes and clients
    pub const UPLINK: u32 = 2;
    /// A tunnel to other nodes
    pub const OVERLAY: u32 = 3;
}

/// Bits of [`Device::flags`].
pub mod device_flags {
    /// What arrives here counts as sent by pods of this node (behaviour.md 5.8)
    pub const LOCAL_TRAFFIC: u32 = 1;
    /// Packets have no link-layer header
    pub const BARE: u32 = 2;
    /// The node is being taken over from kube-proxy: packets from the midst of a connection that no flow knows may be of one
    /// that conntrack translates, and are left to it
    pub const TAKING_OVER: u32 = 4;
    /// Of the entry [`super::HOST_DEVICE`]: sockets of pods are served, too
    pub const POD_SOCKETS: u32 = 8;
    /// All bits of an [`super::express`]
    pub const EXPRESS_MASK: u32 = 0xf << EXPRESS_SHIFT;
    /// Position of the [`super::express`]
    pub const EXPRESS_SHIFT: u32 = 8;
}

/// Whether XDP forwards packets that arrive at a device and those that leave there, in [`Device::flags`] at
/// [`device_flags::EXPRESS_SHIFT`]. Further numbers say why it doesn't, and are the agent's own.
pub mod express {
    /// Nobody asked for it
    pub const OFF: u32 = 0;
    /// The driver runs the program
    pub const NATIVE: u32 = 1;
    /// The stack runs the program before all else
    pub const GENERIC: u32 = 2;
}

plain! {
    Device = 48;
}
