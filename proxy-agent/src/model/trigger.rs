//! When changes of endpoints were made in the cluster: what network programming latency is counted from (behaviour.md 9.8).

use std::collections::HashMap;

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::ObjectMeta, jiff::Timestamp};

use super::{Family, ObjectName};

/// Says when the change happened that an EndpointSlice was written for.
const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The time that an EndpointSlice tells. One that can't be read says nothing.
pub(super) fn time_of(slice: &ObjectMeta) -> Option<Timestamp> {
    slice.annotations.as_ref()?.get(ANNOTATION)?.parse().ok()
}

/// The times of changes that haven't been taken yet, by Service.
#[derive(Clone, Debug, Default)]
pub(super) struct TriggerTimes {
    /// Older changes are none that this process could have written in time; nothing is noted without it
    since: Option<Timestamp>,
    times: HashMap<ObjectName, Vec<(Family, Timestamp)>>,
}

impl TriggerTimes {
    /// Notes changes that were made after this time.
    pub(super) const fn since(&mut self, since: Timestamp) {
        self.since = Some(since);
    }

    /// A slice of a Service is another now, which says when that was made.
    pub(super) fn changed(&mut self, service: ObjectName, family: Family, time: Timestamp) {
        if self.since.is_some_and(|since| time > since) {
            self.times.entry(service).or_default().push((family, time));
        }
    }

    /// A slice of a Service is gone: its time is that of its last change, not of its end, so the Service's are discarded.
    pub(super) fn gone(&mut self, service: &ObjectName) {
        self.times.remove(service);
    }

    /// All times since the last call.
    pub(super) fn take(&mut self) -> Vec<(Family, Timestamp)> {
        self.times.drain().flat_map(|(_, times)| times).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(time: &str) -> ObjectMeta {
        ObjectMeta {
            annotations: Some([(ANNOTATION.to_owned(), time.to_owned())].into()),
            ..ObjectMeta::default()
        }
    }

    fn time(text: &str) -> Timestamp {
        time_of(&metadata(text)).expect("a time")
    }

    fn name(name: &str) -> ObjectName {
        ObjectName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    /// behaviour.md 9.8: each update counts; not those from before the start, nor without a time that can be read.
    #[test]
    fn rule_9_8_each_change_after_the_start_counts() {
        let mut times = TriggerTimes::default();
        times.changed(name("web"), Family::V4, time("2026-01-01T00:00:09Z"));
        assert_eq!(times.take(), [], "nobody asked");
        times.since("2026-01-01T00:00:05Z".parse().unwrap());
        for text in ["2026-01-01T00:00:04.9Z", "2026-01-01T00:00:05Z"] {
            times.changed(name("web"), Family::V4, time(text));
        }
        assert_eq!(times.take(), []);
        for text in ["yesterday", ""] {
            assert_eq!(time_of(&metadata(text)), None, "{text}");
        }
        assert_eq!(time_of(&ObjectMeta::default()), None);
        for text in ["2026-01-01T00:00:05.000000001Z", "2026-01-01T01:00:06+01:00"] {
            times.changed(name("web"), Family::V6, time(text));
        }
        let taken: Vec<_> = times.take().into_iter().map(|(_, time)| time.to_string()).collect();
        assert_eq!(taken, ["2026-01-01T00:00:05.000000001Z", "2026-01-01T00:00:06Z"]);
        assert_eq!(times.take(), []);
    }

    /// behaviour.md 9.8: a slice that is deleted discards what its Service's slices said.
    #[test]
    fn rule_9_8_a_deletion_discards() {
        let mut times = TriggerTimes::default();
        times.since(Timestamp::UNIX_EPOCH);
        times.changed(name("web"), Family::V4, time("2026-01-01T00:00:06Z"));
        times.changed(name("api"), Family::V4, time("2026-01-01T00:00:07Z"));
        times.gone(&name("web"));
        let [(Family::V4, left)] = times.take()[..] else {
            panic!("one is left")
        };
        assert_eq!(left.to_string(), "2026-01-01T00:00:07Z");
    }
}
