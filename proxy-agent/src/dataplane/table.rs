//! The narrow door to the tables: what the agent does with a BPF map, and nothing else. Behind it stand the pinned maps
//! ([`super::kernel`]) or their in-memory twin ([`super::memory`]).

use std::io;

use proxy_common::layout::{
    AffinityKey, AffinityValue, Backend, Counter, Device, EndpointKey, FlowKey, FlowValue, FragmentKey, FragmentValue,
    HeldFragment, HeldKey, Member, MemberKey, Opening, OpeningEnds, RefusalKey, ServiceCounter, ServiceKey,
    ServiceName, ServiceRanges, ServiceValue, SlotKey, SocketKey, SocketValue, SourceKey,
};

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// No room for another entry
    #[error("table {table} is full: it has room for {limit} entries")]
    Full {
        /// Name of the table
        table: &'static str,
        /// Its number of entries
        limit: u32,
    },
    /// The kernel refused
    #[error("table {table}: {source}")]
    Kernel {
        /// Name of the table
        table: &'static str,
        /// What the kernel said
        source: io::Error,
    },
}

/// One table.
pub trait Table<K, V>: Send {
    /// The number of entries it has room for.
    fn max_entries(&self) -> u32;

    /// The value of a key. In a per-CPU table it is the sum over all CPUs.
    fn get(&self, key: &K) -> Result<Option<V>, TableError>;

    /// Sets the value of a key. In a per-CPU table the sum over all CPUs is then `value`.
    fn insert(&mut self, key: &K, value: &V) -> Result<(), TableError>;

    /// Removes a key and says whether it was there. Entries of an array can't be removed.
    fn remove(&mut self, key: &K) -> Result<bool, TableError>;

    /// Removes a key if `is_removed` says so of its value, and tells whether it did: the datapath may have made another
    /// entry under it since the value was read.
    fn remove_if(&mut self, key: &K, is_removed: &dyn Fn(&V) -> bool) -> Result<bool, TableError> {
        Ok(self.get(key)?.is_some_and(|value| is_removed(&value)) && self.remove(key)?)
    }

    /// Shows every entry; those that the datapath makes or removes meanwhile may be missed.
    fn scan(&self, each: &mut dyn FnMut(K, V)) -> Result<(), TableError>;

    /// Every entry, in no order.
    fn entries(&self) -> Result<Vec<(K, V)>, TableError> {
        let mut entries = Vec::new();
        self.scan(&mut |key, value| entries.push((key, value)))?;
        Ok(entries)
    }
}

/// Some table behind the door.
pub type BoxedTable<K, V> = Box<dyn Table<K, V>>;

/// The tables of one address family.
pub struct FamilyTables<A> {
    /// Frontends
    pub services: BoxedTable<ServiceKey<A>, ServiceValue>,
    /// Endpoint sets
    pub slots: BoxedTable<SlotKey, Backend<A>>,
    /// Flows
    pub flows: BoxedTable<FlowKey<A>, FlowValue<A>>,
    /// Flows opened last, by slot
    pub openings: BoxedTable<u32, Opening<A>>,
    /// Where `openings` begins and ends: one entry
    pub opening_ends: BoxedTable<u32, OpeningEnds>,
    /// Which endpoint a client used last
    pub affinity: BoxedTable<AffinityKey<A>, AffinityValue<A>>,
    /// What sockets are connected to or send to
    pub sockets: BoxedTable<SocketKey<A>, SocketValue<A>>,
    /// What becomes of fragments
    pub fragments: BoxedTable<FragmentKey<A>, FragmentValue<A>>,
    /// Endpoints that affinity may lead to
    pub members: BoxedTable<MemberKey<A>, Member>,
    /// Ranges of clients; `get` gives the value of the longest range that holds the key's
    pub sources: BoxedTable<SourceKey<A>, u32>,
    /// The node's own addresses
    pub addresses: BoxedTable<A, u32>,
}

/// All tables.
pub struct Tables {
    /// Those of IPv4
    pub v4: FamilyTables<[u8; 4]>,
    /// Those of IPv6
    pub v6: FamilyTables<[u8; 16]>,
    /// Fragments that wait for the first one of their packet
    pub held_fragments: BoxedTable<HeldKey, HeldFragment>,
    /// Ranges that cluster addresses are from
    pub service_ranges: BoxedTable<u32, ServiceRanges>,
    /// Names of service ports by id
    pub service_names: BoxedTable<u32, ServiceName>,
    /// Edges by interface index
    pub devices: BoxedTable<u32, Device>,
    /// Bits of addresses that may be frontends
    pub frontend_filter: BoxedTable<u32, u64>,
    /// Bits of addresses that may be backends
    pub backend_filter: BoxedTable<u32, u64>,
    /// Packets and bytes by reason
    pub reason_counts: BoxedTable<u32, Counter>,
    /// Traffic by service id
    pub service_counts: BoxedTable<u32, ServiceCounter>,
    /// Refused packets by service id and reason
    pub refusals: BoxedTable<RefusalKey, Counter>,
    /// Traffic by endpoint, where that is asked for
    pub endpoint_counts: BoxedTable<EndpointKey, ServiceCounter>,
}
