//! Removes flows whose time is over, and tells what the others still use.

use std::{
    collections::HashSet,
    sync::mpsc::{Receiver, Sender, channel},
    time::Duration,
};

use proxy_common::{
    datapath::flow,
    layout::{FlowKey, FlowValue, INGRESS, SocketKey, SocketValue, TICK_SHIFT, Timeouts},
};

use super::{
    address::Address,
    programmer::filter::bit_of,
    sockets::SocketAborter,
    stale::{self, Serving},
    table::{BoxedTable, TableError, Tables},
};

/// What the flows use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowUsage {
    /// When the scan began, since boot
    pub began: Duration,
    /// Ids of their service ports
    pub services: HashSet<u32>,
    /// Bits of `frontend_filter` that they need
    pub frontend_bits: HashSet<u32>,
    /// Bits of `backend_filter` that they need
    pub backend_bits: HashSet<u32>,
    /// Entries that stay
    pub kept: u64,
    /// Entries removed
    pub removed: u64,
}

/// Removes old flows from the tables.
pub struct Collector {
    v4: BoxedTable<FlowKey<[u8; 4]>, FlowValue<[u8; 4]>>,
    v6: BoxedTable<FlowKey<[u8; 16]>, FlowValue<[u8; 16]>>,
    sockets_v4: BoxedTable<SocketKey<[u8; 4]>, SocketValue<[u8; 4]>>,
    sockets_v6: BoxedTable<SocketKey<[u8; 16]>, SocketValue<[u8; 16]>>,
    timeouts: Timeouts,
}

impl Collector {
    /// A collector for these tables.
    pub fn new(tables: Tables, timeouts: Timeouts) -> Self {
        Self {
            v4: tables.v4.flows,
            v6: tables.v6.flows,
            sockets_v4: tables.v4.sockets,
            sockets_v6: tables.v6.sockets,
            timeouts,
        }
    }

    /// Looks at every flow once; `now` is the time since boot (`CLOCK_MONOTONIC`).
    ///
    /// # Errors
    /// If a table can't be read or written.
    pub fn collect(&mut self, now: Duration) -> Result<FlowUsage, TableError> {
        let mut usage = FlowUsage {
            began: now,
            ..FlowUsage::default()
        };
        collect(&mut *self.v4, &self.timeouts, now, &mut usage)?;
        collect(&mut *self.v6, &self.timeouts, now, &mut usage)?;
        Ok(usage)
    }

    /// Removes the UDP flows whose endpoints serve no more. A failure is logged: the flows that stay end by themselves when
    /// their clients fall silent (behaviour.md 7.2 has no more to offer, either).
    fn purge(&mut self, serving: &Serving) {
        let removed = stale::remove(&mut *self.v4, serving)
            .and_then(|removed| Ok(removed + stale::remove(&mut *self.v6, serving)?))
            .and_then(|removed| Ok(removed + stale::remove_unconnected(&mut *self.sockets_v4, serving)?))
            .and_then(|removed| Ok(removed + stale::remove_unconnected(&mut *self.sockets_v6, serving)?));
        match removed {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "flow entries of endpoints that serve no more removed"),
            Err(error) => tracing::warn!(%error, "flows to endpoints that serve no more could not be removed"),
        }
    }
}

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
    next: Duration,
    busy: bool,
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
            self.next = now + self.interval;
            self.busy = self.requests.send(Request::Collect(now)).is_ok();
        }
        let result = self.results.try_recv().ok();
        self.busy &= result.is_none();
        result
    }
}

/// The datapath's clock at a time since boot.
pub fn tick(now: Duration) -> u32 {
    // A tick is over a second: 32 bits last for 146 years.
    u32::try_from(now.as_nanos() >> TICK_SHIFT).unwrap_or(u32::MAX)
}

fn collect<A: Address>(
    flows: &mut dyn super::table::Table<FlowKey<A>, FlowValue<A>>,
    timeouts: &Timeouts,
    now: Duration,
    usage: &mut FlowUsage,
) -> Result<(), TableError> {
    let now = tick(now);
    let shortest = [
        timeouts.tcp_opening,
        timeouts.tcp_established,
        timeouts.tcp_closing,
        timeouts.udp_opening,
        timeouts.udp_established,
    ]
    .into_iter()
    .min()
    .unwrap_or(0);
    // What was used lately stays whatever its state: most flows need no look at their other half.
    let mut idle = Vec::new();
    flows.scan(&mut |key, value| {
        if now.saturating_sub(value.last_seen) < shortest {
            note(&key, &value, usage);
        } else {
            idle.push((key, value));
        }
    })?;
    for (key, value) in idle {
        let twin_key = flow::twin_key(&key, &value);
        let twin = flows.get(&twin_key)?;
        // A packet may have come since the scan.
        let Some(value) = flows.get(&key)? else { continue };
        if !flow::is_expired(key.protocol, &value, twin.as_ref(), now, timeouts) {
            note(&key, &value, usage);
            continue;
        }
        usage.removed += u64::from(flows.remove(&key)?);
        if twin.is_some() {
            usage.removed += u64::from(flows.remove(&twin_key)?);
        }
    }
    Ok(())
}

