//! When flows are collected: the thread that does it, and the time between two rounds.

use std::{
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use proxy_common::layout::OpeningEnds;

use super::{
    collect::{Collector, FlowUsage},
    programmer::GRACE,
    sockets::SocketAborter,
    stale::{Part, Serving},
    table::{BoxedTable, TableError, Tables},
};

/// What the thread is asked for.
enum Request {
    /// To remove old flows; the time since boot
    Collect(Duration),
    /// To remove flows to endpoints that serve no more, and to tell sockets that are connected to them
    Purge(Serving, Part),
}

/// Collects now and then on a thread of its own: a million flows must not hold up a change of endpoints.
pub(super) struct Collection {
    requests: Sender<Request>,
    results: Receiver<Result<FlowUsage, TableError>>,
    opened: Opened,
    schedule: Schedule,
    busy: bool,
    /// What was purged and is to be again
    unsettled: Serving,
    /// When
    settled: Duration,
}

/// The longest time between two rounds.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// The time between two rounds under pressure, and the shortest between any.
const SHORTEST_WAIT: Duration = Duration::from_secs(2);
/// The most entries that a flow takes: its halves, and those of its masquerade.
const MOST_ENTRIES: u64 = 4;

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

/// When the next round is. Flows that are opened may have it come before its time: a burst must not find the table full.
struct Schedule {
    interval: Duration,
    /// Between the last round and the next
    wait: Duration,
    next: Duration,
    /// No round before this, whatever is opened
    earliest: Duration,
    /// Flows opened when the last round began, by family
    opened: [u64; 2],
    /// Entries that there was room for after it until a table is under pressure
    ease: [u64; 2],
}

impl Schedule {
    /// The first round is an interval from `now`.
    fn new(interval: Duration, now: Duration) -> Self {
        Self {
            interval,
            wait: interval,
            next: now + interval,
            earliest: now + interval,
            opened: [0; 2],
            ease: [u64::MAX; 2],
        }
    }

    /// Whether a round is to begin, where so many flows have been opened so far.
    fn is_due(&self, now: Duration, opened: [u64; 2]) -> bool {
        let fills_up = |family: usize| {
            let flows = opened[family].saturating_sub(self.opened[family]);
            flows.saturating_mul(MOST_ENTRIES) > self.ease[family]
        };
        now >= self.next || now >= self.earliest && (fills_up(0) || fills_up(1))
    }

    /// A round begins.
    const fn begin(&mut self, opened: [u64; 2]) {
        self.opened = opened;
    }

    /// It has ended.
    fn end(&mut self, now: Duration, result: Result<&FlowUsage, &TableError>) {
        (self.wait, self.ease) = match result {
            Ok(usage) => (wait(self.interval, self.wait, usage), usage.ease),
            Err(_) => (self.interval, [u64::MAX; 2]),
        };
        self.next = now + self.wait;
        self.earliest = now + self.interval.min(SHORTEST_WAIT);
    }
}

/// Flows opened so far, which costs little to ask for.
struct Opened {
    v4: BoxedTable<u32, OpeningEnds>,
    v6: BoxedTable<u32, OpeningEnds>,
}

impl Opened {
    /// By family.
    fn count(&self) -> Result<[u64; 2], TableError> {
        let head = |ends: &BoxedTable<u32, OpeningEnds>| Ok(ends.get(&0)?.unwrap_or_default().head);
        Ok([head(&self.v4)?, head(&self.v6)?])
    }
}

impl Collection {
    /// Starts the thread, which ends with this value. The first round is an interval from `now`.
    pub(super) fn start(
        mut collector: Collector,
        mut aborter: SocketAborter,
        tables: Tables,
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
                    Request::Purge(serving, part) => {
                        collector.purge(&serving, part);
                        // Connecting again they open new flows.
                        aborter.abort_stale(&serving);
                    }
                }
            }
        })?;
        Ok(Self {
            requests,
            results,
            opened: Opened {
                v4: tables.v4.opening_ends,
                v6: tables.v6.opening_ends,
            },
            schedule: Schedule::new(interval, now),
            busy: false,
            unsettled: Serving::new(),
            settled: now,
        })
    }

    /// Has the UDP flows removed whose endpoints serve no more, and connected sockets told of it (behaviour.md 7.3): what takes
    /// requests there now; the rest, and what packets opened that had been given their endpoint before, when none can be under way any more.
    pub(super) fn purge(&mut self, serving: Serving, now: Duration) {
        self.unsettled.extend(serving.clone());
        self.settled = now + GRACE;
        self.send(Request::Purge(serving, Part::Requests));
    }

    /// The thread ends with this value only.
    fn send(&self, request: Request) -> bool {
        self.requests.send(request).is_ok()
    }

    /// Starts a round if it is time for one, and gives the result of the last if it is done and hasn't been given yet.
    pub(super) fn poll(&mut self, now: Duration) -> Option<Result<FlowUsage, TableError>> {
        if now >= self.settled && !self.unsettled.is_empty() {
            let unsettled = std::mem::take(&mut self.unsettled);
            self.send(Request::Purge(unsettled, Part::All));
        }
        if !self.busy {
            // Unknown, none: the next round comes in its time.
            let opened = self.opened.count().unwrap_or(self.schedule.opened);
            if self.schedule.is_due(now, opened) {
                self.schedule.begin(opened);
                self.busy = self.send(Request::Collect(now));
            }
        }
        let result = self.results.try_recv().ok();
        if let Some(result) = &result {
            self.busy = false;
            self.schedule.end(now, result.as_ref());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        layout::{FlowKey, FlowValue, INGRESS, Timeouts},
        packet::UDP,
    };

    use super::*;
    use crate::dataplane::{cgroup::Mode, memory::Memory, table::Table as _};

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Of these tables, with rounds 10 seconds apart.
    fn start(memory: &Memory) -> Collection {
        let tables = || memory.tables();
        let aborter = SocketAborter::new(tables(), Mode::Off);
        let collector = Collector::new(tables(), Timeouts::DEFAULT);
        Collection::start(collector, aborter, tables(), seconds(10), seconds(0)).expect("a thread")
    }

    #[test]
    fn rounds_follow_what_happens() {
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

    /// Issue 4, section 2: a burst after a long quiet time doesn't find a table full that was not looked at.
    #[test]
    fn flows_that_are_opened_have_a_round_come_early() {
        let mut schedule = Schedule::new(seconds(10), seconds(0));
        assert!(
            !schedule.is_due(seconds(9), [1_000_000; 2]),
            "the room is not known yet"
        );
        assert!(schedule.is_due(seconds(10), [0; 2]));
        let usage = FlowUsage {
            kept: 1000,
            ease: [4000, 400],
            ..FlowUsage::default()
        };
        schedule.begin([500, 500]);
        schedule.end(seconds(10), Ok(&usage));
        assert!(!schedule.is_due(seconds(29), [1500, 600]), "a round after 20 seconds");
        assert!(schedule.is_due(seconds(30), [500, 500]));
        for opened in [[1501, 500], [500, 601]] {
            assert!(schedule.is_due(seconds(12), opened), "{opened:?}");
            assert!(!schedule.is_due(seconds(11), opened), "{opened:?}: too early");
        }
        // Tables made anew count from the beginning.
        assert!(!schedule.is_due(seconds(12), [0; 2]));
    }

    /// The same from tables.
    #[test]
    fn a_burst_is_seen_in_the_ring_of_openings() {
        let memory = Memory::default();
        let mut collection = start(&memory);
        let opened = |head| {
            let ends = OpeningEnds {
                head,
                ..OpeningEnds::default()
            };
            memory.v4.opening_ends.clone().insert(&0, &ends).expect("room");
        };
        let room = u64::from(memory.v4.flows.max_entries());
        let mut round = |now: u64| {
            let began = collection.poll(seconds(now)).is_some() || collection.busy;
            while collection.busy {
                collection.poll(seconds(now));
                std::thread::yield_now();
            }
            began
        };
        assert!(round(10));
        opened(room / 8);
        assert!(!round(20));
        opened(room / 4);
        assert!(round(21));
        assert!(!round(24));
    }

    /// behaviour.md 7.3, 7.8: a packet that was under way when the endpoints changed may open a flow after the first look.
    #[test]
    fn rule_7_8_what_was_under_way_is_purged_as_well() {
        let memory = Memory::default();
        let mut collection = start(&memory);
        let round = |collection: &mut Collection, now: Duration| {
            // Rounds come after what was asked for before them.
            while collection.poll(now).is_none() {
                std::thread::yield_now();
            }
        };
        collection.purge(Serving::from([(3, std::collections::HashSet::new())]), seconds(10));
        round(&mut collection, seconds(10));
        let key = FlowKey::new(INGRESS, UDP, ([10, 244, 0, 9], 40_000), ([10, 96, 0, 1], 53));
        let value = FlowValue {
            service: 3,
            last_seen: u32::MAX,
            ..FlowValue::default()
        };
        memory.v4.flows.clone().insert(&key, &value).expect("room");
        round(&mut collection, seconds(40));
        assert_eq!(memory.v4.flows.get(&key).expect("readable"), None);
    }
}
