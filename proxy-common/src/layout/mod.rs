//! What stands in the BPF maps: key and value types, one file a table, and the list of all tables.
//!
//! Everything here is `#[repr(C)]` without padding, holds only integers and byte arrays, and is asserted in size, so
//! that both sides and `bpftool` agree on it. Ports are in host byte order and addresses are byte arrays in network
//! order: that is how `bpftool map dump` prints them readably.
//!
//! Invariant: this room knows nothing else. Whoever changes a type here raises [`VERSION`]. Frozen across versions, because a new
//! build takes over from an old one by them: [`FlowKey`], the names of the tables and of their fields as far as their meaning
//! stays, and table `handover`.

mod affinity;
mod counter;
mod device;
mod event;
mod filter;
mod flow;
mod fragment;
pub mod handover;
mod node;
mod opening;
mod service;
mod settings;
mod slot;
mod socket;
mod source;

pub use affinity::{AffinityKey, AffinityValue, CLUSTER_LIST, LOCAL_LIST, Member, MemberKey};
pub use counter::{Counter, EndpointKey, RefusalKey, ServiceCounter};
pub use device::{Device, HOST_DEVICE, device_flags, express, role};
pub use event::{ANSWERED, ANYBODY, AT_SOCKET, Event, LEASE, MAX_WATCHERS, NO_SERVICE, Watcher};
pub use filter::{FILTER_WORDS, filter_bit};
pub use flow::{EGRESS, FlowKey, FlowValue, INGRESS, flow_flags, history};
pub use fragment::{FragmentKey, FragmentValue, HELD_BYTES, HeldFragment, HeldKey, fate};
pub use node::{MAX_SERVICE_RANGES, Range, ServiceRanges, address_flags};
pub use opening::{Opening, OpeningEnds, opening_slots, usable_slots};
pub use service::{AFFINITY_NONE, ServiceKey, ServiceName, ServiceValue, frontend_kind, service_flags};
pub use settings::{Settings, TICK_SHIFT, Timeouts};
pub use slot::{Backend, SlotKey};
pub use socket::{SocketKey, SocketSettings, SocketValue, TO_BACKEND, TO_FRONTEND, socket_flags};
pub use source::{LOCAL_PODS, Source, SourceKey};

/// Version of all layouts together; part of the pin directory's name.
pub const VERSION: u32 = if cfg!(feature = "other-layout") { 1005 } else { 5 };

/// Bytes that the feature `other-layout` adds to some types: a build with it stands for one of another version, by which tests
/// see how one takes over from the other.
const fn added(bytes: usize) -> usize {
    if cfg!(feature = "other-layout") { bytes } else { 0 }
}

mod private {
    /// Keeps [`super::Plain`] and [`super::AddressBytes`] to the types of this room.
    pub trait Sealed {}
}

/// An address as the tables hold it: 4 or 16 bytes in network order.
pub trait AddressBytes: Copy + Eq + core::hash::Hash + core::fmt::Debug + Default + private::Sealed + 'static {
    /// The bytes, most significant first.
    fn as_bytes(&self) -> &[u8];

    /// The address as one of IPv6: an IPv4 address as `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
    fn mapped(&self) -> [u8; 16];

    /// Mixes the address into 64 bits, for hashing.
    fn fold(&self) -> u64;

    /// Whether the address is `network` under `mask`.
    fn is_in(&self, network: &Self, mask: &Self) -> bool;
}

impl private::Sealed for [u8; 4] {}
impl private::Sealed for [u8; 16] {}

impl AddressBytes for [u8; 4] {
    fn as_bytes(&self) -> &[u8] {
        self
    }

    #[inline(always)]
    fn mapped(&self) -> [u8; 16] {
        let [a, b, c, d] = *self;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn fold(&self) -> u64 {
        u64::from(u32::from_be_bytes(*self))
    }

    #[inline(always)]
    fn is_in(&self, network: &Self, mask: &Self) -> bool {
        let [address, network, mask] = [self, network, mask].map(|bytes| u32::from_ne_bytes(*bytes));
        address & mask == network
    }
}

impl AddressBytes for [u8; 16] {
    fn as_bytes(&self) -> &[u8] {
        self
    }

