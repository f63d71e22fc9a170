//! The kernel programs: entry points of a few lines over the datapath of `proxy-common`.
#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]

mod environment;
mod maps;
mod settings;
mod skb;
mod tables;

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use aya_log_ebpf::debug;
use proxy_common::{
    datapath::{self, Outcome, Reason, Tables, Verdict},
    packet::{Family, V4, V6},
};

use crate::{environment::Kernel, skb::Skb, tables::Maps};

/// Continue with the next program, or with the stack (`TCX_NEXT`, `TC_ACT_UNSPEC`): other owners' programs still run.
const NEXT: i32 = -1;
/// Drop the packet (`TCX_DROP`, `TC_ACT_SHOT`).
const DROP: i32 = 2;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// `ETH_P_IP` and `ETH_P_IPV6` in network byte order, as `__sk_buff.protocol` has them.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Ingress of an edge with Ethernet headers.
#[classifier]
pub fn ingress(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    match protocol(skb) {
        IPV4 => ingress_of(skb, V4),
        IPV6 => ingress_of(skb, V6),
        _ => NEXT,
    }
}

/// Egress of an edge with Ethernet headers.
#[classifier]
pub fn egress(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    match protocol(skb) {
        IPV4 => egress_of(skb, V4),
        IPV6 => egress_of(skb, V6),
        _ => NEXT,
    }
}

/// Not inlined, so that the families do not add up on the stack.
#[inline(never)]
fn ingress_of<F: Family>(skb: *mut __sk_buff, family: F) -> i32
where
    Maps<F>: Tables<F::Address>,
{
    action(
        skb,
        datapath::ingress::<F, _, _, _>(&mut Skb::<ETHERNET>::new(skb), &Maps(family), &environment(skb)),
    )
}

/// Not inlined, so that the families do not add up on the stack.
#[inline(never)]
fn egress_of<F: Family>(skb: *mut __sk_buff, family: F) -> i32
where
    Maps<F>: Tables<F::Address>,
{
    action(
        skb,
        datapath::egress::<F, _, _, _>(&mut Skb::<ETHERNET>::new(skb), &Maps(family), &environment(skb)),
    )
}

#[inline(always)]
fn protocol(skb: *mut __sk_buff) -> u32 {
    // SAFETY: a field of the program's own context.
    unsafe { (*skb).protocol }
}

#[inline(always)]
fn environment(skb: *mut __sk_buff) -> Kernel {
    // SAFETY: a field of the program's own context.
    Kernel {
        device: unsafe { (*skb).ifindex },
        context: skb.cast(),
    }
}

#[inline(always)]
fn action(skb: *mut __sk_buff, outcome: Outcome) -> i32 {
    match outcome.verdict {
        Verdict::Continue | Verdict::Rewrite => NEXT,
        Verdict::Reject | Verdict::Drop => {
            log_refused(skb, outcome.reason);
            DROP
        }
    }
}

/// Logs a refused packet, if logging is on: the level is a constant to the verifier, which removes the code if not.
#[inline(never)]
fn log_refused(skb: *mut __sk_buff, reason: Reason) {
    let context = TcContext::new(skb);
    // SAFETY: a field of the program's own context.
    let device = unsafe { (*skb).ifindex };
    debug!(
        &context,
        "packet refused on interface {}: reason {}", device, reason as u32
    );
}

/// Never called: the datapath has no panic, and the build fails if one slips in.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel lends its helpers to GPL-compatible programs; this crate is under GPL-2.0 as well for that.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 4] = *b"GPL\0";
