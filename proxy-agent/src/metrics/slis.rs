//! `/metrics/slis`: how often this server's own `/healthz` was asked, under the names that every component of Kubernetes has
//! there (`k8s.io/component-base/metrics/prometheus/slis`).

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The only check that there is: that the process answers.
const CHECK: [(&str, &str); 2] = [("name", "ping"), ("type", "healthz")];

/// What was found by health checks of this server.
#[derive(Debug)]
pub(super) struct HealthChecks {
    pub(super) registry: Registry,
    last: Family<[(&'static str, &'static str); 2], Gauge>,
    all: Family<[(&'static str, &'static str); 3], Counter>,
}

impl Default for HealthChecks {
    fn default() -> Self {
        let (mut registry, last, all) = (Registry::default(), Family::default(), Family::default());
        let kubernetes = registry.sub_registry_with_prefix("kubernetes");
        kubernetes.register(
            "healthcheck",
            "Whether a health check succeeded last",
            Family::clone(&last),
        );
        kubernetes.register("healthchecks", "Health checks by result", Family::clone(&all));
        Self { registry, last, all }
    }
}

impl HealthChecks {
    /// `/healthz` was answered.
    pub(super) fn answered(&self) {
        let [name, kind] = CHECK;
        self.last.get_or_create(&CHECK).set(1);
        self.all.get_or_create(&[name, ("status", "success"), kind]).inc();
    }
}
