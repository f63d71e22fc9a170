//! The ring of openings in a new generation: it begins with the flows that are carried over and may be given up for new ones.
//! Otherwise a table that is full of them would refuse every new one until the collector's next round.

use anyhow::{Context as _, Result};
use proxy_common::layout::{
    FlowKey, FlowValue, INGRESS, Opening, OpeningEnds, Plain, TableSpec, flow_flags,
    tables::{FLOWS_V4, FLOWS_V6, OPENING_ENDS_V4, OPENING_ENDS_V6, OPENINGS_V4, OPENINGS_V6},
    usable_slots,
};

use super::{
    Generation,
    halves::{Half, Halves},
};
use crate::dataplane::{
    address::Address,
    raw::{self, BytesMap, Update},
};

/// Halves that speak for no flow of a client's, or for one that conntrack has.
const OTHERS: u8 = flow_flags::REPLY | flow_flags::MASQUERADE | flow_flags::CONNTRACK;

/// Makes the ring hold the expendable flows of both generations, that used least recently first. To be called while the
/// programs of this generation follow: they write there as well.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn carry(previous: &Generation, own: &Generation) -> Result<()> {
    carry_family::<[u8; 4]>(previous, own, [&FLOWS_V4, &OPENINGS_V4, &OPENING_ENDS_V4])?;
    carry_family::<[u8; 16]>(previous, own, [&FLOWS_V6, &OPENINGS_V6, &OPENING_ENDS_V6])
}

fn carry_family<A: Address>(
    previous: &Generation,
    own: &Generation,
    [flows, openings, ends]: [&TableSpec; 3],
) -> Result<()>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
    Opening<A>: Plain,
{
    let mut expendable = Vec::new();
    for generation in [previous, own] {
        // Flows that can't be read stay where they are.
        if let Some(halves) = Halves::open(generation, own, flows.name)? {
            find(&halves, &mut expendable).with_context(|| format!("table {}", flows.name))?;
        }
    }
    expendable.sort_unstable_by_key(|(last_seen, _)| *last_seen);
    let ring = BytesMap::open(&own.map(openings.name))?;
    let slots = usable_slots(ring.info().max_entries);
    let surplus = expendable.len().saturating_sub(slots as usize);
    let mut number = 0_u32;
    for (last_seen, key) in &expendable[surplus..] {
        let opening = raw::to_bytes(&Opening::new(key, *last_seen));
        ring.set(&number.to_ne_bytes(), &opening, Update::Any)
            .with_context(|| format!("table {}", openings.name))?;
        number += 1;
    }
    let held = OpeningEnds {
        head: number.into(),
        ..OpeningEnds::default()
    };
    BytesMap::open(&own.map(ends.name))
        .and_then(|map| map.set(&0_u32.to_ne_bytes(), &raw::to_bytes(&held), Update::Any))
        .with_context(|| format!("table {}", ends.name))?;
    Ok(())
}

/// Adds the clients' halves of expendable flows, and when they were used last.
fn find<A: Address>(halves: &Halves<A>, expendable: &mut Vec<(u32, FlowKey<A>)>) -> std::io::Result<()>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    halves.each(|key, value| {
        let Some(half) = halves.of(key, value) else {
            return Ok(());
        };
        let Half { key, value } = &half;
        if key.direction == INGRESS && value.flags & OTHERS == 0 && halves.twin(&half)?.1.is_expendable() {
            expendable.push((value.last_seen, *key));
        }
        Ok(())
    })
}
