//! The kernel programs: entry points of a few lines over the datapath of `proxy-common`.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::{macros::classifier, programs::TcContext};

/// tcx: continue with the next program, or with the stack (`include/uapi/linux/bpf.h`, `enum tcx_action_base`).
const NEXT: i32 = -1;

#[classifier]
pub fn ingress(_context: TcContext) -> i32 {
    NEXT
}

#[classifier]
pub fn egress(_context: TcContext) -> i32 {
    NEXT
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel lends its helpers to GPL-compatible programs; this crate is under GPL-2.0 as well for that.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
