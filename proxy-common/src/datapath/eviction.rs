//! Room for new flows in a full table: the oldest that did not get anywhere is given up, as nf_conntrack does it
//! (`early_drop` in `net/netfilter/nf_conntrack_core.c`). So a flood of packets with false sources displaces itself, while
//! established flows stay and new ones still find room.

use super::{FlowHandle as _, Reason, Tables, flow};
use crate::layout::{AddressBytes, FlowKey, FlowValue, Opening, flow_flags};

/// How many openings are looked at for a flow to give up. Most of those before a flood are of flows that have ended: it must not
/// take more new flows to pass them than a client sends first packets. Each is looked at once, so all in all this is no more
/// work than opening flows was.
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
    /// Nothing was given up
    Kept = 1,
    /// A flow was given up
    Evicted = 2,
}

/// Gives up so many `flows`, or as many as there are among the oldest openings that are expendable
/// ([`flow::State::is_expendable`]): whether there is room now.
#[inline(never)]
pub(super) fn make_room<A: AddressBytes, T: Tables<A>>(tables: &T, flows: u32) -> bool {
    // No branch on the second: the verifier would go two ways from here.
    let first = tables.evict_one() == Look::Evicted;
    if flows > 1 {
        tables.evict_one();
    }
    first
}

/// Gives up the oldest flow that is expendable.
#[inline(always)]
pub fn evict_one<A: AddressBytes, T: Tables<A>>(tables: &T) -> Look {
    for _ in 0..LOOKS {
        let look = tables.look_at_oldest();
        if look != Look::Kept {
            return look;
        }
    }
    Look::Kept
}

/// Looks at the oldest opening that nobody has looked at, and gives its flow up if it is expendable. One that was used since,
/// or was opened anew under the same key, is none of the oldest: it goes to the end of the row.
#[inline(always)]
pub fn look_at_oldest<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) -> Look {
    if !tables.pop_opening(&mut victim.opening) {
        return Look::None;
    }
    victim.key = victim.opening.key();
    if !is_expendable(tables, victim) {
        // It will be moved here, and is to be known then.
        if tables.is_previous(&victim.key) {
            tables.push_opening(&victim.opening);
        }
        return Look::Kept;
    }
    let last_seen = victim.value.last_seen;
    if victim.opening.is_before(last_seen) {
        victim.opening = Opening::new(&victim.key, last_seen);
        tables.push_opening(&victim.opening);
        return Look::Kept;
    }
    evict(tables, victim);
    tables.count(Reason::FlowEvicted, 0);
    Look::Evicted
}

/// Loads the flow of the victim's key; whether it may be given up.
#[inline(always)]
fn is_expendable<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) -> bool {
    if !load(tables, victim) {
        return false;
    }
    // A slot may be read while it is written: then this is some flow, or the reply half of one.
    let twin = load_twin(tables, victim).then_some(&victim.present);
    let state = flow::State::of(victim.key.protocol, &victim.value, twin);
    victim.value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) == 0 && state.is_expendable()
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
