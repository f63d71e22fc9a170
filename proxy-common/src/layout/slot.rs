//! Tables `slots_v4` and `slots_v6`: the endpoint sets.

use super::plain;

/// Key of one endpoint in a set.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotKey {
    /// Id of the set, never reused while the table lives
    pub set: u32,
    /// Position, 0 up to the count that the service entry names
    pub index: u32,
}

/// An endpoint that traffic is sent to.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Backend<A> {
    /// Address, network byte order
    pub address: A,
    /// Port, host byte order
    pub port: u16,
    /// Always 0
    pub reserved: u16,
}

plain! {
    SlotKey = 8;
    Backend<[u8; 4]> = 8;
    Backend<[u8; 16]> = 20;
}
