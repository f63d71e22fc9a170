//! Tables `reason_counts` (by `datapath::Reason`) and `service_counts` (by service id), per CPU; `refusals` (by both).

use super::{added, plain};

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
    /// See [`super::added`]
    #[cfg(feature = "other-layout")]
    pub added: u64,
    /// New flows
    pub connections: u64,
    /// Packets rewritten, both directions
    pub packets: u64,
    /// Bytes rewritten, from the network header on, both directions
    pub bytes: u64,
}

/// Key of the packets that one service port refused for one reason.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RefusalKey {
    /// Id of the service port
    pub service: u32,
    /// Number of the `datapath::Reason`
    pub reason: u32,
}

plain! {
    RefusalKey = 8;
    Counter = 16;
    ServiceCounter = 24 + added(8);
}

impl core::iter::Sum for Counter {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |sum, counter| Self {
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        })
    }
}

impl core::iter::Sum for ServiceCounter {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |sum, counter| Self {
            #[cfg(feature = "other-layout")]
            added: 0,
            connections: sum.connections + counter.connections,
            packets: sum.packets + counter.packets,
            bytes: sum.bytes + counter.bytes,
        })
    }
}
