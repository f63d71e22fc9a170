//! Removes flows whose time is over, and tells what the others still use: one round ([`super::collection`] says when).

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use proxy_common::{
    datapath::flow::{self, State},
    layout::{EGRESS, FlowKey, FlowValue, INGRESS, SocketKey, SocketValue, TICK_SHIFT, Timeouts, flow_flags, history},
};

use super::{
    address::Address,
    observer::{self, SharedObserver},
    programmer::filter::bit_of,
    stale::{self, Part, Serving},
    table::{BoxedTable, Table, TableError, Tables},
};
use crate::model::Family;

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
    /// A table is more than three quarters full
    pub is_pressed: bool,
    /// Entries that there is room for until it is so, by family
    pub ease: [u64; 2],
}

/// Removes old flows from the tables.
pub struct Collector {
    v4: BoxedTable<FlowKey<[u8; 4]>, FlowValue<[u8; 4]>>,
    v6: BoxedTable<FlowKey<[u8; 16]>, FlowValue<[u8; 16]>>,
    sockets_v4: BoxedTable<SocketKey<[u8; 4]>, SocketValue<[u8; 4]>>,
    sockets_v6: BoxedTable<SocketKey<[u8; 16]>, SocketValue<[u8; 16]>>,
    timeouts: Timeouts,
    observer: SharedObserver,
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
            observer: observer::nobody(),
        }
    }

    /// Has `observer` told of rounds and of flows that are removed because their endpoints serve no more.
    #[must_use]
    pub fn observed(self, observer: SharedObserver) -> Self {
        Self { observer, ..self }
    }

    /// Looks at every flow once; `now` is the time since boot (`CLOCK_MONOTONIC`).
    ///
    /// # Errors
    /// If a table can't be read or written.
    pub fn collect(&mut self, now: Duration) -> Result<FlowUsage, TableError> {
        let began = Instant::now();
        let usage = self.look(now);
        let removed = usage.as_ref().map(|usage| usage.removed).ok();
        self.observer.collected(began.elapsed(), removed);
        usage
    }

    fn look(&mut self, now: Duration) -> Result<FlowUsage, TableError> {
        let mut usage = FlowUsage {
            began: now,
            ..FlowUsage::default()
        };
        let left = [
            (
                collect(&mut *self.v4, &self.timeouts, now, &mut usage)?,
                self.v4.max_entries(),
            ),
            (
                collect(&mut *self.v6, &self.timeouts, now, &mut usage)?,
                self.v6.max_entries(),
            ),
        ];
        usage.is_pressed = left
            .iter()
            .any(|(entries, max_entries)| is_pressed(*entries, *max_entries));
        usage.ease = left.map(|(entries, max_entries)| ease(entries, max_entries));
        Ok(usage)
    }

    /// Removes the UDP flows whose endpoints serve no more, or a part of each. A failure is logged: the flows that stay end by themselves when
    /// their clients fall silent (behaviour.md 7.2 has no more to offer, either).
    pub(super) fn purge(&mut self, serving: &Serving, part: Part) {
        let removed = [
            purge(
                Family::V4,
                &mut *self.v4,
                &mut *self.sockets_v4,
                (serving, part),
                &self.observer,
            ),
            purge(
                Family::V6,
                &mut *self.v6,
                &mut *self.sockets_v6,
                (serving, part),
                &self.observer,
            ),
        ];
        let removed: Result<u64, TableError> = removed.into_iter().sum();
        match removed {
            Ok(0) => {}
            Ok(removed) => tracing::debug!(removed, "flow entries of endpoints that serve no more removed"),
            Err(error) => tracing::warn!(%error, "flows to endpoints that serve no more could not be removed"),
        }
    }
}

