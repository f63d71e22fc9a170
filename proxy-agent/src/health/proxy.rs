//! Whether the proxy keeps up with what changes, and whether load balancers should use this node (behaviour.md 8.4, 8.5).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::model::Family;

/// How Go writes the time of something that never happened; clients of kube-proxy know it.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// A moment, by the clock that never jumps and by the one that people read.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    steady: Instant,
    wall: Timestamp,
}

impl Moment {
    /// This moment.
    pub fn now() -> Self {
        Self {
            steady: Instant::now(),
            wall: Timestamp::now(),
        }
    }
}

/// The health of the proxy; clones share it.
#[derive(Clone, Debug)]
pub struct ProxyHealth(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// How long a change may wait to be written
    timeout: Duration,
    /// Of families that were written once
    updated: BTreeMap<Family, Moment>,
    /// Since when a change of the family waits
    queued: BTreeMap<Family, Instant>,
    is_eligible: bool,
}

impl State {
    /// A family that has never been written is healthy: the proxy starts.
    fn is_healthy(&self, family: Family, now: Moment) -> bool {
        let waits = self
            .queued
            .get(&family)
            .map(|since| now.steady.saturating_duration_since(*since));
        !self.updated.contains_key(&family) || waits.is_none_or(|waits| waits < self.timeout)
    }
}

/// What a page says, with the fields and in the order that kube-proxy has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    pub(super) healthy: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    status: BTreeMap<String, FamilyReport>,
    /// Whether the answer is 200
    #[serde(skip)]
    pub(super) is_good: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

/// With kube-proxy's default of 30 s.
impl Default for ProxyHealth {
    fn default() -> Self {
        Self::with_sync_period(Duration::from_secs(30))
    }
}

impl ProxyHealth {
    /// Nothing has come yet. A change may wait for two of these periods (behaviour.md 8.4).
    pub fn with_sync_period(sync_period: Duration) -> Self {
        Self(Arc::new(Mutex::new(State {
            timeout: sync_period.saturating_mul(2),
            updated: BTreeMap::new(),
            queued: BTreeMap::new(),
            is_eligible: false,
        })))
    }

    /// Something came that has to be written.
    pub fn queued(&self, family: Family, now: Moment) {
        self.lock().queued.entry(family).or_insert(now.steady);
    }

    /// All that came has been written.
    pub fn updated(&self, family: Family, now: Moment) {
        let mut state = self.lock();
        state.queued.remove(&family);
        state.updated.insert(family, now);
    }

    /// Whether load balancers may send to this node: it is known, isn't deleted, and is not about to be.
    pub fn set_eligible(&self, is_eligible: bool) {
        self.lock().is_eligible = is_eligible;
    }

    /// Whether load balancers may send to this node.
    pub fn is_eligible(&self) -> bool {
        self.lock().is_eligible
    }

    /// When all that came had last been written, if it ever was.
    pub fn last_updated(&self) -> Option<Timestamp> {
        self.lock().updated.values().map(|updated| updated.wall).max()
    }

    /// Whether no change has been waiting for too long, whatever the node is.
    pub fn is_healthy(&self, now: Moment) -> bool {
        let state = self.lock();
        Family::ALL.into_iter().all(|family| state.is_healthy(family, now))
    }

