//! Carrying tables over: what the agent and the programs have written in the previous generation's layout, in this one's.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use anyhow::{Context as _, Result};
use proxy_common::layout::{
    Counter, FlowKey, INGRESS, Plain, ServiceCounter, TableKind, TableSpec,
    tables::{
        self, ADDRESSES_V4, ADDRESSES_V6, AFFINITY_V4, AFFINITY_V6, DEVICES, ENDPOINT_COUNTS, ENDPOINTS_BEFORE,
        FLOWS_V4, FLOWS_V6, FRAGMENTS_V4, FRAGMENTS_V6, HELD_FRAGMENTS, REASON_COUNTS, REASONS_BEFORE, REFUSALS,
        REFUSALS_BEFORE, SERVICE_COUNTS, SERVICE_NAMES, SERVICES_BEFORE, SOCKETS_V4, SOCKETS_V6,
    },
};

use super::{
    Generation,
    record::{Conversion, Types},
};
use crate::dataplane::{
    address::Address,
    programmer::{Programmer, filter::bit_of},
    raw::{self, BytesMap, Update},
};

/// Tables that are not carried: those of flows are moved later; what becomes of fragments is forgotten in seconds; what the
/// node is, the agent sees; counters are added up.
const NOT_CARRIED: [TableSpec; 13] = [
    FLOWS_V4,
    FLOWS_V6,
    FRAGMENTS_V4,
    FRAGMENTS_V6,
    HELD_FRAGMENTS,
    DEVICES,
    ADDRESSES_V4,
    ADDRESSES_V6,
    SERVICES_BEFORE,
    REFUSALS,
    REFUSALS_BEFORE,
    ENDPOINT_COUNTS,
    ENDPOINTS_BEFORE,
];

/// One table in two generations, and how to get from one to the other.
pub(super) struct Pair {
    pub(super) from: BytesMap,
    pub(super) to: BytesMap,
    pub(super) key: Conversion,
    pub(super) value: Conversion,
}

impl Pair {
    /// The table called `name`; `None` if the previous generation has none that can be read, or has it in a layout that can't
    /// be converted.
    pub(super) fn open(previous: &Generation, own: &Generation, name: &str) -> io::Result<Option<Self>> {
        let Ok(from) = BytesMap::open(&previous.map(name)) else {
            return Ok(None);
        };
        let to = BytesMap::open(&own.map(name))?;
        let table = |generation, map| Types::of(generation)?.table(name, map);
        let (Some(old), Some(new)) = (table(previous, &from), table(own, &to)) else {
            return Ok(None);
        };
        let conversions = Conversion::exact(&old.0, &new.0).zip(Conversion::between(&old.1, &new.1));
        Ok(conversions.map(|(key, value)| Self { from, to, key, value }))
    }

    /// Copies every entry, as far as `update` lets it replace what is there. Gives how many didn't fit.
    fn copy(&self, update: Update) -> io::Result<usize> {
        let mut entries = Vec::new();
        self.from
            .scan(&mut |key, value| entries.push((self.key.apply(key), self.value.apply(value))))?;
        let mut left = 0;
        for (key, value) in entries {
            match self.to.set(&key, &value, update) {
                Err(error) if raw::is_full(&error) => left += 1,
                set => {
                    set?;
                }
            }
        }
        Ok(left)
    }
}

/// Carries over what a generation knows, but for flows and counters. Says in the log what it can't.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn tables(previous: &Generation, own: &Generation) -> Result<()> {
    let written_by_agent = |spec: &&TableSpec| {
        let keyed = !matches!(
            spec.kind,
            TableKind::Array | TableKind::PerCpuArray | TableKind::ArrayOfRings
        );
        keyed && !NOT_CARRIED.contains(spec)
    };
    for spec in tables::ALL.iter().filter(written_by_agent) {
        let pair = Pair::open(previous, own, spec.name).with_context(|| format!("table {}", spec.name))?;
        let Some(pair) = pair else {
            tracing::info!(
                "table {} is not carried over: there is none, or its layout is too different",
                spec.name
            );
            continue;
        };
        let left = pair
            .copy(Update::New)
            .with_context(|| format!("cannot carry table {} over", spec.name))?;
        if left > 0 {
            tracing::warn!(
                "table {} has no room for {left} of the entries it had before",
                spec.name
            );
        }
    }
    Ok(())
}

/// Carries over what sockets know, as far as it isn't there yet.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn sockets(previous: &Generation, own: &Generation) -> Result<()> {
    copy_all(previous, own, [SOCKETS_V4, SOCKETS_V6], Update::New)
}

/// Carries over the affinity of clients once more: this generation has written none while it followed.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn affinity(previous: &Generation, own: &Generation) -> Result<()> {
    copy_all(previous, own, [AFFINITY_V4, AFFINITY_V6], Update::Any)
}

fn copy_all(previous: &Generation, own: &Generation, specs: [TableSpec; 2], update: Update) -> Result<()> {
    for spec in specs {
        if let Some(pair) = Pair::open(previous, own, spec.name).with_context(|| format!("table {}", spec.name))? {
            // None is too many for a table that forgets the oldest.
            pair.copy(update)
                .with_context(|| format!("cannot carry table {} over", spec.name))?;
        }
    }
    Ok(())
}

