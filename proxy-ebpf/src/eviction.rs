//! Room in a full flow table, behind functions of their own: they are global to the verifier, which goes through each once.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use proxy_common::{
    datapath,
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

/// Defines the function for a family: 1 if it has given a flow up, else 0.
macro_rules! evict_oldest {
    ($name:ident, $family:ident, $victim:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name() -> u32 {
            match maps::$victim.get_ptr_mut(0) {
                // SAFETY: this CPU's own slot; programs at one hook do not preempt each other.
                Some(victim) => datapath::evict_oldest(&Maps($family), unsafe { &mut *victim }).into(),
                None => 0,
            }
        }
    };
}

evict_oldest!(evict_oldest_v4, V4, VICTIM_V4);
evict_oldest!(evict_oldest_v6, V6, VICTIM_V6);
