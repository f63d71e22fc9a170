//! Room in a full flow table, behind functions of their own: they are global to the verifier, which goes through each once.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use proxy_common::{
    datapath::{self, Look},
    packet::{V4, V6},
};

use crate::{maps, tables::Maps};

/// The number that a counter shared by all CPUs stands at; counts on.
///
/// # Safety
/// `counter` must be valid, and written by nobody otherwise.
#[inline(always)]
pub unsafe fn next(counter: *mut u64) -> u64 {
    // SAFETY: the caller's promise. (With Relaxed ordering the compiler, LLVM 22, takes the instruction that gives no result.)
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(counter, 1) }
}

/// Defines the functions for a family.
macro_rules! eviction {
    ($look_at_oldest:ident, $evict_one:ident, $make_room:ident, $family:ident, $victim:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $look_at_oldest(now: u32) -> u32 {
            match maps::$victim.get_ptr_mut(0) {
                // SAFETY: this CPU's own slot; programs at one hook do not preempt each other.
                Some(victim) => datapath::look_at_oldest(&Maps($family), unsafe { &mut *victim }, now) as u32,
                None => Look::None as u32,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $evict_one(now: u32) -> u32 {
            datapath::evict_one(&Maps($family), now) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $make_room(now: u32) -> u32 {
            datapath::make_room(&Maps($family), now).into()
        }
    };
}

eviction!(look_at_oldest_v4, evict_one_v4, make_room_v4, V4, VICTIM_V4);
eviction!(look_at_oldest_v6, evict_one_v6, make_room_v6, V6, VICTIM_V6);

/// What one of these functions has returned.
#[inline(always)]
pub fn look(returned: u32) -> Look {
    match returned {
        0 => Look::None,
        1 => Look::Passed,
        _ => Look::Evicted,
    }
}
