//! From objects to frontends: model, planner, manifests and the `plan` command. Tests cite behaviour.md by number.

#![expect(clippy::needless_pass_by_value, reason = "calls read better with a json! in place")]

mod affinity;
mod changes;
mod claims;
mod command;
mod endpoints;
mod frontends;
mod manifests;
mod masquerade;
mod node;
mod properties;
mod services;
mod slices;
mod sources;
mod world;