/// Removes the UDP flows of a family whose endpoints serve no more, or a part of each; gives how many entries these were.
fn purge<A: Address>(
    family: Family,
    flows: Flows<'_, A>,
    sockets: &mut dyn Table<SocketKey<A>, SocketValue<A>>,
    (serving, part): (&Serving, Part),
    observer: &SharedObserver,
) -> Result<u64, TableError> {
    let began = Instant::now();
    let removed = stale::remove(flows, serving, part)? + stale::remove_unconnected(sockets, serving, part)?;
    observer.purged(family, began.elapsed(), removed);
    Ok(removed)
}

/// The datapath's clock at a time since boot.
pub fn tick(now: Duration) -> u32 {
    // A tick is over a second: 32 bits last for 146 years.
    u32::try_from(now.as_nanos() >> TICK_SHIFT).unwrap_or(u32::MAX)
}

/// Where a table is fuller than this, in quarters, flows that nobody has answered and those that are over go after [`PRESSED`].
const PRESSURE: u64 = 3;
/// How long such a flow is kept under pressure: a client has then asked three times (RFC 6298, 2 and 5.5).
const PRESSED: u32 = Timeouts::ticks(10);

/// Whether a table of so many entries is fuller than it should be.
fn is_pressed(entries: u64, max_entries: u32) -> bool {
    entries * 4 > u64::from(max_entries) * PRESSURE
}

/// How many more entries a table of so many has room for until it is fuller than it should be.
pub(super) fn ease(entries: u64, max_entries: u32) -> u64 {
    (u64::from(max_entries) * PRESSURE / 4).saturating_sub(entries)
}

/// The timeouts under pressure.
fn pressed(timeouts: &Timeouts) -> Timeouts {
    Timeouts {
        tcp_opening: timeouts.tcp_opening.min(PRESSED),
        tcp_answered: timeouts.tcp_answered.min(PRESSED),
        tcp_closing: timeouts.tcp_closing.min(PRESSED),
        udp_opening: timeouts.udp_opening.min(PRESSED),
        ..*timeouts
    }
}

/// A flow as one entry of it tells: the client's half, and what stands there and in the other half's place.
struct Found<A> {
    key: FlowKey<A>,
    /// The client's half, made up where it is lost
    value: FlowValue<A>,
    is_lost: bool,
    twin_key: FlowKey<A>,
    twin: Option<FlowValue<A>>,
}

type Flows<'a, A> = &'a mut dyn Table<FlowKey<A>, FlowValue<A>>;

impl<A: Address> Found<A> {
    /// The pair of halves that an entry belongs to, looked up now; `None` if the entry is gone.
    fn pair(flows: Flows<'_, A>, key: &FlowKey<A>) -> Result<Option<Self>, TableError> {
        let Some(half) = flows.get(key)? else { return Ok(None) };
        let (other_key, expected) = (flow::twin_key(key, &half), flow::twin_value(key, &half));
        // Another flow may have its place.
        let other = flows
            .get(&other_key)?
            .filter(|other| flow::same_rewrite(other, &expected));
        let is_reply = half.flags & flow_flags::REPLY != 0;
        Ok(Some(if is_reply {
            Self {
                key: other_key,
                value: other.unwrap_or(FlowValue {
                    // Who is answered has asked.
                    history: history::SEEN | history::CONFIRMED,
                    ..expected
                }),
                is_lost: other.is_none(),
                twin_key: *key,
                twin: Some(half),
            }
        } else {
            Self {
                key: *key,
                value: half,
                is_lost: false,
                twin_key: other_key,
                twin: other,
            }
        }))
    }

    /// The flow that an entry belongs to: of one of a masquerade the flow that is masqueraded, unless it is gone.
    fn flow(flows: Flows<'_, A>, key: &FlowKey<A>) -> Result<Option<Self>, TableError> {
        let Some(pair) = Self::pair(flows, key)? else {
            return Ok(None);
        };
        if pair.value.flags & flow_flags::MASQUERADE == 0 {
            return Ok(Some(pair));
        }
        let middle = &pair.key;
        let reply = FlowKey::new(
            EGRESS,
            middle.protocol,
            (middle.destination, middle.destination_port),
            (middle.source, middle.source_port),
        );
        let masqueraded = Self::pair(flows, &reply)?.filter(|flow| flow.value.flags & flow_flags::MASQUERADE == 0);
        Ok(Some(masqueraded.unwrap_or(pair)))
    }

