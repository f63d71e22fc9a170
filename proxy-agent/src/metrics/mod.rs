//! Metrics: kube-proxy's where they mean something in any mode, under its names (behaviour.md 8.8), and this proxy's own.
//!
//! A scrape reads the pinned tables itself, on a thread of its own; of the agent's loop it needs what only the loop knows
//! ([`SyncMetrics`]), which costs that some atomic additions.

mod detail;
mod encode;
#[cfg(test)]
mod monitoring;
mod page;
mod process;
mod programs;
mod services;
mod slis;
mod sync;
mod tables;
mod text;
mod work;
mod zpages;

use std::{collections::BTreeMap, fmt};

use prometheus_client::{metrics::gauge::ConstGauge, registry::Registry};
use serde_json::Value;

use self::{process::ProcessCollector, programs::ProgramsCollector, tables::TablesCollector, zpages::ZPages};
use crate::dataplane::pin::PinDirectory;

pub use detail::{Detail, Told};
pub use page::serve;
pub use sync::{SyncMetrics, Written};
pub use work::WorkMetrics;

/// All metrics, and what is told beside them.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    configz: Value,
    zpages: ZPages,
}

impl Metrics {
    /// Metrics of the tables pinned at `pin`, and what `sync` and `work` note. `configz` is the configuration in use, `flags` are those that
    /// the process was started with, by name.
    pub fn new(
        pin: PinDirectory,
        detail: Detail,
        (sync, work): (&SyncMetrics, &WorkMetrics),
        configz: Value,
        flags: BTreeMap<String, String>,
    ) -> Self {
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
        work.register(&mut registry);
        registry.register_collector(Box::new(ProgramsCollector { pin: pin.clone() }));
        registry.register_collector(Box::new(TablesCollector { pin, detail }));
        Self {
            registry,
            configz,
            zpages: ZPages::new(flags),
        }
    }

    /// All of them, as they are now, in Prometheus' text format. Takes as long as the tables are large.
    ///
    /// # Errors
    /// Never in practice: a `String` takes everything.
    pub fn text(&self) -> Result<String, fmt::Error> {
        text::encode(&self.registry)
    }
}

/// As Go names it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/amd64"
};
