//! Room for new flows in a full table: the oldest that did not get anywhere is given up, as nf_conntrack does it
//! (`early_drop` in `net/netfilter/nf_conntrack_core.c`). So a flood of packets with false sources displaces itself, while
//! established flows stay and new ones still find room.

use super::{FlowHandle as _, Reason, Tables, flow};
use crate::layout::{AddressBytes, FlowKey, FlowValue, Opening, flow_flags};

/// How many openings of flows that are there are looked at for some to give up.
const LIVING: u32 = 128;
/// How many of flows that have ended are passed before each. Most of those before a flood have: it must not take more new flows to
/// pass them than a client sends first packets. Each is passed once, so all in all this is no more work than opening flows was.
const LOOKS: u32 = 1024;

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
    /// There is no such flow any more
    Passed = 1,
    /// It was given up
    Evicted = 2,
    /// It is to stay, and is looked at again when all others have been
    Kept = 3,
}

/// The most flows that are given up at once: a masqueraded one needs as many entries as two others may have.
const MOST: u32 = 2;

/// Gives up so many `flows`, [`MOST`] at most, or as many as there are among the oldest openings that are expendable
/// ([`flow::State::is_expendable`]); `now` in ticks: whether there is room now.
#[inline(always)]
pub fn make_room<A: AddressBytes, T: Tables<A>>(tables: &T, now: u32, flows: u32) -> bool {
    let mut evicted = 0;
    for _ in 0..LIVING {
        match tables.evict_one(now) {
            Look::None => break,
            Look::Kept | Look::Passed => {}
            Look::Evicted => evicted += 1,
        }
        // The second is for the verifier, which doesn't know how many are wanted.
        if evicted == flows || evicted == MOST {
            break;
        }
    }
    evicted > 0
}

/// Passes the openings of flows that have ended, and looks at the first that has not: it is given up if it is expendable.
#[inline(always)]
pub fn evict_one<A: AddressBytes, T: Tables<A>>(tables: &T, now: u32) -> Look {
    for _ in 0..LOOKS {
        let look = tables.look_at_oldest(now);
        if look != Look::Passed {
            return look;
        }
    }
    Look::Passed
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
        return Look::Kept;
    }
    evict(tables, victim);
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
