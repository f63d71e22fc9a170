//! Moving flows from the previous generation's tables to this one's while packets pass.
//!
//! An entry is in one of the two tables at least, and the programs look into this generation's first: so a flow is never without
//! one. For a program that has not found it there just before it came, it stays in the other until that program has ended. Its halves may
//! be in different tables for a moment, for each finds its way by itself.

use std::{cell::Cell, collections::HashSet, io};

use anyhow::{Context as _, Result};
use proxy_common::{
    datapath::flow::{self, State, same_rewrite},
    layout::{
        FlowKey, FlowValue, Plain, Timeouts,
        flow_flags::{REPLY, UNRESOLVED},
        tables::{FLOWS_V4, FLOWS_V6},
    },
};

use super::{
    Generation,
    halves::{Half, Halves},
};
use crate::dataplane::{
    address::Address,
    collect,
    raw::{self, BytesMap, Update},
};

/// What a look at all flows of the previous generation came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pass {
    /// Entries moved
    pub(super) moved: usize,
    /// Entries that stay: no room, or their turn has not come
    pub(super) left: usize,
}

/// Copies the established flows of an older generation, which is out of sight when this one decides. Until then they must stay where they
/// are, too. The others are over, or their clients ask again.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn copy_established(older: &Generation, own: &Generation) -> Result<()> {
    copy_family::<[u8; 4]>(older, own, FLOWS_V4.name)?;
    copy_family::<[u8; 16]>(older, own, FLOWS_V6.name)
}

fn copy_family<A: Address>(older: &Generation, own: &Generation, name: &str) -> Result<()>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    let Some(mover) = Mover::<A>::open(older, own, name)? else {
        return Ok(());
    };
    let mut left = 0;
    let copied = mover.halves.each(|key, _| {
        left += usize::from(!mover.copy_established(key)?);
        Ok(())
    });
    if left > 0 {
        tracing::warn!("table {name} has no room for {left} established connections of the programs before the last");
    }
    copied.with_context(|| format!("table {name}"))
}

/// By what it is told that a flow is over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    /// Now, in ticks
    pub(super) now: u32,
    /// How long flows live without packets
    pub(super) timeouts: Timeouts,
}

/// Forgets the flows of the previous generation that are over. Nobody else looks through its tables, and were one opened anew while this
/// generation leads, the previous one would do it: by its own tables, without knowing what is in this one's.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn sweep(previous: &Generation, own: &Generation, age: Age) -> Result<()> {
    sweep_family::<[u8; 4]>(previous, own, FLOWS_V4.name, age)?;
    sweep_family::<[u8; 16]>(previous, own, FLOWS_V6.name, age)
}

fn sweep_family<A: Address>(previous: &Generation, own: &Generation, name: &str, age: Age) -> Result<()>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    let Some(mover) = Mover::<A>::open(previous, own, name)? else {
        return Ok(());
    };
    let swept = mover.halves.each(|key, _| mover.sweep(key, age));
    swept.with_context(|| format!("table {name}"))
}

/// Moves all flows that are not over; without room for it, none that did not get anywhere. While the previous generation may still be
/// choosing the port of a masquerade, it is left to it, unless this is the `last` pass.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn shift(previous: &Generation, own: &Generation, last: bool, age: Age) -> Result<Pass> {
    let mut pass = Pass::default();
    shift_family::<[u8; 4]>(previous, own, FLOWS_V4.name, (last, age), &mut pass)?;
    shift_family::<[u8; 16]>(previous, own, FLOWS_V6.name, (last, age), &mut pass)?;
    Ok(pass)
}

