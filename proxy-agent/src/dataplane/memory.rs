//! The tables' in-memory twin: what the planning of writes is tested with, and what a packet is traced through where no
//! kernel is involved.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use proxy_common::layout::{
    AddressBytes, AffinityKey, AffinityValue, Backend, Counter, Device, EndpointKey, FlowKey, FlowValue, FragmentKey,
    FragmentValue, HeldFragment, HeldKey, Member, MemberKey, Opening, OpeningEnds, RefusalKey, ServiceCounter,
    ServiceKey, ServiceName, ServiceRanges, ServiceValue, SlotKey, SocketKey, SocketValue, SourceKey, TableSpec,
    tables,
};

use super::table::{FamilyTables, Table, TableError, Tables};

/// Called after every write with the name of the table.
pub type Observer = Box<dyn Fn(&'static str) + Send + Sync>;

/// A table in memory; clones are handles to the same table.
pub struct MemoryTable<K, V> {
    spec: TableSpec,
    /// What an array holds where nobody has written
    untouched: Option<V>,
    entries: Arc<Mutex<HashMap<K, V>>>,
    observer: Arc<OnceLock<Observer>>,
}

impl<K, V: Copy> Clone for MemoryTable<K, V> {
    fn clone(&self) -> Self {
        Self {
            spec: self.spec,
            untouched: self.untouched,
            entries: Arc::clone(&self.entries),
            observer: Arc::clone(&self.observer),
        }
    }
}

impl<K, V> MemoryTable<K, V> {
    fn hash(spec: TableSpec, observer: &Arc<OnceLock<Observer>>) -> Self {
        Self {
            spec,
            untouched: None,
            entries: Arc::default(),
            observer: Arc::clone(observer),
        }
    }

    fn array(spec: TableSpec, observer: &Arc<OnceLock<Observer>>) -> Self
    where
        V: Default,
    {
        Self {
            untouched: Some(V::default()),
            ..Self::hash(spec, observer)
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, V>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn written(&self) {
        if let Some(observer) = self.observer.get() {
            observer(self.spec.name);
        }
    }
}

impl<K: Copy + Eq + Hash + Send, V: Copy + Send> Table<K, V> for MemoryTable<K, V> {
    fn max_entries(&self) -> u32 {
        self.spec.max_entries
    }

    fn get(&self, key: &K) -> Result<Option<V>, TableError> {
        let value = self.lock().get(key).copied();
        Ok(value.or(self.untouched))
    }

    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError> {
        let mut entries = self.lock();
        if !entries.contains_key(key) && entries.len() >= self.spec.max_entries as usize {
            return Err(TableError::Full {
                table: self.spec.name,
                limit: self.spec.max_entries,
            });
        }
        entries.insert(*key, *value);
        drop(entries);
        self.written();
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<bool, TableError> {
        let removed = self.lock().remove(key).is_some();
        if removed {
            self.written();
        }
        Ok(removed)
    }

    fn remove_if(&mut self, key: &K, is_removed: &dyn Fn(&V) -> bool) -> Result<bool, TableError> {
        let mut entries = self.lock();
        let removed = entries.get(key).is_some_and(is_removed) && entries.remove(key).is_some();
        drop(entries);
        if removed {
            self.written();
        }
        Ok(removed)
    }

    /// Untouched entries of an array are not shown.
    fn scan(&self, each: &mut dyn FnMut(K, V)) -> Result<(), TableError> {
        for (key, value) in self.lock().iter() {
            each(*key, *value);
        }
        Ok(())
    }
}

/// A trie in memory: `get` finds the longest prefix.
#[derive(Clone)]
struct MemoryTrie<A>(MemoryTable<SourceKey<A>, u32>);

impl<A: AddressBytes + Send> Table<SourceKey<A>, u32> for MemoryTrie<A> {
    fn max_entries(&self) -> u32 {
        self.0.max_entries()
    }

    fn get(&self, key: &SourceKey<A>) -> Result<Option<u32>, TableError> {
        let entries = self.0.lock();
        let holding = entries.iter().filter(|(range, _)| holds(range, key));
        let longest = holding.max_by_key(|(range, _)| range.prefix_length);
        Ok(longest.map(|(_, value)| *value))
    }

    fn insert(&mut self, key: &SourceKey<A>, value: &u32) -> Result<(), TableError> {
        self.0.insert(key, value)
    }

    fn remove(&mut self, key: &SourceKey<A>) -> Result<bool, TableError> {
        self.0.remove(key)
    }

    fn scan(&self, each: &mut dyn FnMut(SourceKey<A>, u32)) -> Result<(), TableError> {
        self.0.scan(each)
    }
}

/// Whether a range holds all that a key stands for.
fn holds<A: AddressBytes>(range: &SourceKey<A>, key: &SourceKey<A>) -> bool {
    let bits = range.prefix_length.saturating_sub(u32::BITS) as usize;
    let (mut of_range, mut of_key) = (range.source.address.as_bytes(), key.source.address.as_bytes());
    let (whole, rest) = (bits / 8, bits % 8);
    let same_service = range.source.service == key.source.service && range.prefix_length <= key.prefix_length;
    let same_bytes = of_range[..whole] == of_key[..whole];
    (of_range, of_key) = (&of_range[whole..], &of_key[whole..]);
    let same_bits = rest == 0 || (of_range[0] ^ of_key[0]) >> (8 - rest) == 0;
    same_service && same_bytes && same_bits
}

/// The in-memory tables of one family.
pub struct MemoryFamily<A> {
    /// Frontends
    pub services: MemoryTable<ServiceKey<A>, ServiceValue>,
    /// Endpoint sets
    pub slots: MemoryTable<SlotKey, Backend<A>>,
    /// Flows
    pub flows: MemoryTable<FlowKey<A>, FlowValue<A>>,
    /// Flows opened last, by slot
    pub openings: MemoryTable<u32, Opening<A>>,
    /// Where `openings` begins and ends
    pub opening_ends: MemoryTable<u32, OpeningEnds>,
    /// Which endpoint a client used last
    pub affinity: MemoryTable<AffinityKey<A>, AffinityValue<A>>,
    /// What sockets are connected to or send to
    pub sockets: MemoryTable<SocketKey<A>, SocketValue<A>>,
    /// What becomes of fragments
    pub fragments: MemoryTable<FragmentKey<A>, FragmentValue<A>>,
    /// Endpoints that affinity may lead to
    pub members: MemoryTable<MemberKey<A>, Member>,
    /// Ranges of clients
    pub sources: MemoryTable<SourceKey<A>, u32>,
    /// The node's own addresses
    pub addresses: MemoryTable<A, u32>,
}

impl<A: AddressBytes + Send> MemoryFamily<A> {
    fn tables(&self) -> FamilyTables<A> {
        FamilyTables {
            services: Box::new(self.services.clone()),
            slots: Box::new(self.slots.clone()),
            flows: Box::new(self.flows.clone()),
            openings: Box::new(self.openings.clone()),
            opening_ends: Box::new(self.opening_ends.clone()),
            affinity: Box::new(self.affinity.clone()),
            sockets: Box::new(self.sockets.clone()),
            fragments: Box::new(self.fragments.clone()),
            members: Box::new(self.members.clone()),
            sources: Box::new(MemoryTrie(self.sources.clone())),
            addresses: Box::new(self.addresses.clone()),
        }
    }
}

/// All tables in memory.
pub struct Memory {
    /// Those of IPv4
    pub v4: MemoryFamily<[u8; 4]>,
    /// Those of IPv6
    pub v6: MemoryFamily<[u8; 16]>,
    /// Fragments that wait for the first one of their packet
    pub held_fragments: MemoryTable<HeldKey, HeldFragment>,
    /// Ranges that cluster addresses are from
    pub service_ranges: MemoryTable<u32, ServiceRanges>,
    /// Names of service ports by id
    pub service_names: MemoryTable<u32, ServiceName>,
    /// Edges by interface index
    pub devices: MemoryTable<u32, Device>,
    /// Bits of addresses that may be frontends
    pub frontend_filter: MemoryTable<u32, u64>,
    /// Bits of addresses that may be backends
    pub backend_filter: MemoryTable<u32, u64>,
    /// Packets and bytes by reason
    pub reason_counts: MemoryTable<u32, Counter>,
    /// Traffic by service id
    pub service_counts: MemoryTable<u32, ServiceCounter>,
    /// Refused packets by service id and reason
    pub refusals: MemoryTable<RefusalKey, Counter>,
    /// Traffic by endpoint
    pub endpoint_counts: MemoryTable<EndpointKey, ServiceCounter>,
    observer: Arc<OnceLock<Observer>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(&|_| None)
    }
}

impl Memory {
    /// Empty tables of the usual sizes, or of those that `size` gives by name.
    pub fn new(size: &dyn Fn(&str) -> Option<u32>) -> Self {
        let observer = Arc::new(OnceLock::new());
        let sized = |spec: TableSpec| TableSpec {
            max_entries: size(spec.name).unwrap_or(spec.max_entries),
            ..spec
        };
        Self {
            v4: MemoryFamily {
                services: MemoryTable::hash(sized(tables::SERVICES_V4), &observer),
                slots: MemoryTable::hash(sized(tables::SLOTS_V4), &observer),
                flows: MemoryTable::hash(sized(tables::FLOWS_V4), &observer),
                openings: MemoryTable::array(sized(tables::OPENINGS_V4), &observer),
                opening_ends: MemoryTable::array(sized(tables::OPENING_ENDS_V4), &observer),
                affinity: MemoryTable::hash(sized(tables::AFFINITY_V4), &observer),
                sockets: MemoryTable::hash(sized(tables::SOCKETS_V4), &observer),
                fragments: MemoryTable::hash(sized(tables::FRAGMENTS_V4), &observer),
                members: MemoryTable::hash(sized(tables::MEMBERS_V4), &observer),
                sources: MemoryTable::hash(sized(tables::SOURCES_V4), &observer),
                addresses: MemoryTable::hash(sized(tables::ADDRESSES_V4), &observer),
            },
            v6: MemoryFamily {
                services: MemoryTable::hash(sized(tables::SERVICES_V6), &observer),
                slots: MemoryTable::hash(sized(tables::SLOTS_V6), &observer),
                flows: MemoryTable::hash(sized(tables::FLOWS_V6), &observer),
                openings: MemoryTable::array(sized(tables::OPENINGS_V6), &observer),
                opening_ends: MemoryTable::array(sized(tables::OPENING_ENDS_V6), &observer),
                affinity: MemoryTable::hash(sized(tables::AFFINITY_V6), &observer),
                sockets: MemoryTable::hash(sized(tables::SOCKETS_V6), &observer),
                fragments: MemoryTable::hash(sized(tables::FRAGMENTS_V6), &observer),
                members: MemoryTable::hash(sized(tables::MEMBERS_V6), &observer),
                sources: MemoryTable::hash(sized(tables::SOURCES_V6), &observer),
                addresses: MemoryTable::hash(sized(tables::ADDRESSES_V6), &observer),
            },
            held_fragments: MemoryTable::hash(sized(tables::HELD_FRAGMENTS), &observer),
            service_ranges: MemoryTable::array(sized(tables::SERVICE_RANGES), &observer),
            service_names: MemoryTable::hash(sized(tables::SERVICE_NAMES), &observer),
            devices: MemoryTable::hash(sized(tables::DEVICES), &observer),
            frontend_filter: MemoryTable::array(sized(tables::FRONTEND_FILTER), &observer),
            backend_filter: MemoryTable::array(sized(tables::BACKEND_FILTER), &observer),
            reason_counts: MemoryTable::array(sized(tables::REASON_COUNTS), &observer),
            service_counts: MemoryTable::array(sized(tables::SERVICE_COUNTS), &observer),
            refusals: MemoryTable::hash(sized(tables::REFUSALS), &observer),
            endpoint_counts: MemoryTable::hash(sized(tables::ENDPOINT_COUNTS), &observer),
            observer,
        }
    }

    /// Has `observer` called after every write from now on. There is one observer; later ones are ignored.
    pub fn observe(&self, observer: Observer) {
        let _taken = self.observer.set(observer);
    }

    /// The tables, for whoever writes through the narrow door.
    pub fn tables(&self) -> Tables {
        Tables {
            v4: self.v4.tables(),
            v6: self.v6.tables(),
            held_fragments: Box::new(self.held_fragments.clone()),
            service_ranges: Box::new(self.service_ranges.clone()),
            service_names: Box::new(self.service_names.clone()),
            devices: Box::new(self.devices.clone()),
            frontend_filter: Box::new(self.frontend_filter.clone()),
            backend_filter: Box::new(self.backend_filter.clone()),
            reason_counts: Box::new(self.reason_counts.clone()),
            service_counts: Box::new(self.service_counts.clone()),
            refusals: Box::new(self.refusals.clone()),
            endpoint_counts: Box::new(self.endpoint_counts.clone()),
        }
    }
}
