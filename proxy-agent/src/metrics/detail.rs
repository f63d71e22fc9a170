//! How much is told by Service and endpoint: each of them costs time series.

use clap::ValueEnum;

/// Whether something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Told {
    /// Not at all
    Off,
    /// For each, up to the limit
    On,
}

/// What is told one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Of each service port
    pub services: Told,
    /// Of each endpoint of the service ports that are told; the programs count by endpoint, too, then
    pub endpoints: Told,
    /// How many service ports, and how many endpoints, are told at most
    pub limit: usize,
}

impl Default for Detail {
    fn default() -> Self {
        Self {
            services: Told::On,
            endpoints: Told::Off,
            limit: 1000,
        }
    }
}
