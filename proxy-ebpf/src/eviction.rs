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

/// Defines the function for a family: 1 if it has made room, else 0.
macro_rules! make_room {
    ($name:ident, $family:ident, $victim:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name() -> u32 {
            match maps::$victim.get_ptr_mut(0) {
                // SAFETY: this CPU's own slot; programs at one hook do not preempt each other.
                Some(victim) => datapath::make_room(&Maps($family), unsafe { &mut *victim }).into(),
                None => 0,
            }
        }
    };
}

make_room!(make_room_v4, V4, VICTIM_V4);
make_room!(make_room_v6, V6, VICTIM_V6);
