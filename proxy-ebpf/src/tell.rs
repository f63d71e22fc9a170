//! Telling those who watch, behind a function of its own (see [`outlined`]): the same for packets and sockets of both families.
//!
//! [`outlined`]: crate::outlined

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use proxy_common::{
    datapath,
    layout::{Event, TICK_SHIFT},
    packet::V4,
};

use crate::{outlined::NOTHING, tables::Maps};

/// [`datapath::tell`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell(event: *const Event) -> u32 {
    // SAFETY: the caller's event; the verifier checks its size.
    if let Some(event) = unsafe { event.as_ref() } {
        // SAFETY: a helper without arguments.
        let now = (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32;
        // The tables of those who watch are the same for both families.
        datapath::tell(&Maps(V4), now, event);
    }
    NOTHING
}
