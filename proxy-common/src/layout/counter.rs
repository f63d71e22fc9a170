//! Tables `reason_counts` (by `datapath::Reason`) and `service_counts` (by service id), per CPU; `refusals` (by both); and
//! `endpoint_counts`, which forgets whose traffic is longest ago.

use super::{AddressBytes, added, plain};

/// Packets that met one reason.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Counter {
    /// Packets
    pub packets: u64,
    /// Bytes from the network header on
    pub bytes: u64,
}

/// Traffic of one service port, or of one of its endpoints.
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

/// Key of the traffic of one endpoint of a service port.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// Id of the service port
    pub service: u32,
    /// Address as one of IPv6, network byte order
    pub address: [u8; 16],
    /// Port, host byte order
    pub port: u16,
    /// Always 0
    pub reserved: u16,
}

impl EndpointKey {
    /// Key of an endpoint of a service port; port in host byte order.
    #[inline(always)]
    pub fn new<A: AddressBytes>(service: u32, address: &A, port: u16) -> Self {
        Self {
            service,
            address: address.mapped(),
            port,
            reserved: 0,
        }
    }
}

plain! {
    RefusalKey = 8;
    EndpointKey = 24;
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