/// A hook looks at both addresses of a packet: either may be the one that the filter has to let through.
fn note<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, usage: &mut FlowUsage) {
    usage.kept += 1;
    usage.services.insert(value.service);
    let bits = if key.direction == INGRESS {
        &mut usage.frontend_bits
    } else {
        &mut usage.backend_bits
    };
    bits.extend([bit_of(&key.source), bit_of(&key.destination)]);
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::history;

    use super::*;
    use crate::dataplane::{memory::Memory, table::Table as _};

    const CLIENT: ([u8; 4], u16) = ([10, 244, 0, 5], 40000);
    const FRONTEND: ([u8; 4], u16) = ([10, 96, 0, 1], 80);
    const BACKEND: ([u8; 4], u16) = ([10, 244, 1, 7], 8080);

    /// Time since boot of a tick.
    fn at(tick: u32) -> Duration {
        Duration::from_nanos(u64::from(tick) << TICK_SHIFT)
    }

    fn insert(memory: &Memory, protocol: u8, last_seen: (u32, u32), history: (u8, u8)) -> [FlowKey<[u8; 4]>; 2] {
        let key = FlowKey::new(INGRESS, protocol, CLIENT, FRONTEND);
        let value = FlowValue {
            address: BACKEND.0,
            port: BACKEND.1,
            other_port: CLIENT.1,
            service: 3,
            last_seen: last_seen.0,
            history: history.0,
            ..FlowValue::default()
        };
        let (twin_key, twin) = (flow::twin_key(&key, &value), flow::twin_value(&key, &value));
        let mut flows = memory.v4.flows.clone();
        flows.insert(&key, &value).expect("room");
        let twin = FlowValue {
            last_seen: last_seen.1,
            history: history.1,
            ..twin
        };
        flows.insert(&twin_key, &twin).expect("room");
        [key, twin_key]
    }

    fn left(memory: &Memory) -> usize {
        memory.v4.flows.entries().expect("readable").len()
    }

    fn collected(memory: &Memory, now: u32) -> FlowUsage {
        Collector::new(memory.tables(), Timeouts::DEFAULT)
            .collect(at(now))
            .expect("readable")
    }

    /// behaviour.md 7.10: an established TCP flow stays for a day, one that was never answered for two minutes.
    #[test]
    fn flows_go_when_the_time_of_their_state_is_over() {
        let seen = history::SEEN;
        let timeouts = Timeouts::DEFAULT;
        for (protocol, history, timeout) in [
            (6, (seen, 0), timeouts.tcp_opening),
            (6, (seen, seen), timeouts.tcp_established),
            (6, (seen | history::RST, seen), timeouts.tcp_closing),
            (17, (seen, 0), timeouts.udp_opening),
            (17, (seen, seen), timeouts.udp_established),
        ] {
            let memory = Memory::default();
            insert(&memory, protocol, (1000, 1000), history);
            assert_eq!(
                collected(&memory, 1000 + timeout).removed,
                0,
                "protocol {protocol} {history:?}"
            );
            assert_eq!(
                collected(&memory, 1001 + timeout).removed,
                2,
                "protocol {protocol} {history:?}"
            );
            assert_eq!(left(&memory), 0);
        }
    }

    /// One busy half keeps both: a download sends packets one way for most of the time.
    #[test]
    fn either_half_keeps_the_flow() {
        let memory = Memory::default();
        insert(&memory, 17, (1000, 2000), (history::SEEN, history::SEEN));
        assert_eq!(collected(&memory, 2010).kept, 2);
        assert_eq!(left(&memory), 2);
    }

    #[test]
    fn usage_names_services_and_filter_bits() {
        let memory = Memory::default();
        insert(&memory, 6, (1000, 1000), (history::SEEN, history::SEEN));
        let usage = collected(&memory, 1001);
        assert_eq!(usage.services, HashSet::from([3]));
        assert!(usage.frontend_bits.contains(&bit_of(&FRONTEND.0)));
        assert!(usage.backend_bits.contains(&bit_of(&BACKEND.0)));
        // Masquerade at the backend's egress is found by the destination.
        assert!(usage.backend_bits.contains(&bit_of(&CLIENT.0)));
    }
}
