//! The ranges of sources of one address family: those that service ports let in, and the cluster's pods.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use proxy_common::layout::SourceKey;

use crate::dataplane::{
    address::{self, Address},
    table::{BoxedTable, TableError},
};

pub(super) struct Sources<A> {
    table: BoxedTable<SourceKey<A>, u32>,
    /// By service id
    installed: HashMap<u32, BTreeSet<SourceKey<A>>>,
}

impl<A: Address> Sources<A> {
    /// Reads what is pinned.
    pub(super) fn load(table: BoxedTable<SourceKey<A>, u32>) -> Result<Self, TableError> {
        let mut installed: HashMap<_, BTreeSet<_>> = HashMap::new();
        table.scan(&mut |key, _| {
            installed.entry(key.source.service).or_default().insert(key);
        })?;
        Ok(Self { table, installed })
    }

    /// Lets these ranges in, besides those that are let in already.
    pub(super) fn add(&mut self, service: u32, ranges: &[IpNet]) -> Result<(), TableError> {
        for key in ranges.iter().filter_map(|range| address::source(service, *range)) {
            let known = self.installed.get(&service).is_some_and(|known| known.contains(&key));
            if !known {
                self.table.insert(&key, &1)?;
                self.installed.entry(service).or_default().insert(key);
            }
        }
        Ok(())
    }

    /// Lets in no other ranges than these.
    pub(super) fn keep<'a>(
        &mut self,
        service: u32,
        ranges: impl IntoIterator<Item = &'a IpNet>,
    ) -> Result<(), TableError> {
        let Some(installed) = self.installed.get_mut(&service) else {
            return Ok(());
        };
        let wanted: BTreeSet<_> = ranges
            .into_iter()
            .filter_map(|range| address::source(service, *range))
            .collect();
        for key in installed.difference(&wanted).copied().collect::<Vec<_>>() {
            self.table.remove(&key)?;
            installed.remove(&key);
        }
        if installed.is_empty() {
            self.installed.remove(&service);
        }
        Ok(())
    }
}
