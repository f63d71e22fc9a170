//! Room for new flows in a full table: the oldest that did not get anywhere is given up, as nf_conntrack does it
//! (`early_drop` in `net/netfilter/nf_conntrack_core.c`). So a flood of packets with false sources displaces itself, while
//! established flows stay and new ones still find room.

use super::{FlowHandle as _, Reason, Tables, flow};
use crate::layout::{AddressBytes, FlowKey, FlowValue, Opening, flow_flags};

/// How many openings are looked at in one go. A packet looks at no more when the ring has been gone round in vain: a table full of
/// established flows must not cost every packet of a flood a walk through all of them.
const LOOKS: u32 = 256;
/// How many times that is done for a packet at the most. Before a flood most openings are of flows that have ended, or of established ones,
/// and in it many flows were under way when a tick began: it must not take more new flows to pass such a row than a client sends
/// first packets. A row is passed once in a turn of the ring, so all in all this is no more work than opening flows was.
const ROUNDS: u32 = 256;

/// What eviction works on: there is too little stack for it in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Victim<A> {
    /// That it was opened
    opening: Opening<A>,
    /// A half of the flow
    key: FlowKey<A>,
    /// Its value
    value: FlowValue<A>,
    /// The other half's key
    twin_key: FlowKey<A>,
    /// The other half's value, as it has to be
    twin: FlowValue<A>,
    /// What stands in the other half's place
    present: FlowValue<A>,
    /// The key of the masquerade
    masquerade: FlowKey<A>,
}

/// What comes of a look at an opening, or at several.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// There is none that nobody has looked at
    None = 0,
    /// There is no such flow any more, or it is to stay, and is looked at again when all others have been
    Passed = 1,
    /// It was given up
    Evicted = 2,
}

/// Gives up the first of the oldest openings' flows that is expendable ([`flow::State::is_expendable`]); `now` in ticks: whether there
/// was one.
#[inline(always)]
pub fn make_room<A: AddressBytes, T: Tables<A>>(tables: &T, now: u32) -> bool {
    for _ in 0..ROUNDS {
        let look = tables.evict_one(now);
        if look != Look::Passed {
            return look == Look::Evicted;
        }
    }
    false
}

/// [`make_room`] for a masqueraded flow: it takes four entries, and another may give two. Whether there is room now.
#[inline(always)]
pub(super) fn make_room_for_masquerade<A: AddressBytes, T: Tables<A>>(tables: &T, now: u32) -> bool {
    let made = tables.make_room(now);
    if made {
        // One may have been enough.
        tables.make_room(now);
    }
    made
}

/// Looks at the oldest openings, [`LOOKS`] at most, until a flow is given up. There is none if all of the ring were passed since one was.
#[inline(always)]
pub fn evict_one<A: AddressBytes, T: Tables<A>>(tables: &T, now: u32) -> Look {
    for _ in 0..LOOKS {
        let look = tables.look_at_oldest(now);
        if look != Look::Passed {
            return look;
        }
    }
    if tables.is_in_vain() { Look::None } else { Look::Passed }
}

/// Looks at the oldest opening, and gives its flow up if it is expendable; `now` in ticks. One that was used since, and lately, or was
/// opened anew under the same key, is none of the oldest: it goes to the end of the row, as one that is to stay does, which will end
/// some day.
#[inline(always)]
pub fn look_at_oldest<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>, now: u32) -> Look {
    if !tables.pop_opening(&mut victim.opening) {
        return Look::None;
    }
    victim.key = victim.opening.key();
    if !load(tables, victim) {
        // It will be moved here, and is to be known then.
        if tables.is_previous(&victim.key) {
            tables.push_opening(&victim.opening);
        }
        return Look::Passed;
    }
    if !is_expendable(tables, victim, now) {
        victim.opening = Opening::new(&victim.key, victim.value.last_seen);
        tables.push_opening(&victim.opening);
        return Look::Passed;
    }
    evict(tables, victim);
    tables.note_eviction();
    tables.count(Reason::FlowEvicted, 0);
    Look::Evicted
}

/// Whether the victim may be given up. One that is closed may whenever it was used.
#[inline(always)]
fn is_expendable<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>, now: u32) -> bool {
    // A slot may be read while it is written: then this is some flow, or the reply half of one.
    let twin = load_twin(tables, victim).then_some(&victim.present);
    let state = flow::State::of(victim.key.protocol, &victim.value, twin);
    // Many of a flood are answered in the tick after that in which they were opened.
    let used = victim.opening.is_before(victim.value.last_seen) && flow::is_young(&victim.value, twin, now);
    victim.value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) == 0
        && (state == flow::State::Closing || state.is_expendable() && !used)
}

/// Removes every entry of the flow whose client's half is the victim's.
#[inline(always)]
fn evict<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) {
    let flags = victim.value.flags;
    victim.masquerade = flow::masquerade_key(&victim.key, &victim.value);
    remove(tables, victim);
    if flags & flow_flags::MASQUERADED != 0 {
        victim.key = victim.masquerade;
        if load(tables, victim) && victim.value.flags & flow_flags::MASQUERADE != 0 {
            remove(tables, victim);
        }
    }
}

/// Looks the victim's half up.
#[inline(always)]
fn load<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) -> bool {
    match tables.flow(&victim.key) {
        Some(handle) => {
            victim.value = handle.value();
            true
        }
        None => false,
    }
}

/// Looks the other half up; `false` if it is lost, or another flow has its place.
#[inline(always)]
fn load_twin<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) -> bool {
    victim.twin_key = flow::twin_key(&victim.key, &victim.value);
    victim.twin = flow::twin_value(&victim.key, &victim.value);
    match tables.flow(&victim.twin_key) {
        Some(handle) => {
            victim.present = handle.value();
            flow::same_rewrite(&victim.present, &victim.twin)
        }
        None => false,
    }
}

/// Removes both halves.
#[inline(always)]
fn remove<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) {
    tables.remove_flow(&victim.key);
    if load_twin(tables, victim) {
        tables.remove_flow(&victim.twin_key);
    }
}
