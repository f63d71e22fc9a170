//! The flows of an older generation as this one reads them: an entry, and the other half of its flow.

use std::{io, marker::PhantomData};

use anyhow::{Context as _, Result};
use proxy_common::{
    datapath::flow::{self, State, same_rewrite},
    layout::{FlowKey, FlowValue, Plain},
};

use super::{
    Generation,
    carry::{Pair, keeps_ids},
    record::Conversion,
};
use crate::dataplane::{
    address::Address,
    raw::{self, BytesMap},
};

/// An entry in this generation's layout. Keys are laid out alike in all.
#[derive(Clone, Copy)]
pub(super) struct Half<A> {
    pub(super) key: FlowKey<A>,
    pub(super) value: FlowValue<A>,
}

/// A flow table in two generations.
pub(super) struct Halves<A> {
    pub(super) from: BytesMap,
    pub(super) to: BytesMap,
    value: Conversion,
    keeps_ids: bool,
    _family: PhantomData<A>,
}

impl<A: Address> Halves<A>
where
    FlowKey<A>: Plain,
    FlowValue<A>: Plain,
{
    /// The tables of this name; `None` if the older one can't be read, or not be converted.
    ///
    /// # Errors
    /// If this generation has no such table.
    pub(super) fn open(from: &Generation, to: &Generation, name: &str) -> Result<Option<Self>> {
        let pair = Pair::open(from, to, name).with_context(|| format!("table {name}"))?;
        Ok(pair.map(
            |Pair {
                 from: older,
                 to: own,
                 value,
                 ..
             }| Self {
                from: older,
                to: own,
                value,
                keeps_ids: keeps_ids(from, to),
                _family: PhantomData,
            },
        ))
    }

    /// Looks at all entries of the older generation's.
    ///
    /// # Errors
    /// If its table can't be read; when all have been looked at, what the last look failed with that did.
    pub(super) fn each(&self, mut look: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut failed = None;
        self.from.scan(&mut |key, value| {
            if let Err(error) = look(key, value) {
                failed = Some(error);
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// A value of the older generation's.
    pub(super) fn converted(&self, value: &[u8]) -> Option<FlowValue<A>> {
        let mut value: FlowValue<A> = raw::from_bytes(&self.value.apply(value))?;
        if !self.keeps_ids {
            // Nobody's: the id may be another's by now.
            value.service = 0;
        }
        Some(value)
    }

    /// An entry of the older generation's.
    pub(super) fn of(&self, key: &[u8], value: &[u8]) -> Option<Half<A>> {
        let (key, value) = raw::from_bytes(key).zip(self.converted(value))?;
        Some(Half { key, value })
    }

    /// What the older generation has under a key now.
    ///
    /// # Errors
    /// If its table can't be read.
    pub(super) fn half(&self, key: &[u8]) -> io::Result<Option<Half<A>>> {
        Ok(self.from.get(key)?.and_then(|value| self.of(key, &value)))
    }

    /// The other half of a flow, if the older generation has it, and the state of the flow.
    ///
    /// # Errors
    /// If its table can't be read.
    pub(super) fn twin(&self, half: &Half<A>) -> io::Result<(Option<Half<A>>, State)> {
        let Half { key, value } = half;
        let twin = self.half(&raw::to_bytes(&flow::twin_key(key, value)))?;
        let twin = twin.filter(|twin| same_rewrite(&twin.value, &flow::twin_value(key, value)));
        let state = State::of(key.protocol, value, twin.map(|twin| twin.value).as_ref());
        Ok((twin, state))
    }
}
