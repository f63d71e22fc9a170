//! The maps, BTF-defined so that `bpftool map dump` shows field names. Shapes and names are those of
//! `proxy_common::layout::tables`; the loader checks that they agree.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use proxy_common::{
    datapath::{Crossing, Scratch, Victim},
    layout::{
        AffinityKey, AffinityValue, Backend, Counter, Device, EndpointKey, Event, FILTER_WORDS, FlowKey, FlowValue,
        FragmentKey, FragmentValue, HeldFragment, HeldKey, MAX_ADDRESSES, MAX_AFFINITIES, MAX_ENDPOINTS, MAX_FLOWS,
        MAX_FRAGMENTED, MAX_HELD, MAX_REFUSALS, MAX_SERVICES, MAX_SLOTS, MAX_SOCKETS, MAX_SOURCES, MAX_WATCHERS,
        Member, MemberKey, Opening, OpeningEnds, RefusalKey, ServiceCounter, ServiceKey, ServiceName, ServiceRanges,
        ServiceValue, SlotKey, SocketKey, SocketValue, Source, Watcher, opening_slots,
    },
};

/// Memory follows use: these are written by the agent only.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map(name = "services_v4")]
pub static SERVICES_V4: HashMap<ServiceKey<[u8; 4]>, ServiceValue, { MAX_SERVICES as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "services_v6")]
pub static SERVICES_V6: HashMap<ServiceKey<[u8; 16]>, ServiceValue, { MAX_SERVICES as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "slots_v4")]
pub static SLOTS_V4: HashMap<SlotKey, Backend<[u8; 4]>, { MAX_SLOTS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "slots_v6")]
pub static SLOTS_V6: HashMap<SlotKey, Backend<[u8; 16]>, { MAX_SLOTS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "flows_v4")]
pub static FLOWS_V4: HashMap<FlowKey<[u8; 4]>, FlowValue<[u8; 4]>, { MAX_FLOWS as usize }> = HashMap::new();
#[btf_map(name = "flows_v6")]
pub static FLOWS_V6: HashMap<FlowKey<[u8; 16]>, FlowValue<[u8; 16]>, { MAX_FLOWS as usize }> = HashMap::new();

/// A key is a slot, by [`proxy_common::layout::Settings::openings_mask_v4`].
#[btf_map(name = "openings_v4")]
pub static OPENINGS_V4: Array<Opening<[u8; 4]>, { opening_slots(MAX_FLOWS) as usize }> = Array::new();
#[btf_map(name = "openings_v6")]
pub static OPENINGS_V6: Array<Opening<[u8; 16]>, { opening_slots(MAX_FLOWS) as usize }> = Array::new();
#[btf_map(name = "opening_ends_v4")]
pub static OPENING_ENDS_V4: Array<OpeningEnds, 1> = Array::new();
#[btf_map(name = "opening_ends_v6")]
pub static OPENING_ENDS_V6: Array<OpeningEnds, 1> = Array::new();

/// Memory of eviction while it runs; not pinned.
#[btf_map(name = "victim_v4")]
pub static VICTIM_V4: PerCpuArray<Victim<[u8; 4]>, 1> = PerCpuArray::new();
#[btf_map(name = "victim_v6")]
pub static VICTIM_V6: PerCpuArray<Victim<[u8; 16]>, 1> = PerCpuArray::new();

/// Memory of a program while it runs; not pinned.
#[btf_map(name = "scratch_v4")]
pub static SCRATCH_V4: PerCpuArray<Scratch<[u8; 4]>, 1> = PerCpuArray::new();
#[btf_map(name = "scratch_v6")]
pub static SCRATCH_V6: PerCpuArray<Scratch<[u8; 16]>, 1> = PerCpuArray::new();

#[btf_map(name = "fragments_v4")]
pub static FRAGMENTS_V4: LruHashMap<FragmentKey<[u8; 4]>, FragmentValue<[u8; 4]>, { MAX_FRAGMENTED as usize }> =
    LruHashMap::new();
#[btf_map(name = "fragments_v6")]
pub static FRAGMENTS_V6: LruHashMap<FragmentKey<[u8; 16]>, FragmentValue<[u8; 16]>, { MAX_FRAGMENTED as usize }> =
    LruHashMap::new();
#[btf_map(name = "held_fragments")]
pub static HELD_FRAGMENTS: LruHashMap<HeldKey, HeldFragment, { MAX_HELD as usize }> = LruHashMap::new();
/// Memory of a program while it runs, one for each [`proxy_common::datapath::PacketCopy`]; not pinned.
#[btf_map(name = "packet_copies")]
pub static PACKET_COPIES: PerCpuArray<HeldFragment, 2> = PerCpuArray::new();

/// Memory of the XDP program while it runs; not pinned.
#[btf_map(name = "crossing_v4")]
pub static CROSSING_V4: PerCpuArray<Crossing<[u8; 4]>, 1> = PerCpuArray::new();
#[btf_map(name = "crossing_v6")]
pub static CROSSING_V6: PerCpuArray<Crossing<[u8; 16]>, 1> = PerCpuArray::new();

#[btf_map(name = "affinity_v4")]
pub static AFFINITY_V4: LruHashMap<AffinityKey<[u8; 4]>, AffinityValue<[u8; 4]>, { MAX_AFFINITIES as usize }> =
    LruHashMap::new();
