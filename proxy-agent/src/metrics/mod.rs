//! Metrics: kube-proxy's where they mean something in any mode, under its names (behaviour.md 8.8), and this proxy's own.
//!
//! A scrape reads the pinned tables itself, on a thread of its own; of the agent's loop it needs what only the loop knows
//! ([`SyncMetrics`]), which costs that some atomic additions.

mod encode;
mod page;
mod process;
mod sync;
mod tables;

use std::fmt;

use prometheus_client::{encoding::text, metrics::gauge::ConstGauge, registry::Registry};
use serde_json::Value;

use self::{process::ProcessCollector, tables::TablesCollector};
use crate::dataplane::pin::PinDirectory;

pub use page::serve;
pub use sync::SyncMetrics;
pub use tables::ServiceMetrics;

/// All metrics, and what is told beside them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    configz: Value,
}

impl Metrics {
    /// Metrics of the tables pinned at `pin`, and what `sync` notes. `configz` is the configuration in use.
    pub fn new(pin: PinDirectory, services: ServiceMetrics, sync: &SyncMetrics, configz: Value) -> Self {
        let mut registry = Registry::default();
        let build = [
            ("major", env!("CARGO_PKG_VERSION_MAJOR")),
            ("minor", env!("CARGO_PKG_VERSION_MINOR")),
            ("git_version", concat!("v", env!("CARGO_PKG_VERSION"))),
            ("compiler", "rustc"),
            ("platform", PLATFORM),
        ];
        registry
            .sub_registry_with_labels(build.map(|(name, value)| (name.into(), value.into())).into_iter())
            .register(
                "kubernetes_build_info",
                "What this proxy was built from",
                ConstGauge::new(1),
            );
        registry.register_collector(Box::new(ProcessCollector));
        sync.register(&mut registry);
        registry.register_collector(Box::new(TablesCollector { pin, services }));
        Self { registry, configz }
    }

    /// All of them, as they are now, in the OpenMetrics text format. Takes as long as the tables are large.
    ///
    /// # Errors
    /// Never in practice: a `String` takes everything.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// As Go names it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};
