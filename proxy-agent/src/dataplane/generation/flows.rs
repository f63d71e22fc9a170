//! Moving flows from the previous generation's tables to this one's while packets pass.
//!
//! An entry is in one of the two tables at least, and the programs look into this generation's first: so a flow is never without
//! one. Its halves may be in different tables for a moment, for each finds its way by itself.

use std::{cell::Cell, io, marker::PhantomData};

use anyhow::{Context as _, Result};
use proxy_common::{
    datapath::flow::{self, State, same_rewrite},
    layout::{
        FlowKey, FlowValue, Plain,
        flow_flags::UNRESOLVED,
        tables::{FLOWS_V4, FLOWS_V6},
    },
};

use super::{
    Generation,
    carry::{Pair, keeps_ids},
};
use crate::dataplane::{
    address::Address,
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

/// Moves all flows. While the previous generation may still be choosing the port of a masquerade, it is left to it, unless
/// this is the `last` pass.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn shift(previous: &Generation, own: &Generation, last: bool) -> Result<Pass> {
    let mut pass = Pass::default();
    shift_family::<[u8; 4]>(previous, own, FLOWS_V4.name, last, &mut pass)?;
    shift_family::<[u8; 16]>(previous, own, FLOWS_V6.name, last, &mut pass)?;
    Ok(pass)
}

fn shift_family<A: Address>(
    previous: &Generation,
    own: &Generation,
    name: &str,
    last: bool,
    pass: &mut Pass,
) -> Result<()>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    let Ok(flows) = BytesMap::open(&previous.map(name)) else {
        return Ok(());
    };
    let Some(pair) = Pair::open(previous, own, name).with_context(|| format!("table {name}"))? else {
        // They stay where they are, until they end.
        flows.scan(&mut |_, _| pass.left += 1)?;
        return Ok(());
    };
    let mut entries = 0;
    pair.to.scan(&mut |_, _| entries += 1)?;
    let mover = Mover::<A> {
        room: Cell::new(most_expendable(pair.to.info().max_entries).saturating_sub(entries)),
        pair,
        keeps_ids: keeps_ids(previous, own),
        _family: PhantomData,
    };
    let mut failed = None;
    flows.scan(&mut |key, value| match mover.shift(key, value, last) {
        Ok(true) => pass.moved += 1,
        Ok(false) => pass.left += 1,
        Err(error) => {
            pass.left += 1;
            failed = Some(error);
        }
    })?;
    failed.map_or(Ok(()), Err).with_context(|| format!("table {name}"))
}

/// How many entries a table may have for flows to be moved there that did not get anywhere, or are over. Without room for new flows, these
/// would crowd each other out before they are answered: none of those that were moved is known to eviction.
const fn most_expendable(max_entries: u32) -> usize {
    (max_entries / 4 * 3) as usize
}

struct Mover<A> {
    pair: Pair,
    keeps_ids: bool,
    /// Entries of such flows that may still be moved
    room: Cell<usize>,
    _family: PhantomData<A>,
}

impl<A: Address> Mover<A>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    fn converted(&self, value: &[u8]) -> Option<FlowValue<A>> {
        let mut value: FlowValue<A> = raw::from_bytes(&self.pair.value.apply(value))?;
        if !self.keeps_ids {
            // Nobody's: the id may be another's by now.
            value.service = 0;
        }
        Some(value)
    }

    /// Whether the flow of an entry could be given up for a new one: by the other half too, wherever that is.
    fn is_expendable(&self, key: &[u8], value: &FlowValue<A>) -> io::Result<bool> {
        let Some(key) = raw::from_bytes::<FlowKey<A>>(key) else {
            return Ok(false);
        };
        let twin_key = raw::to_bytes(&flow::twin_key(&key, value));
        let Pair { from, to, .. } = &self.pair;
        let twin = match from.get(&twin_key)? {
            Some(twin) => self.converted(&twin),
            None => to.get(&twin_key)?.and_then(|twin| raw::from_bytes(&twin)),
        };
        let twin = twin.filter(|twin| same_rewrite(twin, &flow::twin_value(&key, value)));
        Ok(State::of(key.protocol, value, twin.as_ref()).is_expendable())
    }

    /// Moves one entry; `false` if it has to stay.
    fn shift(&self, old_key: &[u8], old_value: &[u8], last: bool) -> io::Result<bool> {
        let Pair { from, to, .. } = &self.pair;
        let Some(value) = self.converted(old_value) else {
            return Ok(false);
        };
        if value.flags & UNRESOLVED != 0 && !last {
            return Ok(false);
        }
        let key = self.pair.key.apply(old_key);
        if self.room.get() == 0 && self.is_expendable(&key, &value)? {
            return Ok(false);
        }
        let inserted = match to.set(&key, &raw::to_bytes(&value), Update::New) {
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => return Ok(false),
            inserted => inserted?,
        };
        self.room.set(self.room.get().saturating_sub(1));
        // A packet may have changed it since it was read.
        let Some(value) = from.take(old_key)?.and_then(|value| self.converted(&value)) else {
            return Ok(true);
        };
        let present = to.get(&key)?;
        let Some(present) = present.and_then(|present| raw::from_bytes::<FlowValue<A>>(&present)) else {
            return Ok(true);
        };
        let settled = if same_rewrite(&present, &value) {
            FlowValue {
                history: present.history | value.history,
                last_seen: present.last_seen.max(value.last_seen),
                ..present
            }
        } else if inserted {
            value
        } else {
            // Another flow has the key here, and counts.
            present
        };
        if settled != present {
            to.set(&key, &raw::to_bytes(&settled), Update::Present)?;
        }
        Ok(true)
    }
}
