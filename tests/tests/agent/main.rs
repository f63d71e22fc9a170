//! The real agent, as a process on a node of the lab: what it takes in, from the test API server or from files, against
//! the pinned tables and the answers to real requests.

mod cluster;
mod events;
mod health;
mod http;
mod input;
mod listing;
mod log;
mod metrics;
mod permissions;
mod restart;
mod secure;
mod services;
mod start;
mod tables;
mod trouble;
mod uplink;
