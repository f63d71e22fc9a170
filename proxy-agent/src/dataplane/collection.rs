//! When flows are collected: the thread that does it, and the time between two rounds.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use super::{
    collect::{Collector, FlowUsage},
    sockets::SocketAborter,
    stale::Serving,
    table::TableError,
};

/// What the thread is asked for.
enum Request {
    /// To remove old flows; the time since boot
    Collect(Duration),
    /// To remove flows to endpoints that serve no more, and to tell sockets that are connected to them
    Purge(Serving),
}

/// Collects now and then on a thread of its own: a million flows must not hold up a change of endpoints.
pub(super) struct Collection {
    requests: Sender<Request>,
    results: Receiver<Result<FlowUsage, TableError>>,
    interval: Duration,
    /// Between the last round and the next
    wait: Duration,
    next: Duration,
    busy: bool,
}

/// The longest time between two rounds.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// The time between two rounds under pressure.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);

/// How long to wait after a round with this result, where `interval` is usual and it was `last` before: less while a table
/// fills up, more while little happens.
fn wait(interval: Duration, last: Duration, usage: &FlowUsage) -> Duration {
    if usage.is_pressed {
        interval.min(SHORTEST_WAIT)
    } else if usage.removed * 4 > usage.kept {
        interval
    } else {
        (last * 2).clamp(interval, interval.max(LONGEST_WAIT))
    }
}

impl Collection {
    /// Starts the thread, which ends with this value. The first round is an interval from `now`.
    pub(super) fn start(
        mut collector: Collector,
        mut aborter: SocketAborter,
        interval: Duration,
        now: Duration,
    ) -> std::io::Result<Self> {
        let (requests, requested) = channel();
        let (sender, results) = channel();
        std::thread::Builder::new().name("collect".to_owned()).spawn(move || {
            for request in requested {
                match request {
                    Request::Collect(now) => {
                        if sender.send(collector.collect(now)).is_err() {
                            break;
                        }
                    }
                    Request::Purge(serving) => {
                        collector.purge(&serving);
                        // Connecting again they open new flows.
                        aborter.abort_stale(&serving);
                    }
                }
            }
        })?;
        Ok(Self {
            requests,
            results,
            interval,
            wait: interval,
            next: now + interval,
            busy: false,
        })
    }

    /// Has the UDP flows removed whose endpoints serve no more, and connected sockets told of it (behaviour.md 7.3).
    pub(super) fn purge(&self, serving: Serving) {
        // The thread ends with this value only.
        let _sent = self.requests.send(Request::Purge(serving));
    }

    /// Starts a round if it is time for one, and gives the result of the last if it is done and hasn't been given yet.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Result<FlowUsage, TableError>> {
        if now >= self.next && !self.busy {
            self.busy = self.requests.send(Request::Collect(now)).is_ok();
        }
        let result = self.results.try_recv().ok();
        if let Some(result) = &result {
            self.busy = false;
            self.wait = match result {
                Ok(usage) => wait(self.interval, self.wait, usage),
                Err(_) => self.interval,
            };
            self.next = now + self.wait;
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_follow_what_happens() {
        let seconds = Duration::from_secs;
        let after = |last, kept, removed, is_pressed| {
            let usage = FlowUsage {
                kept,
                removed,
                is_pressed,
                ..FlowUsage::default()
            };
            wait(seconds(10), seconds(last), &usage).as_secs()
        };
        assert_eq!(after(10, 1000, 0, false), 20);
        assert_eq!(after(40, 1000, 0, false), 60);
        assert_eq!(after(60, 0, 0, false), 60);
        assert_eq!(after(60, 1000, 900, false), 10);
        assert_eq!(after(60, 1000, 0, true), 2);
    }
}
