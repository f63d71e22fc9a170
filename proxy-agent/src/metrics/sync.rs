//! What only the agent's loop knows: when it wrote what, and how long that took (behaviour.md 8.8, 9.8, 9.9).

use std::time::{Duration, SystemTime};

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets, linear_buckets},
    },
    registry::Registry,
};

use crate::model;

/// `ip_family`, as kube-proxy writes it.
pub(super) type OfFamily = [(&'static str, &'static str); 1];
/// `code`, the HTTP status of an answer.
type OfCode = [(&'static str, u16); 1];
type Seconds = Gauge<f64, std::sync::atomic::AtomicU64>;
/// A histogram of each family.
pub(super) type Histograms = Family<OfFamily, Histogram, fn() -> Histogram>;

/// How much was written at once (behaviour.md 9.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// What follows from all Services
    All,
    /// What follows from those that changed
    Changed,
}

/// Handles of the metrics that the agent's loop changes; clones share them.
#[derive(Clone, Debug)]
pub struct SyncMetrics {
    duration: Histograms,
    full_duration: Histograms,
    partial_duration: Histograms,
    network_programming: Histograms,
    endpoint_changes: Counter,
    service_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes_pending: Gauge,
    last: Family<OfFamily, Seconds>,
    last_queued: Family<OfFamily, Seconds>,
    healthz: Family<OfCode, Counter>,
    livez: Family<OfCode, Counter>,
    problems: Gauge,
    reconciled: Counter,
}

impl Default for SyncMetrics {
    fn default() -> Self {
        Self {
            duration: sync_durations(),
            full_duration: sync_durations(),
            partial_duration: sync_durations(),
            network_programming: Family::new_with_constructor(|| Histogram::new(network_programming_buckets())),
            endpoint_changes: Counter::default(),
            service_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes_pending: Gauge::default(),
            last: Family::default(),
            last_queued: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            problems: Gauge::default(),
            reconciled: Counter::default(),
        }
    }
}

/// Histograms with the buckets that kube-proxy has for all that it writes.
pub(super) fn sync_durations() -> Histograms {
    Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15)))
}

/// kube-proxy's, with the 0 in front that it has by mistake: dashboards compare buckets by name.
fn network_programming_buckets() -> impl Iterator<Item = f64> {
    [0.0, 0.25, 0.5]
        .into_iter()
        .chain(linear_buckets(1.0, 1.0, 59))
        .chain(linear_buckets(60.0, 5.0, 12))
        .chain(linear_buckets(120.0, 30.0, 7))
}

pub(super) const fn of_family(family: model::Family) -> OfFamily {
    [(
        "ip_family",
        match family {
            model::Family::V4 => "IPv4",
            model::Family::V6 => "IPv6",
        },
    )]
}

fn since_epoch() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

impl SyncMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let kube_proxy = registry.sub_registry_with_prefix("kubeproxy");
        let help = "How long it took to write what changed";
        kube_proxy.register("sync_proxy_rules_duration_seconds", help, self.duration.clone());
        let help = "How long it took to write all Services";
        kube_proxy.register(
            "sync_full_proxy_rules_duration_seconds",
            help,
            self.full_duration.clone(),
        );
        let help = "How long it took to write those Services that changed";
        kube_proxy.register(
            "sync_partial_proxy_rules_duration_seconds",
            help,
            self.partial_duration.clone(),
        );
        let help = "How long after a change in the cluster it was written here";
        kube_proxy.register(
            "network_programming_duration_seconds",
            help,
            self.network_programming.clone(),
        );
        let help = "Changes of EndpointSlices";
        kube_proxy.register("sync_proxy_rules_endpoint_changes", help, self.endpoint_changes.clone());
        let help = "Changes of EndpointSlices that are not written yet";
        kube_proxy.register(
            "sync_proxy_rules_endpoint_changes_pending",
            help,
            self.endpoint_changes_pending.clone(),
        );
        let help = "Changes of Services";
        kube_proxy.register("sync_proxy_rules_service_changes", help, self.service_changes.clone());
        let help = "Changes of Services that are not written yet";
        kube_proxy.register(
            "sync_proxy_rules_service_changes_pending",
            help,
            self.service_changes_pending.clone(),
        );
        let help = "When all that was known had been written last, since the epoch";
        kube_proxy.register("sync_proxy_rules_last_timestamp_seconds", help, self.last.clone());
        let help = "When something last came that had to be written, since the epoch";
        kube_proxy.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            help,
            self.last_queued.clone(),
        );
        let help = "Answers of /healthz";
        kube_proxy.register("proxy_healthz", help, self.healthz.clone());
        let help = "Answers of /livez";
        kube_proxy.register("proxy_livez", help, self.livez.clone());
        let help = "Entries that something else had changed, and that were made good";
        registry.register("proxy_agent_reconciled_entries", help, self.reconciled.clone());
        let help = "What is not as it should be now, as the log says";
        registry.register("proxy_agent_problems", help, self.problems.clone());
    }

    /// Services changed, or were told for the first time.
    pub fn services_changed(&self, count: usize) {
        self.service_changes.inc_by(count as u64);
        self.service_changes_pending.inc_by(to_gauge(count));
        self.queued();
    }

    /// EndpointSlices changed, or were told for the first time.
    pub fn endpoints_changed(&self, count: usize) {
        self.endpoint_changes.inc_by(count as u64);
        self.endpoint_changes_pending.inc_by(to_gauge(count));
        self.queued();
    }

    fn queued(&self) {
        let now = since_epoch();
        for family in model::Family::ALL {
            self.last_queued.get_or_create(&of_family(family)).set(now);
        }
    }

    /// What has changed is about to be written (behaviour.md 9.9).
    pub fn taken(&self) {
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
    }

    /// The tables were written, which took this long.
    pub fn written(&self, written: Written, took: Duration) {
        let of_kind = match written {
            Written::All => &self.full_duration,
            Written::Changed => &self.partial_duration,
        };
        for family in model::Family::ALL {
            for durations in [&self.duration, of_kind] {
                durations.get_or_create(&of_family(family)).observe(took.as_secs_f64());
            }
        }
    }

    /// All that is known is in the tables; nothing had to be left out.
    pub fn complete(&self) {
        let now = since_epoch();
        for family in model::Family::ALL {
            self.last.get_or_create(&of_family(family)).set(now);
        }
    }

    /// A change of endpoints that was made in the cluster this long ago is now written (behaviour.md 9.8).
    pub fn programmed(&self, family: model::Family, took: Duration) {
        self.network_programming
            .get_or_create(&of_family(family))
            .observe(took.as_secs_f64());
    }

    /// `/healthz` was answered.
    pub fn healthz_answered(&self, code: u16) {
        self.healthz.get_or_create(&[("code", code)]).inc();
    }

    /// `/livez` was answered.
    pub fn livez_answered(&self, code: u16) {
        self.livez.get_or_create(&[("code", code)]).inc();
    }

    /// So many entries have been made good, since this process began.
    pub fn set_reconciled(&self, entries: u64) {
        self.reconciled.inc_by(entries.saturating_sub(self.reconciled.get()));
    }

    /// This many things are not as they should be now.
    pub fn set_problems(&self, count: usize) {
        self.problems.set(to_gauge(count));
    }
}

