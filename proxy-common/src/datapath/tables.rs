//! What the datapath needs of the world: tables, clock, chance.

use super::Reason;
use crate::layout::{Backend, FlowKey, FlowValue, ServiceKey, ServiceValue, SlotKey, Timeouts};

/// Whether an insert may replace an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertMode {
    /// Only if there is none: the insert is a reservation
    New,
    /// In any case
    Any,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is one, and [`InsertMode::New`] was asked for
    Exists,
    /// The table is full, or the kernel has no memory for the entry
    Full,
}

/// An entry of the flow table, shared with other CPUs: reads may be a moment old, writes race harmlessly.
pub trait FlowHandle<A> {
    /// The entry as it is now.
    fn value(&self) -> FlowValue<A>;
    /// Sets [`FlowValue::last_seen`] and [`FlowValue::history`].
    fn touch(&self, last_seen: u32, history: u8);
    /// Sets [`FlowValue::flags`].
    fn set_flags(&self, flags: u8);
}

/// The tables of one address family.
pub trait Tables<A> {
    /// An entry of the flow table
    type Flow: FlowHandle<A>;

    /// `false` if the address is certainly no frontend's and none of the node's own.
    fn may_be_frontend(&self, address: &A) -> bool;
    /// `false` if the address is certainly no backend's.
    fn may_be_backend(&self, address: &A) -> bool;
    /// Looks a frontend up.
    fn service(&self, key: &ServiceKey<A>) -> Option<ServiceValue>;
    /// Looks an endpoint up.
    fn slot(&self, key: &SlotKey) -> Option<Backend<A>>;
    /// Looks half a flow up.
    fn flow(&self, key: &FlowKey<A>) -> Option<Self::Flow>;
    /// Inserts half a flow.
    fn insert_flow(&self, key: &FlowKey<A>, value: &FlowValue<A>, mode: InsertMode) -> Result<(), InsertError>;
    /// Removes half a flow, if it is there.
    fn remove_flow(&self, key: &FlowKey<A>);
    /// The masquerade address of a device, by interface index.
    fn masquerade_address(&self, device: u32) -> Option<A>;
    /// Counts a packet by reason; bytes from the network header on.
    fn count(&self, reason: Reason, bytes: u32);
    /// Counts a rewritten packet, and with it new flows, by service id; bytes from the network header on.
    fn count_service(&self, service: u32, connections: u32, bytes: u32);
}

/// Clock, chance and place.
pub trait Environment {
    /// Now, in ticks ([`crate::layout::TICK_SHIFT`]).
    fn now(&self) -> u32;
    /// A random number, uniform over all of `u32`.
    fn random(&self) -> u32;
    /// Interface index of the edge.
    fn device(&self) -> u32;
    /// Flow timeouts.
    fn timeouts(&self) -> Timeouts;
}