    #[inline(always)]
    fn mapped(&self) -> [u8; 16] {
        *self
    }

    #[inline(always)]
    fn fold(&self) -> u64 {
        let [high, low] = halves(self).map(u64::from_be);
        high.wrapping_mul(0xFF51_AFD7_ED55_8CCD).rotate_left(32) ^ low
    }

    #[inline(always)]
    fn is_in(&self, network: &Self, mask: &Self) -> bool {
        let ([high, low], [mask_high, mask_low]) = (halves(self), halves(mask));
        [high & mask_high, low & mask_low] == halves(network)
    }
}

/// The halves of an IPv6 address as they stand in memory.
#[inline(always)]
fn halves(address: &[u8; 16]) -> [u64; 2] {
    [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&address[at..at + 8]);
        u64::from_ne_bytes(half)
    })
}

/// A table type: any bit pattern is a value of it and it has no padding, so it may cross into the kernel as bytes.
pub trait Plain: Copy + private::Sealed + 'static {}

/// Declares table types plain and asserts that their size is the sum of their fields.
macro_rules! plain {
    ($($type:ty = $size:expr;)*) => {
        $(
            impl crate::layout::private::Sealed for $type {}
            impl crate::layout::Plain for $type {}
            const _: () = assert!(size_of::<$type>() == $size, "a table type has padding or changed its size");
        )*
    };
}
pub(crate) use plain;

plain! {
    u32 = 4;
    u64 = 8;
}

impl Plain for [u8; 4] {}
impl Plain for [u8; 16] {}

/// Kind of a BPF map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// `BPF_MAP_TYPE_HASH`, preallocated: written by the programs
    Hash,
    /// `BPF_MAP_TYPE_HASH` with `BPF_F_NO_PREALLOC`: written by the agent only, so memory follows use
    SparseHash,
    /// `BPF_MAP_TYPE_ARRAY`
    Array,
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`
    PerCpuArray,
    /// `BPF_MAP_TYPE_LRU_HASH`: written by the programs, which may always write
    LruHash,
    /// `BPF_MAP_TYPE_LPM_TRIE`
    LpmTrie,
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`, of ring buffers
    ArrayOfRings,
}

/// One pinned table: its name (map name and pin file name) and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Name of map and pin file, at most 15 characters (the kernel's limit)
    pub name: &'static str,
    /// Kind of map
    pub kind: TableKind,
    /// Size of a key in bytes
    pub key_size: u32,
    /// Size of a value in bytes
    pub value_size: u32,
    /// Entries in the table unless a flag says otherwise
    pub max_entries: u32,
}

const fn table<K, V>(name: &'static str, kind: TableKind, max_entries: u32) -> TableSpec {
    assert!(name.len() <= 15, "the kernel cuts map names to 15 characters");
    assert!(size_of::<K>() < u32::MAX as usize && size_of::<V>() < u32::MAX as usize);
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    TableSpec {
        name,
        kind,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries,
    }
}

/// Default size of the tables of services, slots and names.
pub const MAX_SERVICES: u32 = 65_536;
/// Default number of endpoints in all endpoint sets of one family.
pub const MAX_SLOTS: u32 = 524_288;
/// Default number of flow entries of one family; a connection takes two, a masqueraded one four.
pub const MAX_FLOWS: u32 = 524_288;
/// Default number of clients of one family whose endpoint is remembered.
pub const MAX_AFFINITIES: u32 = 65_536;
/// Default number of source ranges of one family.
pub const MAX_SOURCES: u32 = 65_536;
/// Default number of addresses of one family that sockets send to or receive from by way of a Service: one for a connected
/// socket, two for each frontend that an unconnected one sends to.
pub const MAX_SOCKETS: u32 = 65_536;
/// Default number of packets of one family whose fragments are known.
pub const MAX_FRAGMENTED: u32 = 16_384;
/// Default number of fragments that wait for the first one of their packet: 9 MiB.
pub const MAX_HELD: u32 = 1024;
/// Default number of addresses of one family that a node has.
pub const MAX_ADDRESSES: u32 = 4096;
/// Default number of service ports, by reason, whose refused packets are counted.
pub const MAX_REFUSALS: u32 = 16_384;
/// Default number of endpoints whose traffic is counted, where it is.
pub const MAX_ENDPOINTS: u32 = 16_384;

