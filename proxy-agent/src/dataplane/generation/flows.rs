//! Moving flows from the previous generation's tables to this one's while packets pass.
//!
//! An entry is in one of the two tables at least, and the programs look into this generation's first: so a flow is never without
//! one. Its halves may be in different tables for a moment, for each finds its way by itself.

use std::io;

use anyhow::{Context as _, Result};
use proxy_common::{
    datapath::flow::same_rewrite,
    layout::{
        FlowValue, Plain,
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
    let mover = Mover::<A> {
        pair,
        keeps_ids: keeps_ids(previous, own),
        _family: std::marker::PhantomData,
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

struct Mover<A> {
    pair: Pair,
    keeps_ids: bool,
    _family: std::marker::PhantomData<A>,
}

impl<A: Address> Mover<A>
where
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
        let inserted = match to.set(&key, &raw::to_bytes(&value), Update::New) {
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => return Ok(false),
            inserted => inserted?,
        };
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