/// Whether the ids of service ports mean in the new generation what they meant in the previous one.
pub(super) fn keeps_ids(previous: &Generation, own: &Generation) -> bool {
    matches!(Pair::open(previous, own, SERVICE_NAMES.name), Ok(Some(_)))
}

/// Makes the counters that stand before this generation's own those of the previous one, whatever was there: to be called as
/// long as that counts.
///
/// # Errors
/// If a table can't be read or written.
pub(super) fn counters(previous: &Generation, own: &Generation) -> Result<()> {
    add_up::<Counter>(previous, own, &REASON_COUNTS, &REASONS_BEFORE).context("counters by reason")?;
    if keeps_ids(previous, own) {
        add_up::<ServiceCounter>(previous, own, &SERVICE_COUNTS, &SERVICES_BEFORE).context("counters by service")?;
        add_up_entries::<Counter>(previous, own, [&REFUSALS, &REFUSALS_BEFORE])
            .context("refused packets by service")?;
        add_up_entries::<ServiceCounter>(previous, own, [&ENDPOINT_COUNTS, &ENDPOINTS_BEFORE])
            .context("counters by endpoint")?;
    }
    Ok(())
}

fn add_up<C: Plain + Default + std::iter::Sum>(
    previous: &Generation,
    own: &Generation,
    counts: &TableSpec,
    before: &TableSpec,
) -> Result<()> {
    let Some(counted) = Pair::open(previous, own, counts.name)? else {
        tracing::info!(
            "the counters of table {} begin anew: its layout is too different",
            counts.name
        );
        return Ok(());
    };
    let older = Pair::open(previous, own, before.name)?;
    let to = BytesMap::open(&own.map(before.name))?;
    let size = counted.from.info().value_size as usize;
    let mut failed = None;
    counted.from.scan(&mut |key, values| {
        let of_cpus = values
            .chunks_exact(size.next_multiple_of(8))
            .map(|value| &value[..size]);
        let converted = of_cpus.filter_map(|value| raw::from_bytes::<C>(&counted.value.apply(value)));
        let older = older.as_ref().and_then(|older| {
            let value = older.from.get(key).ok()??;
            raw::from_bytes::<C>(&older.value.apply(&value))
        });
        let sum = raw::to_bytes(&converted.chain(older).sum::<C>());
        if sum.iter().any(|&byte| byte != 0)
            && let Err(error) = to.set(key, &sum, Update::Any)
        {
            failed = Some(error);
        }
    })?;
    failed
        .map_or(Ok(()), Err)
        .with_context(|| format!("table {}", before.name))
}

/// [`add_up`] of tables in which only what was counted has an entry: what the programs count, and what those before them did. What
/// has no room is left out.
fn add_up_entries<C: Plain + std::iter::Sum>(
    previous: &Generation,
    own: &Generation,
    tables: [&TableSpec; 2],
) -> Result<()> {
    let mut counted: HashMap<Vec<u8>, Vec<C>> = HashMap::new();
    for spec in tables {
        // A generation that did not count this yet has none.
        if let Some(pair) = Pair::open(previous, own, spec.name)? {
            pair.from.scan(&mut |key, value| {
                let counter = raw::from_bytes::<C>(&pair.value.apply(value));
                counted.entry(pair.key.apply(key)).or_default().extend(counter);
            })?;
        }
    }
    let [_, before] = tables;
    let to = BytesMap::open(&own.map(before.name))?;
    for (key, counters) in counted {
        match to.set(&key, &raw::to_bytes(&counters.into_iter().sum::<C>()), Update::Any) {
            Err(error) if raw::is_full(&error) => {}
            set => _ = set.with_context(|| format!("table {}", before.name))?,
        }
    }
    Ok(())
}

/// The filters' bits that the flows of a generation need, which are known by their keys alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reach {
    frontends: HashSet<u32>,
    backends: HashSet<u32>,
}

impl Reach {
    /// Of all flows of a generation.
    pub(super) fn of(generation: &Generation) -> io::Result<Self> {
        let mut reach = Self::default();
        reach.add::<[u8; 4]>(generation, &FLOWS_V4)?;
        reach.add::<[u8; 16]>(generation, &FLOWS_V6)?;
        Ok(reach)
    }

    fn add<A: Address>(&mut self, generation: &Generation, spec: &TableSpec) -> io::Result<()>
    where
        FlowKey<A>: Plain,
    {
        let Ok(flows) = BytesMap::open(&generation.map(spec.name)) else {
            return Ok(());
        };
        flows.scan(&mut |key, _| {
            let Some(key) = raw::from_bytes::<FlowKey<A>>(key) else {
                return;
            };
            // As for flows of this generation (`collect`): a hook looks at both addresses.
            let bits = if key.direction == INGRESS {
                &mut self.frontends
            } else {
                &mut self.backends
            };
            bits.extend([bit_of(&key.source), bit_of(&key.destination)]);
        })
    }

    /// Sets the bits.
    pub(super) fn admit(&self, programmer: &mut Programmer, now: std::time::Duration) -> Result<()> {
        programmer
            .admit(&self.frontends, &self.backends, now)
            .context("cannot set filter bits for flows of the previous generation")
    }
}