/// All tables, by name.
pub mod tables {
    use super::{
        AffinityKey, AffinityValue, Backend, Counter, Device, EndpointKey, FILTER_WORDS, FlowKey, FlowValue,
        FragmentKey, FragmentValue, HeldFragment, HeldKey, MAX_ADDRESSES, MAX_AFFINITIES, MAX_ENDPOINTS, MAX_FLOWS,
        MAX_FRAGMENTED, MAX_HELD, MAX_REFUSALS, MAX_SERVICES, MAX_SLOTS, MAX_SOCKETS, MAX_SOURCES, MAX_WATCHERS,
        Member, MemberKey, Opening, OpeningEnds, RefusalKey, ServiceCounter, ServiceKey, ServiceName, ServiceRanges,
        ServiceValue, SlotKey, SocketKey, SocketValue, SourceKey, TableKind, TableSpec, Watcher, opening_slots, table,
    };

    /// IPv4 frontends
    pub const SERVICES_V4: TableSpec =
        table::<ServiceKey<[u8; 4]>, ServiceValue>("services_v4", TableKind::SparseHash, MAX_SERVICES);
    /// IPv6 frontends
    pub const SERVICES_V6: TableSpec =
        table::<ServiceKey<[u8; 16]>, ServiceValue>("services_v6", TableKind::SparseHash, MAX_SERVICES);
    /// IPv4 endpoint sets
    pub const SLOTS_V4: TableSpec = table::<SlotKey, Backend<[u8; 4]>>("slots_v4", TableKind::SparseHash, MAX_SLOTS);
    /// IPv6 endpoint sets
    pub const SLOTS_V6: TableSpec = table::<SlotKey, Backend<[u8; 16]>>("slots_v6", TableKind::SparseHash, MAX_SLOTS);
    /// IPv4 flows
    pub const FLOWS_V4: TableSpec =
        table::<FlowKey<[u8; 4]>, FlowValue<[u8; 4]>>("flows_v4", TableKind::Hash, MAX_FLOWS);
    /// IPv6 flows
    pub const FLOWS_V6: TableSpec =
        table::<FlowKey<[u8; 16]>, FlowValue<[u8; 16]>>("flows_v6", TableKind::Hash, MAX_FLOWS);
    /// IPv4 flows opened last
    pub const OPENINGS_V4: TableSpec =
        table::<u32, Opening<[u8; 4]>>("openings_v4", TableKind::Array, opening_slots(MAX_FLOWS));
    /// IPv6 flows opened last
    pub const OPENINGS_V6: TableSpec =
        table::<u32, Opening<[u8; 16]>>("openings_v6", TableKind::Array, opening_slots(MAX_FLOWS));
    /// Where `openings_v4` begins and ends
    pub const OPENING_ENDS_V4: TableSpec = table::<u32, OpeningEnds>("opening_ends_v4", TableKind::Array, 1);
    /// Where `openings_v6` begins and ends
    pub const OPENING_ENDS_V6: TableSpec = table::<u32, OpeningEnds>("opening_ends_v6", TableKind::Array, 1);
    /// Which endpoint an IPv4 client used last
    pub const AFFINITY_V4: TableSpec =
        table::<AffinityKey<[u8; 4]>, AffinityValue<[u8; 4]>>("affinity_v4", TableKind::LruHash, MAX_AFFINITIES);
    /// Which endpoint an IPv6 client used last
    pub const AFFINITY_V6: TableSpec =
        table::<AffinityKey<[u8; 16]>, AffinityValue<[u8; 16]>>("affinity_v6", TableKind::LruHash, MAX_AFFINITIES);
    /// What IPv4 sockets are connected to or send to
    pub const SOCKETS_V4: TableSpec =
        table::<SocketKey<[u8; 4]>, SocketValue<[u8; 4]>>("sockets_v4", TableKind::LruHash, MAX_SOCKETS);
    /// What IPv6 sockets are connected to or send to
    pub const SOCKETS_V6: TableSpec =
        table::<SocketKey<[u8; 16]>, SocketValue<[u8; 16]>>("sockets_v6", TableKind::LruHash, MAX_SOCKETS);
    /// What becomes of IPv4 fragments
    pub const FRAGMENTS_V4: TableSpec =
        table::<FragmentKey<[u8; 4]>, FragmentValue<[u8; 4]>>("fragments_v4", TableKind::LruHash, MAX_FRAGMENTED);
    /// What becomes of IPv6 fragments
    pub const FRAGMENTS_V6: TableSpec =
        table::<FragmentKey<[u8; 16]>, FragmentValue<[u8; 16]>>("fragments_v6", TableKind::LruHash, MAX_FRAGMENTED);
    /// Fragments that wait, of both families
    pub const HELD_FRAGMENTS: TableSpec =
        table::<HeldKey, HeldFragment>("held_fragments", TableKind::LruHash, MAX_HELD);
    /// IPv4 endpoints that affinity may lead to
    pub const MEMBERS_V4: TableSpec =
        table::<MemberKey<[u8; 4]>, Member>("members_v4", TableKind::SparseHash, MAX_SLOTS);
    /// IPv6 endpoints that affinity may lead to
    pub const MEMBERS_V6: TableSpec =
        table::<MemberKey<[u8; 16]>, Member>("members_v6", TableKind::SparseHash, MAX_SLOTS);
    /// IPv4 ranges of clients
    pub const SOURCES_V4: TableSpec = table::<SourceKey<[u8; 4]>, u32>("sources_v4", TableKind::LpmTrie, MAX_SOURCES);
    /// IPv6 ranges of clients
    pub const SOURCES_V6: TableSpec = table::<SourceKey<[u8; 16]>, u32>("sources_v6", TableKind::LpmTrie, MAX_SOURCES);
    /// The node's own IPv4 addresses
    pub const ADDRESSES_V4: TableSpec = table::<[u8; 4], u32>("addresses_v4", TableKind::SparseHash, MAX_ADDRESSES);
    /// The node's own IPv6 addresses
    pub const ADDRESSES_V6: TableSpec = table::<[u8; 16], u32>("addresses_v6", TableKind::SparseHash, MAX_ADDRESSES);
    /// Ranges that cluster addresses are from
    pub const SERVICE_RANGES: TableSpec = table::<u32, ServiceRanges>("service_ranges", TableKind::Array, 1);
    /// Names of service ports by service id
    pub const SERVICE_NAMES: TableSpec =
        table::<u32, ServiceName>("service_names", TableKind::SparseHash, MAX_SERVICES);
    /// Edges by interface index
    pub const DEVICES: TableSpec = table::<u32, Device>("devices", TableKind::SparseHash, 16_384);
    /// Bits of addresses that may be frontends
    pub const FRONTEND_FILTER: TableSpec = table::<u32, u64>("frontend_filter", TableKind::Array, FILTER_WORDS);
    /// Bits of addresses that may be backends
    pub const BACKEND_FILTER: TableSpec = table::<u32, u64>("backend_filter", TableKind::Array, FILTER_WORDS);
    /// Packets and bytes by reason
    pub const REASON_COUNTS: TableSpec = table::<u32, Counter>("reason_counts", TableKind::PerCpuArray, 64);
    /// Connections, packets and bytes by service id
    pub const SERVICE_COUNTS: TableSpec =
        table::<u32, ServiceCounter>("service_counts", TableKind::PerCpuArray, MAX_SERVICES);
    /// Refused packets by service id and reason
    pub const REFUSALS: TableSpec = table::<RefusalKey, Counter>("refusals", TableKind::Hash, MAX_REFUSALS);
    /// Traffic by endpoint, where that is asked for
    pub const ENDPOINT_COUNTS: TableSpec =
        table::<EndpointKey, ServiceCounter>("endpoint_counts", TableKind::LruHash, MAX_ENDPOINTS);
    /// What previous generations counted, by reason
    pub const REASONS_BEFORE: TableSpec = table::<u32, Counter>("reasons_before", TableKind::Array, 64);
    /// What previous generations counted, by service id
    pub const SERVICES_BEFORE: TableSpec =
        table::<u32, ServiceCounter>("services_before", TableKind::SparseHash, MAX_SERVICES);
    /// What previous generations counted, by service id and reason
    pub const REFUSALS_BEFORE: TableSpec =
        table::<RefusalKey, Counter>("refusals_before", TableKind::SparseHash, MAX_REFUSALS);
    /// What previous generations counted, by endpoint
    pub const ENDPOINTS_BEFORE: TableSpec =
        table::<EndpointKey, ServiceCounter>("endpoint_before", TableKind::SparseHash, MAX_ENDPOINTS);
    /// One entry: a word of [`super::handover`]
    pub const HANDOVER: TableSpec = table::<u32, u32>("handover", TableKind::Array, 1);
    /// The limit of answers to refused packets: one entry, the time in nanoseconds at which it is as before the first
    pub const ANSWER_LIMIT: TableSpec = table::<u32, u64>("answer_limit", TableKind::PerCpuArray, 1);
    /// Who watches the datapath, by place
    pub const WATCHERS: TableSpec = table::<u32, Watcher>("watchers", TableKind::Array, MAX_WATCHERS + 1);
    /// Their ring buffers, by place; a value is the id of one
    pub const EVENT_RINGS: TableSpec = table::<u32, u32>("event_rings", TableKind::ArrayOfRings, MAX_WATCHERS + 1);
    /// Events for which a ring had no room, by place
    pub const EVENTS_LOST: TableSpec = table::<u32, u64>("events_lost", TableKind::PerCpuArray, MAX_WATCHERS + 1);