fn shift_family<A: Address>(
    previous: &Generation,
    own: &Generation,
    name: &str,
    (last, age): (bool, Age),
    pass: &mut Pass,
) -> Result<()>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    let Some(mover) = Mover::<A>::open(previous, own, name)? else {
        if let Ok(flows) = BytesMap::open(&previous.map(name)) {
            // They stay where they are, until they end.
            flows.scan(&mut |_, _| pass.left += 1)?;
        }
        return Ok(());
    };
    let mut copied = Copied::default();
    let shifted = mover.halves.each(|key, _| {
        // Unless it is.
        pass.left += 1;
        if mover.shift(key, last, age, &mut copied)? {
            pass.left -= 1;
            pass.moved += 1;
        }
        if copied.halves.len() >= BATCH {
            mover.settle(&mut copied)
        } else {
            Ok(())
        }
    });
    shifted
        .and_then(|()| mover.settle(&mut copied))
        .with_context(|| format!("table {name}"))
}

/// Whether a flow is too long without packets, or closed for longer than its last ones take.
fn is_over<A: Address>(half: &Half<A>, twin: Option<&Half<A>>, state: State, age: Age) -> bool {
    let twin = twin.map(|twin| &twin.value);
    flow::is_expired(half.key.protocol, &half.value, twin, age.now, &age.timeouts)
        || state == State::Closing && !flow::is_young(&half.value, twin, age.now)
}

/// How many halves are in both tables at a time: to wait for programs takes some 20 ms.
const BATCH: usize = 1 << 14;

/// Halves that are in both tables.
struct Copied<A> {
    /// They, and whether this generation had none under the key before
    halves: Vec<(Half<A>, bool)>,
    keys: HashSet<FlowKey<A>>,
}

impl<A> Default for Copied<A> {
    fn default() -> Self {
        Self {
            halves: Vec::new(),
            keys: HashSet::new(),
        }
    }
}

struct Mover<A> {
    halves: Halves<A>,
    /// Entries that may still be moved of flows that did not get anywhere, or are over: until the table is under pressure. Without
    /// room for new flows, these would crowd each other out before they are answered
    room: Cell<u64>,
}

