//! What kubelets and load balancers ask: whether the proxy keeps up, and whether this node should get traffic
//! (behaviour.md 8.1-8.6).

mod page;
mod proxy;
mod service;

pub use page::{Asked, serve};
pub use proxy::{Moment, ProxyHealth};
pub use service::{HealthCheck, HealthCheckPorts};
