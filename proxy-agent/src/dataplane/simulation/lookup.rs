//! What the datapath asked of the tables while it decided: the only account of its decisions that can't differ from them.

use proxy_common::{
    datapath::InsertError,
    layout::{AffinityValue, Backend, FlowKey, ServiceKey, ServiceValue},
};

/// One question that the datapath asked of the tables, with their answer.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<A> {
    /// Whether this may be the address of a frontend, or one of the node's own
    FrontendFilter(A, bool),
    /// Whether this may be the address of an endpoint
    BackendFilter(A, bool),
    /// Whether the address is in a ServiceCIDR
    ServiceRange(A, bool),
    /// Bits of [`proxy_common::layout::address_flags`] of an address; 0 if it isn't the node's own
    OwnAddress(A, u32),
    /// A frontend
    Frontend(ServiceKey<A>, Option<ServiceValue>),
    /// Whether a range of this service id holds the address
    Source(u32, A, bool),
    /// The endpoint that a client used last
    Remembered(A, Option<AffinityValue<A>>),
    /// The endpoint at this place of a set
    Endpoint(u32, Option<Backend<A>>),
    /// Whether a flow with this key is known
    Flow(FlowKey<A>, bool),
    /// A new entry with this key
    Opened(FlowKey<A>, Result<(), InsertError>),
}
