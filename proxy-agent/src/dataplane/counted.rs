//! Counters by key, and with them what previous generations counted: the programs write the one table, and the agent the other.

use std::{collections::HashMap, hash::Hash, iter::Sum};

use super::table::{BoxedTable, Table, TableError};

/// Both tables as one.
pub(super) struct Counted<K, V> {
    /// What the programs count
    pub(super) now: BoxedTable<K, V>,
    /// What previous ones had counted
    pub(super) before: BoxedTable<K, V>,
}

impl<K: Copy + Eq + Hash, V: Sum> Table<K, V> for Counted<K, V> {
    fn max_entries(&self) -> u32 {
        self.now.max_entries()
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let (now, before) = (self.now.get(key)?, self.before.get(key)?);
        Ok((now.is_some() || before.is_some()).then(|| now.into_iter().chain(before).sum()))
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        self.before.remove(key)?;
        self.now.insert(key, value)
    }

    fn remove(&mut self, key: &K) -> Result<bool, TableError> {
        let before = self.before.remove(key)?;
        Ok(self.now.remove(key)? || before)
    }

    fn scan(&self, each: &mut dyn FnMut(K, V)) -> Result<(), TableError> {
        let mut before: HashMap<K, V> = self.before.entries()?.into_iter().collect();
        self.now.scan(&mut |key, value| {
            let sum = [Some(value), before.remove(&key)].into_iter().flatten().sum();
            each(key, sum);
        })?;
        for (key, value) in before {
            each(key, value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{Counter, RefusalKey};

    use super::*;
    use crate::dataplane::memory::Memory;

    #[test]
    fn counters_are_added_up() {
        let key = |reason| RefusalKey { service: 1, reason };
        let counter = |packets| Counter {
            packets,
            bytes: 10 * packets,
        };
        let (now, before) = (Memory::default(), Memory::default());
        let mut counted = Counted {
            now: now.tables().refusals,
            before: before.tables().refusals,
        };
        for (table, reason, packets) in [(&now, 8, 1), (&now, 9, 2), (&before, 9, 30), (&before, 10, 4)] {
            table
                .refusals
                .clone()
                .insert(&key(reason), &counter(packets))
                .expect("room");
        }
        let sums = [(8, 1), (9, 32), (10, 4)].map(|(reason, packets)| (key(reason), counter(packets)));
        let mut entries = counted.entries().expect("readable");
        entries.sort_unstable_by_key(|(key, _)| *key);
        assert_eq!(entries, sums);
        for (key, sum) in sums {
            assert_eq!(counted.get(&key).expect("readable"), Some(sum));
        }
        assert_eq!(counted.get(&key(11)).expect("readable"), None);
        counted.insert(&key(9), &counter(5)).expect("room");
        assert_eq!(counted.get(&key(9)).expect("readable"), Some(counter(5)));
        for reason in [8, 9, 10] {
            assert!(counted.remove(&key(reason)).expect("removable"));
        }
        assert!(!counted.remove(&key(8)).expect("removable") && counted.entries().expect("readable").is_empty());
    }
}
