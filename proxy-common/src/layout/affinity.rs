//! Tables `affinity_*`, which endpoint a client used last, and `members_*`, which endpoints may still be used so
//! (behaviour.md 6).

use super::{AddressBytes, plain};

/// Key of a client's affinity to a service port. A frontend with policy Local and one with policy Cluster remember apart,
/// as each has its own endpoints, but each takes the other's choice where it may (behaviour.md 6.1, 6.4).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    /// Id of the service port
    pub service: u32,
    /// [`CLUSTER_LIST`] or [`LOCAL_LIST`]
    pub list: u32,
    /// Address of the client, network byte order
    pub client: A,
}

/// [`AffinityKey::list`]: chosen from the endpoints of policy Cluster
pub const CLUSTER_LIST: u32 = 0;
/// [`AffinityKey::list`]: chosen from the endpoints of policy Local
pub const LOCAL_LIST: u32 = 1;

/// The endpoint that a client used last.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct AffinityValue<A> {
    /// Address of the endpoint, network byte order
    pub address: A,
    /// Port of the endpoint, host byte order
    pub port: u16,
    /// Always 0
    pub reserved: u16,
    /// Tick (see [`super::TICK_SHIFT`]) of the client's last new connection
    pub last_used: u32,
}

/// Key of an endpoint in a set of a service port with affinity.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MemberKey<A> {
    /// Id of the set, as in `slots_*`
    pub set: u32,
    /// Port of the endpoint, host byte order
    pub port: u16,
    /// Always 0
    pub reserved: u16,
    /// Address of the endpoint, network byte order
    pub address: A,
}

impl<A: AddressBytes> MemberKey<A> {
    /// Key of an endpoint in a set; port in host byte order.
    pub const fn new(set: u32, address: A, port: u16) -> Self {
        Self {
            set,
            port,
            reserved: 0,
            address,
        }
    }
}

/// An endpoint that affinity may lead to.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Member {
    /// Tick (see [`super::TICK_SHIFT`]) since which the service port has had it without a break: what clients did before is
    /// forgotten (behaviour.md 6.4)
    pub since: u32,
}

plain! {
    AffinityKey<[u8; 4]> = 12;
    AffinityKey<[u8; 16]> = 24;
    AffinityValue<[u8; 4]> = 12;
    AffinityValue<[u8; 16]> = 24;
    MemberKey<[u8; 4]> = 12;
    MemberKey<[u8; 16]> = 24;
    Member = 4;
}
