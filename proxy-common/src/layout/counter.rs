//! Tables `reason_counts` (by `datapath::Reason`) and `service_counts` (by service id), per CPU.

use super::plain;

/// Packets that met one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Counter {
    /// Packets
    pub packets: u64,
    /// Bytes from the network header on
    pub bytes: u64,
}

/// Traffic of one service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct ServiceCounter {
    /// New flows
    pub connections: u64,
    /// Packets rewritten, both directions
    pub packets: u64,
    /// Bytes rewritten, from the network header on, both directions
    pub bytes: u64,
}

plain! {
    Counter = 16;
    ServiceCounter = 24;
}
