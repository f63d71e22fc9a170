//! The maps of one address family as the datapath's tables.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::lpm_trie::Key,
};
use proxy_common::{
    datapath::{FlowHandle, InsertError, InsertMode, Look, PacketCopy, Reason, Scratch, Tables, socket::SocketTables},
    layout::{
        AffinityKey, AffinityValue, Backend, EndpointKey, Event, FlowKey, FlowValue, FragmentKey, FragmentValue,
        HeldFragment, HeldKey, Member, MemberKey, Opening, Range, ServiceKey, ServiceValue, SlotKey, SocketKey,
        SocketValue, Source, SourceKey, Watcher, filter_bit,
    },
    packet::{Family as _, V4, V6},
};

use crate::{count, eviction, maps, settings};

/// `EEXIST` (`include/uapi/asm-generic/errno-base.h`)
const EXISTS: i32 = -17;

/// How the kernel calls the modes of inserting.
#[inline(always)]
const fn flags(mode: InsertMode) -> u64 {
    match mode {
        InsertMode::New => BPF_NOEXIST as u64,
        InsertMode::Any => BPF_ANY as u64,
    }
}

/// Why the kernel didn't insert.
#[inline(always)]
const fn insert_error(error: i32) -> InsertError {
    if error == EXISTS {
        InsertError::Exists
    } else {
        InsertError::Full
    }
}

/// A pointer into the flow table.
pub struct Flow<A>(*mut FlowValue<A>);

impl<A: Copy> FlowHandle<A> for Flow<A> {
    #[inline(always)]
    fn value(&self) -> FlowValue<A> {
        // SAFETY: the map's memory outlives the program (RCU); any bit pattern is a value.
        unsafe { *self.0 }
    }

    #[inline(always)]
    fn touch(&self, last_seen: u32, history: u8) {
        // SAFETY: as above; racing writers write the same tick or one later, and history only gains bits.
        unsafe {
            (*self.0).last_seen = last_seen;
            (*self.0).history = history;
        }
    }

    #[inline(always)]
    fn set_flags(&self, flags: u8) {
        // SAFETY: as above.
        unsafe { (*self.0).flags = flags }
    }
}

/// The tables of a family.
pub struct Maps<F>(pub F);

