//! The node's view of Services, EndpointSlices and its Node, and which Services changed. Knows no BPF.
//!
//! Objects are parsed once, by the source that has them ([`Kind::read`]); a field that can't be read becomes a [`Problem`] and the rest of the
//! object counts. What the objects mean for this node is [`crate::plan`]'s business.

mod address;
mod node;
mod object;
mod protocol;
mod reading;
mod selection;
mod service;
mod service_range;
mod slice;
mod tracking;
mod trigger;

pub use address::{parse_ip, parse_range};
pub use node::Node;
pub use object::{ObjectName, Problem};
pub use protocol::{Family, Protocol};
pub use reading::{Kind, Reading};
pub use service::{Port, Service};
pub use slice::{Conditions, Endpoint, NodeHint, OwnedSlice, Slice, SlicePort};
pub use tracking::{Changes, Model, ServiceView};
