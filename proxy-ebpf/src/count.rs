//! Counting in tables that all CPUs share, behind functions that the verifier looks at once (see [`outlined`]).
//!
//! Counters per CPU are cheaper to write, but take their place for each CPU: these are of what is rare, or asked for.
//!
//! [`outlined`]: crate::outlined

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use proxy_common::layout::{Counter, EndpointKey, RefusalKey, ServiceCounter};

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
        unsafe {
            add(&raw mut (*counter).packets, 1);
            add(&raw mut (*counter).bytes, bytes);
        }
    }
    NOTHING
}

/// Counts traffic of an endpoint. (If the table gives up its entry meanwhile, nothing.)
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn count_endpoint(key: *const EndpointKey, connections: u32, packets: u32, bytes: u32) -> u32 {
    // SAFETY: the caller's key; the verifier checks its size.
    let Some(key) = (unsafe { key.as_ref() }) else {
        return NOTHING;
    };
    let counter = maps::ENDPOINT_COUNTS.get_ptr_mut(key).or_else(|| {
        // As above.
        let _ = maps::ENDPOINT_COUNTS.insert(key, ServiceCounter::default(), BPF_NOEXIST.into());
        maps::ENDPOINT_COUNTS.get_ptr_mut(key)
    });
    if let Some(counter) = counter {
        // SAFETY: only the fields' addresses are taken.
        unsafe {
            add(&raw mut (*counter).connections, connections);
            add(&raw mut (*counter).packets, packets);
            add(&raw mut (*counter).bytes, bytes);
        }
    }
    NOTHING
}
