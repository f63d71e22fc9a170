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
    /// The last round, by family
    last: [Round; 2],
    observer: SharedObserver,
}

/// What a round over a table leaves for the next.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// When it was, in ticks, if the next may be brief: no flow may be looked at again unless the time of some state has run out since
    at: Option<u32>,
    /// How many have been brief since one that was not
    brief: u32,
}

/// After so many brief rounds comes one that looks at all that was not used lately: a flow that was moved here from other tables may have
/// had its time before, and who removes entries otherwise may leave some.
pub const BRIEF: u32 = 15;

impl Collector {
    /// A collector for these tables.
    pub fn new(tables: Tables, timeouts: Timeouts) -> Self {
        Self {
            v4: tables.v4.flows,
            v6: tables.v6.flows,
            sockets_v4: tables.v4.sockets,
            sockets_v6: tables.v6.sockets,
            timeouts,
            last: Default::default(),
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
        let [v4, v6] = &mut self.last;
        let left = [
            (
                collect(&mut *self.v4, &self.timeouts, now, v4, &mut usage)?,
                self.v4.max_entries(),
            ),
            (
                collect(&mut *self.v6, &self.timeouts, now, v6, &mut usage)?,
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

    /// Removes all entries, unless a packet has used the flow since it was looked up. The client's half goes first: what it sends from then
    /// on opens a flow, from the same port maybe, and what that has written is not what was looked up. (Were the masquerade to go first, a
    /// datagram on its way from the one hook to the other would leave without.) An interrupted removal leaves halves that the next round
    /// ends.
    fn remove(&self, flows: Flows<'_, A>) -> Result<u64, TableError> {
        let middle = flow::masquerade_key(&self.key, &self.value);
        let masquerade = if self.value.flags & flow_flags::MASQUERADE == 0 {
            Self::pair(flows, &middle)?.filter(|pair| pair.value.flags & flow_flags::MASQUERADE != 0)
        } else {
            None
        };
        if self.twin.is_some() && flows.get(&self.twin_key)? != self.twin {
            return Ok(0);
        }
        let mut removed = 0;
        if !self.is_lost {
            if !flows.remove_if(&self.key, &|value| *value == self.value)? {
                return Ok(0);
            }
            removed += 1;
        }
        if let Some(masquerade) = masquerade {
            removed += masquerade.remove(flows)?;
        }
        if let Some(twin) = self.twin {
            removed += u64::from(flows.remove_if(&self.twin_key, &|value| *value == twin)?);
        }
        Ok(removed)
    }
}

/// States of flows.
const STATES: [State; 5] = [
    State::Opening,
    State::Answered,
    State::Established,
    State::HalfClosed,
    State::Closing,
];

/// How long an entry may be without packets before its flow has to be looked at. A reply half is looked at only when it is
/// old even if it stands alone: the client's half, which can't tell of answers, speaks for both.
fn least_timeout<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, timeouts: &Timeouts) -> u32 {
    let of = |state: State| state.timeout(key.protocol, timeouts);
    if value.flags & flow_flags::REPLY != 0 {
        return of(State::of(key.protocol, value, None));
    }
    of(State::Opening).min(of(State::Answered)).min(of(State::Closing))
}

/// Whether the time of some state has run out for an entry since an earlier round. A flow ends when the younger of its halves comes to the
/// time of its state, and without packets neither changes: in between there is nothing to see.
fn ran_out<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, timeouts: &Timeouts, since: u32, now: u32) -> bool {
    let silence = |at: u32| at.saturating_sub(value.last_seen);
    let mut times = STATES.iter().map(|state| state.timeout(key.protocol, timeouts));
    times.any(|time| silence(since) <= time && time < silence(now))
}

fn collect<A: Address>(
    flows: Flows<'_, A>,
    timeouts: &Timeouts,
    now: Duration,
    last: &mut Round,
    usage: &mut FlowUsage,
) -> Result<u64, TableError> {
    let now = tick(now);
    let pressed = pressed(timeouts);
    // One that fails leaves nothing.
    let Round { at, brief } = std::mem::take(last);
    let since = at.filter(|_| brief < BRIEF);
    // What was used lately stays whatever its state: most flows need no look at their other half.
    let (mut idle, mut entries) = (Vec::new(), 0);
    flows.scan(&mut |key, value| {
        entries += 1;
        let may_be_over = match since {
            Some(since) => ran_out(&key, &value, timeouts, since, now),
            None => now.saturating_sub(value.last_seen) > least_timeout(&key, &value, &pressed),
        };
        if may_be_over {
            idle.push(key);
        } else {
            note(&key, &value, usage);
        }
    })?;
    let is_pressed = is_pressed(entries, flows.max_entries());
    let timeouts = if is_pressed { &pressed } else { timeouts };
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
    // Under pressure other times hold, and many flows are over by them that were not before.
    last.at = (!is_pressed).then_some(now);
    last.brief = since.map_or(0, |_| brief + 1);
    let left = entries - (usage.removed - before).min(entries);
    usage.kept += left;
    Ok(left)
}

/// A hook looks at both addresses of a packet: either may be the one that the filter has to let through.
fn note<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, usage: &mut FlowUsage) {
    usage.services.insert(value.service);
    let bits = if key.direction == INGRESS {
        &mut usage.frontend_bits
    } else {
        &mut usage.backend_bits
    };
    bits.extend([bit_of(&key.source), bit_of(&key.destination)]);
}

#[cfg(test)]
mod tests;
