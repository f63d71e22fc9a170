//! The dataplane's own work: looking for old flows, removing those to endpoints that serve no more (kube-proxy's
//! `conntrack_reconciler`, behaviour.md 8.8), writes that were refused, and comparing the tables with the plan.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::sync::{Histograms, OfFamily, of_family, sync_durations};
use crate::{dataplane::observer::Observer, model};

/// Handles of the metrics of what the dataplane does; clones share them.
#[derive(Clone, Debug)]
pub struct WorkMetrics {
    rounds: Histogram,
    failed_rounds: Counter,
    removed: Counter,
    purges: Histograms,
    purged: Family<OfFamily, Counter>,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    comparisons: Histogram,
}

/// From a millisecond to a minute: a look at a full table of two million entries takes seconds.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Default for WorkMetrics {
    fn default() -> Self {
        Self {
            rounds: durations(),
            failed_rounds: Counter::default(),
            removed: Counter::default(),
            purges: sync_durations(),
            purged: Family::default(),
            refused: Family::default(),
            comparisons: durations(),
        }
    }
}

impl WorkMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let kube_proxy = registry.sub_registry_with_prefix("kubeproxy");
        let help = "How long it took to remove UDP flows to endpoints that serve no more";
        kube_proxy.register("conntrack_reconciler_sync_duration_seconds", help, self.purges.clone());
        let help = "Entries of UDP flows to endpoints that serve no more, removed";
        kube_proxy.register("conntrack_reconciler_deleted_entries", help, self.purged.clone());
        let own = registry.sub_registry_with_prefix("proxy_agent");
        let help = "How long a round for old flows took";
        own.register("collector_round_duration_seconds", help, self.rounds.clone());
        let help = "Rounds for old flows that failed";
        own.register("collector_failed_rounds", help, self.failed_rounds.clone());
        let help = "Entries of flows that rounds removed since their time was over";
        own.register("collector_removed_entries", help, self.removed.clone());
        let help = "Writes of the agent that a table refused";
        own.register("table_refused_writes", help, self.refused.clone());
        let help = "How long it took to compare the tables with the plan";
        own.register("reconcile_duration_seconds", help, self.comparisons.clone());
    }
}

impl Observer for WorkMetrics {
    fn write_refused(&self, table: &'static str) {
        self.refused.get_or_create(&[("table", table)]).inc();
    }

    fn collected(&self, took: Duration, removed: Option<u64>) {
        match removed {
            Some(removed) => {
                self.rounds.observe(took.as_secs_f64());
                self.removed.inc_by(removed);
            }
            None => _ = self.failed_rounds.inc(),
        }
    }

    fn purged(&self, family: model::Family, took: Duration, removed: u64) {
        let family = of_family(family);
        self.purges.get_or_create(&family).observe(took.as_secs_f64());
        self.purged.get_or_create(&family).inc_by(removed);
    }

    fn compared(&self, took: Duration) {
        self.comparisons.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text;

    /// behaviour.md 8.8: kube-proxy's names for what is done about flows, with the family; and the work that it has not.
    #[test]
    fn rule_8_8_the_dataplanes_work_is_told() {
        let work = WorkMetrics::default();
        work.collected(Duration::from_millis(30), Some(4));
        work.collected(Duration::from_millis(30), None);
        work.purged(model::Family::V6, Duration::from_millis(3), 2);
        work.write_refused("slots_v4");
        work.compared(Duration::from_millis(3));
        let mut registry = Registry::default();
        work.register(&mut registry);
        let text = text::encode(&registry).unwrap();
        for line in [
            r#"kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{le="0.004",ip_family="IPv6"} 1"#,
            r#"kubeproxy_conntrack_reconciler_sync_duration_seconds_bucket{le="16.384",ip_family="IPv6"} 1"#,
            r#"kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv6"} 2"#,
            "# TYPE kubeproxy_conntrack_reconciler_deleted_entries_total counter",
            "proxy_agent_collector_round_duration_seconds_count 1",
            "proxy_agent_collector_failed_rounds_total 1",
            "proxy_agent_collector_removed_entries_total 4",
            r#"proxy_agent_table_refused_writes_total{table="slots_v4"} 1"#,
            "proxy_agent_reconcile_duration_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