    fn is_expired(&self, now: u32, timeouts: &Timeouts) -> bool {
        flow::is_expired(self.key.protocol, &self.value, self.twin.as_ref(), now, timeouts)
    }

    /// Removes all entries, if no packet has used them since they were looked up: a client may open another flow from the same
    /// port. If that is interrupted, the client's half is left to tell of the flow.
    fn remove(&self, flows: Flows<'_, A>) -> Result<u64, TableError> {
        let mut removed = 0;
        let middle = flow::masquerade_key(&self.key, &self.value);
        if self.value.flags & flow_flags::MASQUERADE == 0
            && let Some(masquerade) = Self::pair(flows, &middle)?
            && masquerade.value.flags & flow_flags::MASQUERADE != 0
        {
            removed += masquerade.remove(flows)?;
        }
        if let Some(twin) = self.twin {
            if !flows.remove_if(&self.twin_key, &|value| *value == twin)? {
                return Ok(removed);
            }
            removed += 1;
        }
        removed += u64::from(!self.is_lost && flows.remove_if(&self.key, &|value| *value == self.value)?);
        Ok(removed)
    }
}

/// How long an entry may be without packets before its flow has to be looked at. A reply half is looked at only when it is
/// old even if it stands alone: the client's half, which can't tell of answers, speaks for both.
fn least_timeout<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, timeouts: &Timeouts) -> u32 {
    let of = |state: State| state.timeout(key.protocol, timeouts);
    if value.flags & flow_flags::REPLY != 0 {
        return of(State::of(key.protocol, value, None));
    }
    of(State::Opening).min(of(State::Answered)).min(of(State::Closing))
}