    /// Every table
    pub const ALL: [TableSpec; 41] = [
        SERVICES_V4,
        SERVICES_V6,
        SLOTS_V4,
        SLOTS_V6,
        FLOWS_V4,
        FLOWS_V6,
        OPENINGS_V4,
        OPENINGS_V6,
        OPENING_ENDS_V4,
        OPENING_ENDS_V6,
        AFFINITY_V4,
        AFFINITY_V6,
        SOCKETS_V4,
        SOCKETS_V6,
        FRAGMENTS_V4,
        FRAGMENTS_V6,
        HELD_FRAGMENTS,
        MEMBERS_V4,
        MEMBERS_V6,
        SOURCES_V4,
        SOURCES_V6,
        ADDRESSES_V4,
        ADDRESSES_V6,
        SERVICE_RANGES,
        SERVICE_NAMES,
        DEVICES,
        FRONTEND_FILTER,
        BACKEND_FILTER,
        REASON_COUNTS,
        SERVICE_COUNTS,
        REFUSALS,
        ENDPOINT_COUNTS,
        REASONS_BEFORE,
        SERVICES_BEFORE,
        REFUSALS_BEFORE,
        ENDPOINTS_BEFORE,
        HANDOVER,
        ANSWER_LIMIT,
        WATCHERS,
        EVENT_RINGS,
        EVENTS_LOST,
    ];
}