    /// What `/healthz` says, and without the node, `/livez`.
    pub(super) fn report(&self, with_node: bool, now: Moment) -> Report {
        let state = self.lock();
        let healthy = Family::ALL.into_iter().all(|family| state.is_healthy(family, now));
        let is_good = healthy && (!with_node || state.is_eligible);
        let of_family = |(&family, updated): (&Family, &Moment)| {
            let report = FamilyReport {
                last_updated: updated.wall.to_string(),
                healthy: state.is_healthy(family, now),
            };
            (family.to_string(), report)
        };
        let last = state.updated.values().map(|updated| updated.wall).max();
        let last_updated = if is_good { Some(now.wall) } else { last };
        Report {
            last_updated: last_updated.map_or_else(|| NEVER.to_owned(), |time| time.to_string()),
            current_time: now.wall.to_string(),
            node_eligible: with_node.then_some(state.is_eligible),
            healthy,
            status: state.updated.iter().map(of_family).collect(),
            is_good,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// This many seconds after some moment.
    fn at(base: Moment, seconds: u32) -> Moment {
        let after = Duration::from_secs(seconds.into());
        Moment {
            steady: base.steady + after,
            wall: base.wall + after,
        }
    }

    fn base() -> Moment {
        Moment {
            steady: Instant::now(),
            wall: "2026-01-02T03:04:00Z".parse().unwrap(),
        }
    }

    fn text(report: &Report) -> String {
        serde_json::to_string(report).unwrap()
    }

    /// behaviour.md 8.4: only a change that waits makes a proxy late, and only one that has worked before.
    #[test]
    fn rule_8_4_a_change_may_wait_for_60_seconds() {
        let (health, base) = (ProxyHealth::default(), base());
        assert!(health.is_healthy(at(base, 1000)), "it starts");
        health.queued(Family::V4, base);
        assert!(health.is_healthy(at(base, 1000)), "no family has reported yet");
        health.updated(Family::V4, at(base, 1));
        assert!(health.is_healthy(at(base, 1_000_000)), "nothing changes");
        health.queued(Family::V4, at(base, 10));
        health.queued(Family::V4, at(base, 60));
        assert!(health.is_healthy(at(base, 69)), "59 s");
        assert!(!health.is_healthy(at(base, 70)), "the oldest change counts");
        health.updated(Family::V6, at(base, 71));
        assert!(!health.is_healthy(at(base, 72)), "the other family is no help");
        health.updated(Family::V4, at(base, 73));
        assert!(health.is_healthy(at(base, 1000)));
    }

    /// behaviour.md 8.5: fields and their order, with and without the node.
    #[test]
    fn rule_8_5_bodies_are_those_of_kube_proxy() {
        let (health, base) = (ProxyHealth::default(), base());
        let report = health.report(true, base);
        assert!(!report.is_good, "the node is unknown");
        let never = r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-01-02T03:04:00Z","nodeEligible":false,"healthy":true}"#;
        assert_eq!(text(&report), never);

        health.set_eligible(true);
        for family in Family::ALL {
            health.updated(family, at(base, 1));
        }
        let report = health.report(true, at(base, 5));
        assert!(report.is_good);
        let good = r#"{"lastUpdated":"2026-01-02T03:04:05Z","currentTime":"2026-01-02T03:04:05Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:01Z","healthy":true},"IPv6":{"lastUpdated":"2026-01-02T03:04:01Z","healthy":true}}}"#;
        assert_eq!(text(&report), good);

        // The node is to go: its load balancers are told, its kubelet isn't.
        health.set_eligible(false);
        let (healthz, livez) = (health.report(true, at(base, 6)), health.report(false, at(base, 6)));
        assert!(!healthz.is_good && livez.is_good);
        assert!(
            text(&healthz).starts_with(r#"{"lastUpdated":"2026-01-02T03:04:01Z""#),
            "the last real sync"
        );
        assert!(!text(&livez).contains("nodeEligible"), "{}", text(&livez));

        health.queued(Family::V6, at(base, 7));
        let late = health.report(false, at(base, 67));
        assert!(!late.is_good);
        let late = text(&late);
        assert!(
            late.contains(r#""healthy":false,"status":{"IPv4":{"lastUpdated":"2026-01-02T03:04:01Z","healthy":true}"#),
            "{late}"
        );
        assert!(
            late.ends_with(r#""IPv6":{"lastUpdated":"2026-01-02T03:04:01Z","healthy":false}}}"#),
            "{late}"
        );
    }
}