impl<A: Address> Mover<A>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    /// Between tables of this name; `None` if the older one can't be read, or not be converted.
    fn open(from: &Generation, to: &Generation, name: &str) -> Result<Option<Self>> {
        let Some(halves) = Halves::open(from, to, name)? else {
            return Ok(None);
        };
        let (table, mut entries) = (&halves.to, 0);
        table.scan(&mut |_, _| entries += 1)?;
        Ok(Some(Self {
            room: Cell::new(collect::ease(entries, table.info().max_entries)),
            halves,
        }))
    }

    /// Begins to move the flow of an entry, both halves; `false` if it has to stay. One half alone would tell little of the flow to
    /// eviction and to the collector, which look into this generation's table.
    fn shift(&self, key: &[u8], last: bool, age: Age, copied: &mut Copied<A>) -> io::Result<bool> {
        let Some(half) = self.halves.half(key)? else {
            // Moved with its twin, or over.
            return Ok(true);
        };
        if copied.keys.contains(&half.key) {
            return Ok(true);
        }
        let (twin, state) = self.halves.twin(&half)?;
        let is_young = flow::is_young(&half.value, twin.map(|twin| twin.value).as_ref(), age.now);
        let unresolved = |half: &Half<A>| half.value.flags & UNRESOLVED != 0;
        if !last && (unresolved(&half) || twin.as_ref().is_some_and(unresolved)) {
            return Ok(false);
        }
        if is_over(&half, twin.as_ref(), state, age) || self.room.get() == 0 && state.is_expendable() && !is_young {
            return self.forget(&half, twin.as_ref()).map(|()| true);
        }
        if self.room.get() == 0 && state.is_expendable() {
            return Ok(false);
        }
        // The reply's half first: should there be no room for the other, it passes for one of an established flow.
        let mut halves = [Some(half), twin];
        halves.sort_by_key(|half| half.is_some_and(|half| half.value.flags & REPLY == 0));
        for half in halves.into_iter().flatten() {
            if !self.copy(half, copied)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Forgets the flow of an entry if it is over.
    fn sweep(&self, key: &[u8], age: Age) -> io::Result<()> {
        let Some(half) = self.halves.half(key)? else {
            return Ok(());
        };
        let (twin, state) = self.halves.twin(&half)?;
        if is_over(&half, twin.as_ref(), state, age) {
            self.forget(&half, twin.as_ref())?;
        }
        Ok(())
    }

    /// Removes both halves of a flow from the previous generation's table, unless a packet has changed the first.
    fn forget(&self, half: &Half<A>, twin: Option<&Half<A>>) -> io::Result<()> {
        let forgotten = self.forget_half(half)?;
        match twin {
            Some(twin) if forgotten => self.forget_half(twin).map(drop),
            _ => Ok(()),
        }
    }

    /// Removes a half from the previous generation's table, unless a packet has changed it since it was read; whether it is gone.
    fn forget_half(&self, half: &Half<A>) -> io::Result<bool> {
        let (from, key) = (&self.halves.from, raw::to_bytes(&half.key));
        let Some(taken) = from.take(&key)? else {
            return Ok(true);
        };
        let forgotten = self.halves.converted(&taken) == Some(half.value);
        if !forgotten {
            from.set(&key, &taken, Update::New)?;
        }
        Ok(forgotten)
    }

    /// Copies an entry if its flow is established; `false` if there is no room.
    fn copy_established(&self, key: &[u8]) -> io::Result<bool> {
        let Some(half) = self.halves.half(key)? else {
            return Ok(true);
        };
        if self.halves.twin(&half)?.1.is_expendable() {
            return Ok(true);
        }
        match self.halves.to.set(key, &raw::to_bytes(&half.value), Update::New) {
            Err(error) if raw::is_full(&error) => Ok(false),
            copied => copied.map(|_| true),
        }
    }

    /// Copies one half; `false` if there is no room.
    fn copy(&self, half: Half<A>, copied: &mut Copied<A>) -> io::Result<bool> {
        let (key, value) = (raw::to_bytes(&half.key), raw::to_bytes(&half.value));
        let inserted = match self.halves.to.set(&key, &value, Update::New) {
            Err(error) if raw::is_full(&error) => return Ok(false),
            inserted => inserted?,
        };
        self.room.set(self.room.get().saturating_sub(1));
        copied.keys.insert(half.key);
        copied.halves.push((half, inserted));
        Ok(true)
    }

    /// Takes what is copied out of the previous generation's table, when no program looks there any more that has not found it here.
    fn settle(&self, copied: &mut Copied<A>) -> io::Result<()> {
        if copied.halves.is_empty() {
            return Ok(());
        }
        raw::wait_for_programs();
        let Copied { halves, .. } = std::mem::take(copied);
        halves
            .iter()
            .try_for_each(|(half, inserted)| self.take(half, *inserted))
    }

    /// Takes one half out of the previous generation's table, and what packets have changed there since it was copied.
    fn take(&self, half: &Half<A>, inserted: bool) -> io::Result<()> {
        let Halves { from, to, .. } = &self.halves;
        let key = raw::to_bytes(&half.key);
        let Some(value) = from.take(&key)?.and_then(|value| self.halves.converted(&value)) else {
            return Ok(());
        };
        let present = to.get(&key)?;
        let Some(present) = present.and_then(|present| raw::from_bytes::<FlowValue<A>>(&present)) else {
            return Ok(());
        };
        let settled = if same_rewrite(&present, &value) {
            FlowValue {
                history: present.history | value.history,
                last_seen: present.last_seen.max(value.last_seen),
                ..present
            }
        } else if inserted && same_rewrite(&present, &half.value) {
            // The previous programs had just opened another flow.
            value
        } else {
            // Another flow has the key here, and counts.
            present
        };
        if settled != present {
            to.set(&key, &raw::to_bytes(&settled), Update::Present)?;
        }
        Ok(())
    }
}
