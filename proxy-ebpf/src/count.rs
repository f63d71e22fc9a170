//! Counting in tables that all CPUs share, behind functions that the verifier looks at once (see [`outlined`]).
//!
//! Counters per CPU are cheaper to write, but take their place for each CPU: these are of what is rare, or asked for.
//!
//! [`outlined`]: crate::outlined

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::layout::{Counter, RefusalKey};

use crate::{maps, outlined::NOTHING};

/// Adds to a counter that others may add to at the same time: on other CPUs, or in the middle of a process's program, which a packet
/// may interrupt. So it is one instruction.
#[inline(always)]
pub fn add(counter: *mut u64, amount: u32) {
    // SAFETY: the caller's counter is an aligned word of a map's memory, which outlives the program.
    unsafe {
        asm!(
            "lock *(u64 *)({counter} + 0) += {amount}",
            counter = in(reg) counter, amount = in(reg) u64::from(amount), options(nostack, preserves_flags)
        );
    }
}

/// Counts a packet that a service port has refused for a reason. (Without room for it, nothing.)
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_refusal(service: u32, reason: u32, bytes: u32) -> u32 {
    let key = &RefusalKey { service, reason };
    let counter = maps::REFUSALS.get_ptr_mut(key).or_else(|| {
        // Another CPU may be first.
        let _ = maps::REFUSALS.insert(key, Counter::default(), BPF_NOEXIST.into());
        maps::REFUSALS.get_ptr_mut(key)
    });
    if let Some(counter) = counter {
        // SAFETY: only the fields' addresses are taken.
        let (packets, of_bytes) = unsafe { (&raw mut (*counter).packets, &raw mut (*counter).bytes) };
        add(packets, 1);
        add(of_bytes, bytes);
    }
    NOTHING
}