fn to_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text;

    fn scrape(metrics: &SyncMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        text::encode(&registry).expect("a string takes everything")
    }

    /// The `le` labels of a histogram of IPv4.
    fn buckets(text: &str, name: &str) -> Vec<String> {
        let prefix = format!("{name}_bucket{{le=\"");
        let of_family = text.lines().filter(|line| line.contains("IPv4"));
        let bounds = of_family.filter_map(|line| line.strip_prefix(&prefix)?.split('"').next());
        bounds.map(str::to_owned).collect()
    }

    /// behaviour.md 8.8: the buckets that dashboards know.
    #[test]
    fn rule_8_8_buckets_are_those_of_kube_proxy() {
        let metrics = SyncMetrics::default();
        metrics.written(Written::All, Duration::from_millis(3));
        metrics.programmed(model::Family::V4, Duration::from_millis(300));
        let text = scrape(&metrics);
        for kind in ["", "full_"] {
            let sync = buckets(&text, &format!("kubeproxy_sync_{kind}proxy_rules_duration_seconds"));
            assert_eq!(sync.len(), 16, "{text}");
            assert_eq!(
                (sync[0].as_str(), sync[14].as_str(), sync[15].as_str()),
                ("0.001", "16.384", "+Inf")
            );
        }
        let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds";
        assert_eq!(buckets(&text, partial), [""; 0], "nothing was written so");
        metrics.written(Written::Changed, Duration::from_millis(3));
        assert_eq!(buckets(&scrape(&metrics), partial).len(), 16);
        let programming = buckets(&text, "kubeproxy_network_programming_duration_seconds");
        assert_eq!(programming.len(), 3 + 59 + 12 + 7 + 1);
        assert_eq!(programming[..5], ["0", "0.25", "0.5", "1", "2"]);
        assert_eq!(programming[programming.len() - 2..], ["300", "+Inf"]);
        let observed = "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"} 1";
        assert!(text.contains(observed), "{text}");
    }

    /// behaviour.md 9.9: pending changes end when they are taken, not when they are written; a failure moves no timestamp.
    #[test]
    fn rule_9_9_changes_are_pending_until_taken() {
        let metrics = SyncMetrics::default();
        metrics.services_changed(2);
        metrics.endpoints_changed(3);
        metrics.endpoints_changed(1);
        let text = scrape(&metrics);
        let has = |text: &str, line: &str| assert!(text.lines().any(|found| found == line), "{line}: {text}");
        has(&text, "kubeproxy_sync_proxy_rules_service_changes_pending 2");
        has(&text, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 4");
        assert!(text.contains("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv6\"} "));
        metrics.taken();
        metrics.written(Written::Changed, Duration::from_millis(1));
        let text = scrape(&metrics);
        has(&text, "kubeproxy_sync_proxy_rules_service_changes_pending 0");
        has(&text, "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0");
        has(&text, "kubeproxy_sync_proxy_rules_service_changes_total 2");
        has(&text, "kubeproxy_sync_proxy_rules_endpoint_changes_total 4");
        let succeeded = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{";
        assert!(!text.contains(succeeded), "{text}");
        metrics.complete();
        assert!(scrape(&metrics).contains(succeeded));
    }
}