/// Implements the tables over the maps of one family.
macro_rules! tables {
    ($family:ty, $address:ty, $addresses:ident, $sources:ident, $services:ident, $slots:ident,
     $affinity:ident, $members:ident, $flows:ident, $openings:ident, $opening_ends:ident, $openings_mask:ident,
     $look_at_oldest:ident, $evict_one:ident, $make_room:ident, $previous:ident, $fragments:ident, $scratch:ident,
     $sockets:ident) => {
        impl SocketTables<$address> for Maps<$family> {
            #[inline(always)]
            fn socket(&self, key: &SocketKey<$address>, value: &mut SocketValue<$address>) -> bool {
                let found = maps::$sockets.get_ptr(key);
                // SAFETY: copied out at once, under RCU.
                found
                    .inspect(|found| unsafe { found.copy_to_nonoverlapping(value, 1) })
                    .is_some()
            }

            #[inline(always)]
            fn set_socket(&self, key: &SocketKey<$address>, value: &SocketValue<$address>) {
                // Fails only when the kernel has no memory at all; the process then sees the backend.
                let _ = maps::$sockets.insert(key, value, BPF_ANY.into());
            }

            #[inline(always)]
            fn remove_socket(&self, key: &SocketKey<$address>) {
                // It is hardly ever there.
                let _ = maps::$sockets.remove(key);
            }

            #[inline(always)]
            fn count_refused(&self, reason: Reason) {
                if let Some(counter) = maps::REASON_COUNTS.get_ptr_mut(reason as u32) {
                    // SAFETY: only the field's address is taken.
                    count::add(unsafe { &raw mut (*counter).packets }, 1);
                }
            }

            #[inline(always)]
            fn count_connection(&self, service: u32) {
                if let Some(counter) = maps::SERVICE_COUNTS.get_ptr_mut(service) {
                    // SAFETY: as above.
                    count::add(unsafe { &raw mut (*counter).connections }, 1);
                }
            }
        }

        impl Tables<$address> for Maps<$family> {
            type Flow = Flow<$address>;

            #[inline(always)]
            fn may_be_frontend(&self, address: &$address) -> bool {
                let (word, bit) = filter_bit(address);
                maps::FRONTEND_FILTER
                    .get(word)
                    .is_some_and(|bits| bits & bit != 0)
            }

            #[inline(always)]
            fn may_be_backend(&self, address: &$address) -> bool {
                let (word, bit) = filter_bit(address);
                maps::BACKEND_FILTER.get(word).is_some_and(|bits| bits & bit != 0)
            }

            /// Not inlined, so that its branches do not multiply those after it.
            #[inline(never)]
            fn is_service_address(&self, address: &$address) -> bool {
                let Some(ranges) = maps::SERVICE_RANGES.get_ptr(0) else {
                    return false;
                };
                // SAFETY: the map's memory outlives the program; any bit pattern is a value.
                Range::any_contains(<$family>::service_ranges(unsafe { &*ranges }), address)
            }

            #[inline(always)]
            fn address_flags(&self, address: &$address) -> u32 {
                // SAFETY: copied out at once, under RCU.
                maps::$addresses
                    .get_ptr(address)
                    .map_or(0, |flags| unsafe { *flags })
            }

            #[inline(never)]
            fn is_source(&self, service: u32, address: &$address) -> bool {
                let key = SourceKey::exactly(service, *address);
                // SAFETY: both have the same fields in the same places.
                let key = unsafe { &*(&raw const key).cast::<Key<Source<$address>>>() };
                maps::$sources.get(key).is_some()
            }

            #[inline(always)]
            fn service(&self, key: &ServiceKey<$address>, value: &mut ServiceValue) -> bool {
                let found = maps::$services.get_ptr(key);
                // SAFETY: copied out at once, under RCU.
                found
                    .inspect(|found| unsafe { found.copy_to_nonoverlapping(value, 1) })
                    .is_some()
            }

            #[inline(always)]
            fn slot(&self, key: &SlotKey) -> Option<Backend<$address>> {
                // SAFETY: copied out at once, under RCU.
                maps::$slots.get_ptr(key).map(|value| unsafe { *value })
            }

            #[inline(always)]
            fn affinity(&self, key: &AffinityKey<$address>) -> Option<AffinityValue<$address>> {
                // SAFETY: copied out at once, under RCU.
                maps::$affinity.get_ptr(key).map(|value| unsafe { *value })
            }

            #[inline(always)]
            fn set_affinity(&self, key: &AffinityKey<$address>, value: &AffinityValue<$address>) {
                // Fails only when the kernel has no memory at all; the client then gets any endpoint.
                let _ = maps::$affinity.insert(key, value, BPF_ANY.into());
            }

            #[inline(always)]
            fn member(&self, key: &MemberKey<$address>) -> Option<Member> {
                // SAFETY: copied out at once, under RCU.
                maps::$members.get_ptr(key).map(|value| unsafe { *value })
            }

            #[inline(always)]
            fn flow(&self, key: &FlowKey<$address>) -> Option<Self::Flow> {
                maps::$flows.get_ptr_mut(key).map(Flow)
            }

            #[inline(always)]
            fn is_previous(&self, key: &FlowKey<$address>) -> bool {
                settings::has_previous() && maps::$previous.get_ptr(key).is_some()
            }

            #[inline(always)]
            fn insert_flow(
                &self,
                key: &FlowKey<$address>,
                value: &FlowValue<$address>,
                mode: InsertMode,
            ) -> Result<(), InsertError> {
                maps::$flows.insert(key, value, flags(mode)).map_err(insert_error)
            }

            #[inline(always)]
            fn remove_flow(&self, key: &FlowKey<$address>) {
                // It may be gone already: another CPU's doing, and no matter.
                let _ = maps::$flows.remove(key);
            }

            /// Not inlined, so that the key's words do not fill the caller's stack.
            #[inline(never)]
            fn push_opening(&self, opening: &Opening<$address>) {
                if let Some(ends) = maps::$opening_ends.get_ptr_mut(0) {
                    // SAFETY: the map's memory outlives the program; all CPUs count here, so they do it atomically.
                    let number = unsafe { eviction::next(&raw mut (*ends).head) };
                    if let Some(slot) = maps::$openings.get_ptr_mut(number as u32 & settings::$openings_mask()) {
                        // SAFETY: as above; who reads a slot while it is written finds no flow, or another.
                        unsafe { slot.copy_from_nonoverlapping(opening, 1) };
                    }
                }
            }

            /// CPUs that do it at the same time may get the same: then one of them finds no flow any more.
            #[inline(always)]
            fn pop_opening(&self, opening: &mut Opening<$address>) -> bool {
                let mask = settings::$openings_mask();
                let Some(ends) = maps::$opening_ends.get_ptr_mut(0) else {
                    return false;
                };
                // SAFETY: the map's memory outlives the program; each number is read whole.
                let mut now = unsafe { ends.read_volatile() };
                let begun = now.begun;
                let Some(number) = now.take(u64::from(mask) + 1) else {
                    return false;
                };
                // SAFETY: as above.
                unsafe { (&raw mut (*ends).tail).write_volatile(now.tail) };
                if now.begun != begun {
                    // SAFETY: as above.
                    unsafe { (&raw mut (*ends).begun).write_volatile(now.begun) };
                }
                let Some(slot) = maps::$openings.get_ptr(number as u32 & mask) else {
                    return false;
                };
                // SAFETY: as above; any bit pattern is an opening.
                unsafe { slot.copy_to_nonoverlapping(opening, 1) };
                true
            }

            #[inline(always)]
            fn note_eviction(&self) {
                if let Some(ends) = maps::$opening_ends.get_ptr_mut(0) {
                    // SAFETY: as in `pop_opening`.
                    unsafe { (&raw mut (*ends).begun).write_volatile((*ends).tail) };
                }
            }

            #[inline(always)]
            fn is_in_vain(&self) -> bool {
                let ends = maps::$opening_ends.get_ptr(0);
                // SAFETY: as in `pop_opening`.
                ends.is_some_and(|ends| {
                    unsafe { ends.read_volatile() }.is_in_vain(u64::from(settings::$openings_mask()) + 1)
                })
            }

            #[inline(always)]
            fn look_at_oldest(&self, now: u32) -> Look {
                eviction::look(eviction::$look_at_oldest(now))
            }

            #[inline(always)]
            fn evict_one(&self, now: u32) -> Look {
                eviction::look(eviction::$evict_one(now))
            }

            #[inline(always)]
            fn make_room(&self, now: u32) -> bool {
                eviction::$make_room(now) != 0
            }

            #[inline(always)]
            fn fragment(&self, key: &FragmentKey<$address>, value: &mut FragmentValue<$address>) -> bool {
                let found = maps::$fragments.get_ptr(key);
                // SAFETY: copied out at once, under RCU.
                found
                    .inspect(|found| unsafe { found.copy_to_nonoverlapping(value, 1) })
                    .is_some()
            }

            #[inline(always)]
            fn insert_fragment(
                &self,
                key: &FragmentKey<$address>,
                value: &FragmentValue<$address>,
                mode: InsertMode,
            ) -> Result<(), InsertError> {
                maps::$fragments
                    .insert(key, value, flags(mode))
                    .map_err(insert_error)
            }

            #[inline(always)]
            fn remove_fragment(&self, key: &FragmentKey<$address>) {
                // It may be gone already: another CPU's doing, and no matter.
                let _ = maps::$fragments.remove(key);
            }

            #[inline(always)]
            fn with_held(&self, key: &HeldKey, with: impl FnOnce(&HeldFragment)) {
                if let Some(held) = maps::HELD_FRAGMENTS.get_ptr(key) {
                    // SAFETY: the map's memory outlives the program (RCU); any bit pattern is a value. Who reads it knows
                    // that it may change.
                    with(unsafe { &*held });
                }
            }

            #[inline(always)]
            fn hold(&self, key: &HeldKey, fragment: &HeldFragment) -> Result<(), InsertError> {
                maps::HELD_FRAGMENTS
                    .insert(key, fragment, flags(InsertMode::New))
                    .map_err(insert_error)
            }

            #[inline(always)]
            fn remove_held(&self, key: &HeldKey) -> bool {
                maps::HELD_FRAGMENTS.remove(key).is_ok()
            }

            #[inline(always)]
            fn with_copy(&self, copy: PacketCopy, with: impl FnOnce(&mut HeldFragment) -> bool) -> bool {
                match maps::PACKET_COPIES.get_ptr_mut(copy as u32) {
                    // SAFETY: this CPU's own slot, and each use has its own.
                    Some(memory) => with(unsafe { &mut *memory }),
                    None => false,
                }
            }

            #[inline(always)]
            fn with_scratch<R>(&self, with: impl FnOnce(&mut Scratch<$address>) -> R) -> Option<R> {
                // SAFETY: this CPU's own slot; programs at one hook do not preempt each other.
                maps::$scratch
                    .get_ptr_mut(0)
                    .map(|scratch| with(unsafe { &mut *scratch }))
            }

            #[inline(always)]
            fn masquerade_address(&self, device: u32) -> Option<$address> {
                // SAFETY: copied out at once, under RCU.
                let device = maps::DEVICES.get_ptr(device).map(|value| unsafe { *value })?;
                <$family>::masquerade_address(&device)
            }

            #[inline(always)]
            fn device_flags(&self, device: u32) -> u32 {
                // SAFETY: read at once, under RCU.
                maps::DEVICES
                    .get_ptr(device)
                    .map_or(0, |value| unsafe { (*value).flags })
            }

            #[inline(always)]
            fn answers_full(&self) -> u64 {
                // SAFETY: this CPU's own slot.
                maps::ANSWER_LIMIT.get_ptr(0).map_or(0, |value| unsafe { *value })
            }

            #[inline(always)]
            fn set_answers_full(&self, nanoseconds: u64) {
                if let Some(value) = maps::ANSWER_LIMIT.get_ptr_mut(0) {
                    // SAFETY: as above.
                    unsafe { *value = nanoseconds };
                }
            }

            #[inline(always)]
            fn count(&self, reason: Reason, bytes: u32) {
                if let Some(counter) = maps::REASON_COUNTS.get_ptr_mut(reason as u32) {
                    // SAFETY: this CPU's own slot; programs at one hook do not preempt each other.
                    unsafe {
                        (*counter).packets += 1;
                        (*counter).bytes += u64::from(bytes);
                    }
                }
            }

            #[inline(always)]
            fn watcher(&self, place: u32) -> Option<Watcher> {
                // SAFETY: copied out at once, under RCU.
                maps::WATCHERS.get_ptr(place).map(|watcher| unsafe { *watcher })
            }

            #[inline(always)]
            fn send_event(&self, place: u32, event: &Event) -> bool {
                maps::EVENT_RINGS
                    .get(place)
                    .is_none_or(|ring| ring.output(event, 0).is_ok())
            }

            #[inline(always)]
            fn count_lost(&self, place: u32) {
                if let Some(counter) = maps::EVENTS_LOST.get_ptr_mut(place) {
                    count::add(counter, 1);
                }
            }

            #[inline(always)]
            fn count_service(&self, service: u32, connections: u32, bytes: u32) {
                if let Some(counter) = maps::SERVICE_COUNTS.get_ptr_mut(service) {
                    // SAFETY: as above.
                    unsafe {
                        (*counter).connections += u64::from(connections);
                        (*counter).packets += 1;
                        (*counter).bytes += u64::from(bytes);
                    }
                }
            }

            #[inline(always)]
            fn count_refusal(&self, service: u32, reason: Reason, bytes: u32) {
                count::count_refusal(service, reason as u32, bytes);
            }

            #[inline(always)]
            fn counts_endpoints(&self) -> bool {
                settings::counts_endpoints()
            }

            #[inline(always)]
            fn count_endpoint(&self, key: &EndpointKey, connections: u32, packets: u32, bytes: u32) {
                count::count_endpoint(key, connections, packets, bytes);
            }
        }
    };
}

tables!(
    V4,
    [u8; 4],
    ADDRESSES_V4,
    SOURCES_V4,
    SERVICES_V4,
    SLOTS_V4,
    AFFINITY_V4,
    MEMBERS_V4,
    FLOWS_V4,
    OPENINGS_V4,
    OPENING_ENDS_V4,
    openings_mask_v4,
    look_at_oldest_v4,
    evict_one_v4,
    make_room_v4,
    PREVIOUS_V4,
    FRAGMENTS_V4,
    SCRATCH_V4,
    SOCKETS_V4
);
tables!(
    V6,
    [u8; 16],
    ADDRESSES_V6,
    SOURCES_V6,
    SERVICES_V6,
    SLOTS_V6,
    AFFINITY_V6,
    MEMBERS_V6,
    FLOWS_V6,
    OPENINGS_V6,
    OPENING_ENDS_V6,
    openings_mask_v6,
    look_at_oldest_v6,
    evict_one_v6,
    make_room_v6,
    PREVIOUS_V6,
    FRAGMENTS_V6,
    SCRATCH_V6,
    SOCKETS_V6
);