fn collect<A: Address>(
    flows: Flows<'_, A>,
    timeouts: &Timeouts,
    now: Duration,
    usage: &mut FlowUsage,
) -> Result<u64, TableError> {
    let now = tick(now);
    let pressed = pressed(timeouts);
    // What was used lately stays whatever its state: most flows need no look at their other half.
    let (mut idle, mut entries) = (Vec::new(), 0);
    flows.scan(&mut |key, value| {
        entries += 1;
        if now.saturating_sub(value.last_seen) <= least_timeout(&key, &value, &pressed) {
            note(&key, &value, usage);
        } else {
            idle.push(key);
        }
    })?;
    let timeouts = if is_pressed(entries, flows.max_entries()) {
        &pressed
    } else {
        timeouts
    };
    let before = usage.removed;
    for key in idle {
        // Gone with another entry of its flow, maybe.
        let Some(found) = Found::flow(flows, &key)? else {
            continue;
        };
        if found.is_expired(now, timeouts) {
            usage.removed += found.remove(flows)?;
        } else if let Some(value) = flows.get(&key)? {
            note(&key, &value, usage);
        }
    }
    Ok(entries - (usage.removed - before).min(entries))
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
    use super::*;
    use crate::dataplane::memory::Memory;

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
        let (confirmed, lasting) = (seen | history::CONFIRMED, seen | history::LASTING);
        let timeouts = Timeouts::DEFAULT;
        for (protocol, history, timeout) in [
            (6, (seen, 0), timeouts.tcp_opening),
            (6, (seen, seen), timeouts.tcp_answered),
            (6, (confirmed, seen), timeouts.tcp_established),
            (6, (confirmed | history::FIN, seen), timeouts.tcp_half_closed),
            (6, (confirmed | history::RST, seen), timeouts.tcp_closing),
            (17, (seen, 0), timeouts.udp_opening),
            (17, (seen, seen), timeouts.udp_opening),
            (17, (lasting, seen), timeouts.udp_established),
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

    /// A client may open a flow from a port whose last flow is just being removed.
    #[test]
    fn a_flow_that_was_opened_anew_stays() {
        let memory = Memory::default();
        let keys = insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
        let mut flows = memory.v4.flows.clone();
        let found = Found::flow(&mut flows, &keys[0]).expect("readable").expect("a flow");
        for renewed in [&keys[..], &keys[..1], &keys[1..]] {
            insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
            for key in renewed {
                let mut value = flows.get(key).expect("readable").expect("a half");
                value.last_seen = 2000;
                flows.insert(key, &value).expect("room");
            }
            found.remove(&mut flows).expect("writable");
            for key in renewed {
                assert!(flows.get(key).expect("readable").is_some(), "{renewed:?}");
            }
        }
        insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
        assert_eq!(found.remove(&mut flows).expect("writable"), 2);
    }

    /// A masquerade and its flow go together, whichever of their entries was used last.
    #[test]
    fn masquerade_goes_with_its_flow() {
        let memory = Memory::default();
        let [key, _] = insert(&memory, 17, (1000, 1000), (history::SEEN, 0));
        let mut flows = memory.v4.flows.clone();
        let mut value = flows.get(&key).expect("readable").expect("a flow");
        value.flags |= flow_flags::MASQUERADED;
        flows.insert(&key, &value).expect("room");
        let middle = flow::masquerade_key(&key, &value);
        let masquerade = FlowValue {
            address: [192, 0, 2, 1],
            port: 1024,
            other_port: BACKEND.1,
            last_seen: 1010,
            flags: flow_flags::MASQUERADE,
            ..FlowValue::default()
        };
        for (key, value) in [
            (middle, masquerade),
            (
                flow::twin_key(&middle, &masquerade),
                flow::twin_value(&middle, &masquerade),
            ),
        ] {
            flows.insert(&key, &value).expect("room");
        }
        let end = 1000 + Timeouts::DEFAULT.udp_opening;
        assert_eq!(collected(&memory, end).removed, 0);
        assert_eq!(collected(&memory, end + 1).removed, 4);
        assert_eq!(left(&memory), 0);
    }

    /// Two flows had the same ports one after the other: what is left of the first must not take the second with it.
    #[test]
    fn a_twin_of_another_flow_stays() {
        let memory = Memory::default();
        let [_, twin_key] = insert(&memory, 6, (1000, 1000), (history::SEEN, 0));
        let mut flows = memory.v4.flows.clone();
        let mut other = flows.get(&twin_key).expect("readable").expect("a half");
        (other.address, other.last_seen) = ([10, 96, 0, 2], 5000);
        other.history = history::SEEN | history::CONFIRMED;
        flows.insert(&twin_key, &other).expect("room");
        assert_eq!(collected(&memory, 5001).removed, 1);
        assert_eq!(flows.get(&twin_key).expect("readable"), Some(other));
    }

    /// An agent that is killed between two removals leaves a half: the next round ends it.
    #[test]
    fn what_an_interrupted_round_leaves_goes_with_the_next() {
        for lost in [0, 1] {
            let memory = Memory::default();
            let keys = insert(&memory, 17, (1000, 1000), (history::SEEN, history::SEEN));
            memory.v4.flows.clone().remove(&keys[lost]).expect("writable");
            assert_eq!(collected(&memory, 1001 + Timeouts::DEFAULT.udp_established).removed, 1);
            assert_eq!(left(&memory), 0);
        }
    }

    #[test]
    fn unanswered_flows_go_soon_under_pressure() {
        let memory = Memory::new(&|name| (name == "flows_v4").then_some(2));
        insert(&memory, 6, (1000, 1000), (history::SEEN, 0));
        let usage = collected(&memory, 1000 + PRESSED);
        assert_eq!((usage.removed, usage.is_pressed), (0, true));
        let usage = collected(&memory, 1001 + PRESSED);
        assert_eq!((usage.removed, usage.is_pressed), (2, false));
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
