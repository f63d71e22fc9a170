//! Pure functions from the model to what this node must serve (behaviour.md 1-6). No BPF, no async, no clock.
//!
//! [`frontends`](frontends()) lists a Service's frontends, [`endpoints`] chooses whom they lead to, [`Claims`] settles
//! who serves an address that two Services ask for, and [`Planner`] does it all for the Services that changed.
//! [`NodePlan`] is what all frontends of the node share.

mod claims;
mod context;
pub mod endpoints;
mod frontend;
mod frontends;
mod node;
mod planner;

pub use claims::{Claim, Claims, Vip};
pub use context::PlanContext;
pub use frontend::{Frontend, Kind, Masquerade, ServicePort, TrafficPolicy};
pub use frontends::{claims_of, frontends};
pub use node::{LocalSources, NodePlan};
pub use planner::{Planner, Update};

pub use crate::model::{Family, Protocol};