#[btf_map(name = "affinity_v6")]
pub static AFFINITY_V6: LruHashMap<AffinityKey<[u8; 16]>, AffinityValue<[u8; 16]>, { MAX_AFFINITIES as usize }> =
    LruHashMap::new();
#[btf_map(name = "members_v4")]
pub static MEMBERS_V4: HashMap<MemberKey<[u8; 4]>, Member, { MAX_SLOTS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "members_v6")]
pub static MEMBERS_V6: HashMap<MemberKey<[u8; 16]>, Member, { MAX_SLOTS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "sockets_v4")]
pub static SOCKETS_V4: LruHashMap<SocketKey<[u8; 4]>, SocketValue<[u8; 4]>, { MAX_SOCKETS as usize }> =
    LruHashMap::new();
#[btf_map(name = "sockets_v6")]
pub static SOCKETS_V6: LruHashMap<SocketKey<[u8; 16]>, SocketValue<[u8; 16]>, { MAX_SOCKETS as usize }> =
    LruHashMap::new();

/// A key is a [`proxy_common::layout::SourceKey`], in aya's words.
#[btf_map(name = "sources_v4")]
pub static SOURCES_V4: LpmTrie<Source<[u8; 4]>, u32, { MAX_SOURCES as usize }> = LpmTrie::new();
#[btf_map(name = "sources_v6")]
pub static SOURCES_V6: LpmTrie<Source<[u8; 16]>, u32, { MAX_SOURCES as usize }> = LpmTrie::new();

#[btf_map(name = "addresses_v4")]
pub static ADDRESSES_V4: HashMap<[u8; 4], u32, { MAX_ADDRESSES as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "addresses_v6")]
pub static ADDRESSES_V6: HashMap<[u8; 16], u32, { MAX_ADDRESSES as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "service_ranges")]
pub static SERVICE_RANGES: Array<ServiceRanges, 1> = Array::new();

/// Written and read by the agent only; lives here so that it is pinned and typed like the others.
#[btf_map(name = "service_names")]
pub static SERVICE_NAMES: HashMap<u32, ServiceName, { MAX_SERVICES as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "devices")]
pub static DEVICES: HashMap<u32, Device, 16_384, SPARSE> = HashMap::new();

#[btf_map(name = "frontend_filter")]
pub static FRONTEND_FILTER: Array<u64, { FILTER_WORDS as usize }> = Array::new();
#[btf_map(name = "backend_filter")]
pub static BACKEND_FILTER: Array<u64, { FILTER_WORDS as usize }> = Array::new();

#[btf_map(name = "reason_counts")]
pub static REASON_COUNTS: PerCpuArray<Counter, 64> = PerCpuArray::new();
#[btf_map(name = "answer_limit")]
pub static ANSWER_LIMIT: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map(name = "service_counts")]
pub static SERVICE_COUNTS: PerCpuArray<ServiceCounter, { MAX_SERVICES as usize }> = PerCpuArray::new();
#[btf_map(name = "refusals")]
pub static REFUSALS: HashMap<RefusalKey, Counter, { MAX_REFUSALS as usize }> = HashMap::new();
#[btf_map(name = "endpoint_counts")]
pub static ENDPOINT_COUNTS: LruHashMap<EndpointKey, ServiceCounter, { MAX_ENDPOINTS as usize }> = LruHashMap::new();
/// Written and read by the agent only.
#[btf_map(name = "reasons_before")]
pub static REASONS_BEFORE: Array<Counter, 64> = Array::new();
#[btf_map(name = "services_before")]
pub static SERVICES_BEFORE: HashMap<u32, ServiceCounter, { MAX_SERVICES as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "refusals_before")]
pub static REFUSALS_BEFORE: HashMap<RefusalKey, Counter, { MAX_REFUSALS as usize }, SPARSE> = HashMap::new();
#[btf_map(name = "endpoint_before")]
pub static ENDPOINTS_BEFORE: HashMap<EndpointKey, ServiceCounter, { MAX_ENDPOINTS as usize }, SPARSE> = HashMap::new();

#[btf_map(name = "watchers")]
pub static WATCHERS: Array<Watcher, { MAX_WATCHERS as usize + 1 }> = Array::new();
/// Whoever watches puts a ring there, of any size.
#[btf_map(name = "event_rings")]
pub static EVENT_RINGS: ArrayOfMaps<RingBuf<Event, 4096>, { MAX_WATCHERS as usize + 1 }> = ArrayOfMaps::new();
#[btf_map(name = "events_lost")]
pub static EVENTS_LOST: PerCpuArray<u64, { MAX_WATCHERS as usize + 1 }> = PerCpuArray::new();

#[btf_map(name = "handover")]
pub static HANDOVER: Array<u32, 1> = Array::new();
/// The flows of the previous generation, in its layout, of which only the key is known: the loader puts its tables here.
#[btf_map(name = "previous_v4")]
pub static PREVIOUS_V4: HashMap<FlowKey<[u8; 4]>, u32, 1, SPARSE> = HashMap::new();
#[btf_map(name = "previous_v6")]
pub static PREVIOUS_V6: HashMap<FlowKey<[u8; 16]>, u32, 1, SPARSE> = HashMap::new();
/// The programs of the previous generation, by [`crate::Place`].
#[btf_map(name = "previous_tc")]
pub static PREVIOUS_TC: ProgramArray<4> = ProgramArray::new();
#[btf_map(name = "previous_xdp")]
pub static PREVIOUS_XDP: ProgramArray<1> = ProgramArray::new();
