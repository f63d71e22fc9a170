//! Tables on which single writes fail when a test says so: the writer is killed, or the write is refused.

use std::{
    io,
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use proxy_common::layout::{TableSpec, tables};

use super::table::{BoxedTable, FamilyTables, Table, TableError, Tables};

/// What becomes of a write that doesn't succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The writer ends before it, as if killed: it panics with [`Killed`], without a word
    Kill,
    /// There is no room
    Full,
    /// The kernel refuses it
    Refuse,
}

/// What a killed writer panics with.
#[derive(Clone, Copy, Debug)]
pub struct Killed;

/// Says what becomes of a write: its number, counted from 0 over all tables, and the name of its table.
pub type Choose = Box<dyn Fn(u64, &'static str) -> Option<Fault> + Send + Sync>;

/// Which writes fail.
pub struct Faults {
    choose: Choose,
    writes: AtomicU64,
    is_over: AtomicBool,
}

impl Faults {
    /// Those that `choose` says.
    pub fn new(choose: Choose) -> Arc<Self> {
        Arc::new(Self {
            choose,
            writes: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
        })
    }

    /// A writer that is killed before this write.
    pub fn kill_at(write: u64) -> Arc<Self> {
        Self::new(Box::new(move |number, _| (number == write).then_some(Fault::Kill)))
    }

    /// From now on all writes succeed.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }

    /// Number of writes so far, those that failed among them.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// The tables, with these faults.
    pub fn in_tables(self: &Arc<Self>, tables: Tables) -> Tables {
        Tables {
            v4: FamilyTables {
                services: self.within(tables::SERVICES_V4, tables.v4.services),
                slots: self.within(tables::SLOTS_V4, tables.v4.slots),
                members: self.within(tables::MEMBERS_V4, tables.v4.members),
                sources: self.within(tables::SOURCES_V4, tables.v4.sources),
                addresses: self.within(tables::ADDRESSES_V4, tables.v4.addresses),
                ..tables.v4
            },
            v6: FamilyTables {
                services: self.within(tables::SERVICES_V6, tables.v6.services),
                slots: self.within(tables::SLOTS_V6, tables.v6.slots),
                members: self.within(tables::MEMBERS_V6, tables.v6.members),
                sources: self.within(tables::SOURCES_V6, tables.v6.sources),
                addresses: self.within(tables::ADDRESSES_V6, tables.v6.addresses),
                ..tables.v6
            },
            service_ranges: self.within(tables::SERVICE_RANGES, tables.service_ranges),
            service_names: self.within(tables::SERVICE_NAMES, tables.service_names),
            devices: self.within(tables::DEVICES, tables.devices),
            frontend_filter: self.within(tables::FRONTEND_FILTER, tables.frontend_filter),
            backend_filter: self.within(tables::BACKEND_FILTER, tables.backend_filter),
            service_counts: self.within(tables::SERVICE_COUNTS, tables.service_counts),
            refusals: self.within(tables::REFUSALS, tables.refusals),
            endpoint_counts: self.within(tables::ENDPOINT_COUNTS, tables.endpoint_counts),
            ..tables
        }
    }

    fn within<K: 'static, V: 'static>(self: &Arc<Self>, spec: TableSpec, table: BoxedTable<K, V>) -> BoxedTable<K, V> {
        Box::new(Faulty {
            name: spec.name,
            table,
            faults: Arc::clone(self),
        })
    }
}

struct Faulty<K, V> {
    name: &'static str,
    table: BoxedTable<K, V>,
    faults: Arc<Faults>,
}

impl<K, V> Faulty<K, V> {
    fn before_write(&self) -> Result<(), TableError> {
        let number = self.faults.writes.fetch_add(1, Ordering::Relaxed);
        if self.faults.is_over.load(Ordering::Relaxed) {
            return Ok(());
        }
        match (self.faults.choose)(number, self.name) {
            None => Ok(()),
            // A panic that no hook tells: it is meant.
            Some(Fault::Kill) => resume_unwind(Box::new(Killed)),
            Some(Fault::Full) => Err(TableError::Full {
                table: self.name,
                limit: self.table.max_entries(),
            }),
            Some(Fault::Refuse) => Err(TableError::Kernel {
                table: self.name,
                source: io::Error::other("refused by the test"),
            }),
        }
    }
}

impl<K, V> Table<K, V> for Faulty<K, V> {
    fn max_entries(&self) -> u32 {
        self.table.max_entries()
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        self.table.get(key)
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        self.before_write()?;
        self.table.insert(key, value)
    }

    fn remove(&mut self, key: &K) -> Result<bool, TableError> {
        self.before_write()?;
        self.table.remove(key)
    }

    fn remove_if(&mut self, key: &K, is_removed: &dyn Fn(&V) -> bool) -> Result<bool, TableError> {
        self.before_write()?;
        self.table.remove_if(key, is_removed)
    }

    fn scan(&self, each: &mut dyn FnMut(K, V)) -> Result<(), TableError> {
        self.table.scan(each)
    }
}
