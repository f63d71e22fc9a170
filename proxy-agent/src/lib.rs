//! The node agent as a library: `source -> model -> plan -> dataplane`, and the command line over it.
//!
//! Data flows one way; no room knows the one before it. See ARCHITECTURE.md.

pub mod agent;
pub mod cli;
pub mod config;
pub mod dataplane;
pub mod events;
pub mod health;
mod http;
pub mod inquiry;
pub mod metrics;
pub mod model;
pub mod plan;
pub mod source;
pub mod surfaces;
