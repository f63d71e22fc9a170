//! The places where programs run.

use aya::programs::{LinkOrder, TcAttachType};

use super::edge::Framing;

/// A place in a device's packet path where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hook {
    /// Packets that come from the device
    Ingress,
    /// Packets that leave through the device
    Egress,
}

impl Hook {
    /// Both hooks, in the order of attaching: a client whose packets are rewritten must get its replies rewritten, too.
    pub(super) const ALL: [Self; 2] = [Self::Egress, Self::Ingress];

    /// Name of the hook, and of its program for devices with Ethernet headers.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// Name of the program for a device whose packets begin so; `None` if there is none.
    pub(super) const fn program(self, framing: Framing) -> Option<&'static str> {
        match (self, framing) {
            (_, Framing::Ethernet) => Some(self.name()),
            (Self::Ingress, Framing::Bare) => Some("ingress_l3"),
            (Self::Egress, Framing::Bare) => Some("egress_l3"),
            (_, Framing::Unknown) => None,
        }
    }

    /// The hook in aya's words.
    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Ingress => TcAttachType::Ingress,
            Self::Egress => TcAttachType::Egress,
        }
    }

    /// At ingress last, at egress first: programs of a CNI see the virtual addresses, as they did under kube-proxy.
    pub(super) fn order(self) -> LinkOrder {
        match self {
            Self::Ingress => LinkOrder::last(),
            Self::Egress => LinkOrder::first(),
        }
    }

    /// The same order among clsact filters, where the lowest priority runs first. Fixed, so that replacing is idempotent.
    pub(super) const fn filter_priority(self) -> u16 {
        match self {
            Self::Ingress => 60_000,
            Self::Egress => 1,
        }
    }
}

/// A program of the object, by what it is for: each generation's has the same name, or that of its heir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// Name of the program
    pub(super) name: &'static str,
    /// The list of programs in which its heir looks for the previous generation's
    pub(super) list: &'static str,
    /// Where in that
    pub(super) index: u32,
}

impl Place {
    /// Every program. Frozen: other versions look for them by these names.
    pub(super) const ALL: [Self; 5] = [
        Self::new("ingress", "previous_tc", 0),
        Self::new("egress", "previous_tc", 1),
        Self::new("ingress_l3", "previous_tc", 2),
        Self::new("egress_l3", "previous_tc", 3),
        Self::new("forward", "previous_xdp", 0),
    ];

    const fn new(name: &'static str, list: &'static str, index: u32) -> Self {
        Self { name, list, index }
    }
}

/// What the names of programs end with that look for flows of a previous generation.
pub(super) const HEIR: &str = "_heir";
