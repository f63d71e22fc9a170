//! Room for new flows in a full table: the oldest that did not get anywhere is given up, as nf_conntrack does it
//! (`early_drop` in `net/netfilter/nf_conntrack_core.c`). So a flood of packets with false sources displaces itself, while
//! established flows stay and new ones still find room.

use super::{FlowHandle as _, Reason, Tables, flow};
use crate::layout::{AddressBytes, FlowKey, FlowValue, INGRESS, flow_flags};

/// How many openings are looked at for some that may be given up. Each is looked at once, so the work is bounded by that of
/// opening flows.
const LOOKS: u32 = 16;
/// What eviction works on: there is too little stack for it in the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Victim<A> {
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

/// Gives up so many `flows`, or as many as there are among the oldest openings that are expendable
/// ([`flow::State::is_expendable`]): whether there is room now.
#[inline(never)]
pub(super) fn make_room<A: AddressBytes, T: Tables<A>>(tables: &T, flows: u32) -> bool {
    let mut evicted = 0;
    for _ in 0..LOOKS {
        if tables.evict_oldest() {
            evicted += 1;
        }
        if evicted == flows {
            break;
        }
    }
    evicted > 0
}

/// Looks at the oldest opening that nobody has looked at, and gives its flow up if it is expendable; whether it did.
#[inline(always)]
pub fn evict_oldest<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) -> bool {
    let evicted = tables.pop_opening(&mut victim.key) && evict(tables, victim);
    if evicted {
        tables.count(Reason::FlowEvicted, 0);
    }
    evicted
}

/// Removes every entry of the flow whose client's half has the key of `victim`, if it is expendable.
#[inline(always)]
fn evict<A: AddressBytes, T: Tables<A>>(tables: &T, victim: &mut Victim<A>) -> bool {
    if !load(tables, victim) || victim.key.direction != INGRESS {
        return false;
    }
    // A slot may be read while it is written: then this is some flow, or the reply half of one.
    let flags = victim.value.flags;
    let twin = load_twin(tables, victim).then_some(&victim.present);
    let state = flow::State::of(victim.key.protocol, &victim.value, twin);
    if flags & (flow_flags::REPLY | flow_flags::MASQUERADE) != 0 || !state.is_expendable() {
        return false;
    }
    victim.masquerade = flow::masquerade_key(&victim.key, &victim.value);
    remove(tables, victim);
    if flags & flow_flags::MASQUERADED != 0 {
        victim.key = victim.masquerade;
        if load(tables, victim) && victim.value.flags & flow_flags::MASQUERADE != 0 {
            remove(tables, victim);
        }
    }
    true
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
