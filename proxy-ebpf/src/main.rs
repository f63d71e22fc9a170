//! The kernel programs: entry points of a few lines over the datapath of `proxy-common`.
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "core's atomic types have no operations on this target")]
#![no_std]
#![no_main]

mod count;
mod environment;
mod eviction;
mod heir;
mod hook;
mod maps;
mod outlined;
mod settings;
mod skb;
mod socket;
mod tables;
mod tell;
mod xdp;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS},
    helpers::generated::bpf_redirect,
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use proxy_common::{
    datapath::{self, Outcome, Reason, Tables, Verdict},
    packet::{Family, V4, V6},
};

use crate::{
    hook::Hook,
    skb::Skb,
    socket::{Call, hook4, hook6},
    tables::Maps,
};

/// Continue with the next program, or with the stack (`TCX_NEXT`, `TC_ACT_UNSPEC`): other owners' programs still run.
const NEXT: i32 = -1;
/// Stands for an action: what the slow path makes of the packet.
const SLOW: i32 = i32::MIN + 1;
/// Drop the packet (`TCX_DROP`, `TC_ACT_SHOT`).
const DROP: i32 = 2;

/// To the ingress of a device, as if it had received the packet.
const TO_STACK: u64 = BPF_F_INGRESS as u64;

/// Lengths of link-layer headers: of Ethernet, and of a device that has none (see [`ingress_l3`]).
const ETHERNET: usize = 14;
const NONE: usize = 0;
/// `ETH_P_IP` and `ETH_P_IPV6` in network byte order, as `__sk_buff.protocol` has them on every kind of device.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
/// The VLAN's number in a VLAN tag (IEEE 802.1Q, `VLAN_VID_MASK`).
const VLAN_NUMBER: u32 = 0x0fff;

/// Ingress of an edge with Ethernet headers.
#[classifier]
pub fn ingress(context: TcContext) -> i32 {
    ingress_behind::<ETHERNET>(context)
}

/// Egress of an edge with Ethernet headers.
#[classifier]
pub fn egress(context: TcContext) -> i32 {
    egress_behind::<ETHERNET>(context)
}

/// Ingress of an edge whose packets begin with the network header: ipip, wireguard, tun, ppp and their like.
#[classifier]
pub fn ingress_l3(context: TcContext) -> i32 {
    ingress_behind::<NONE>(context)
}

/// Egress of an edge whose packets begin with the network header.
#[classifier]
pub fn egress_l3(context: TcContext) -> i32 {
    egress_behind::<NONE>(context)
}

/// Both hooks and the route in between, for packets that an uplink receives.
#[xdp]
pub fn forward(context: XdpContext) -> u32 {
    xdp::forward(&context)
}

/// Defines the hooks of both families for what a process does with its socket.
macro_rules! socket_hooks {
    ($($call:ident: $v4:ident, $v6:ident;)*) => {
        $(
            #[doc = "A process with an IPv4 socket, or one of IPv6 and an address `::ffff:a.b.c.d`."]
            #[cgroup_sock_addr($v4)]
            pub fn $v4(context: SockAddrContext) -> i32 {
                hook4(context.sock_addr, Call::$call)
            }

            #[doc = "A process with an IPv6 socket."]
            #[cgroup_sock_addr($v6)]
            pub fn $v6(context: SockAddrContext) -> i32 {
                hook6(context.sock_addr, Call::$call)
            }
        )*
    };
}

socket_hooks! {
    Connect: connect4, connect6;
    Send: sendmsg4, sendmsg6;
    Receive: recvmsg4, recvmsg6;
    PeerName: getpeername4, getpeername6;
}

#[inline(always)]
fn ingress_behind<const LINK: usize>(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    match protocol(skb) {
        IPV4 => ingress_of::<LINK, _>(skb, V4),
        IPV6 => ingress_of::<LINK, _>(skb, V6),
        _ => NEXT,
    }
}

#[inline(always)]
fn egress_behind<const LINK: usize>(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    match protocol(skb) {
        IPV4 => egress_of::<LINK, _>(skb, V4),
        IPV6 => egress_of::<LINK, _>(skb, V6),
        _ => NEXT,
    }
}

#[inline(always)]
fn ingress_of<const LINK: usize, F: Family>(skb: *mut __sk_buff, family: F) -> i32
where
    Maps<F>: Tables<F::Address>,
{
    match ingress_fast::<LINK, F>(skb, family) {
        SLOW => ingress_slow::<LINK, F>(skb, family),
        action => action,
    }
}

#[inline(always)]
fn egress_of<const LINK: usize, F: Family>(skb: *mut __sk_buff, family: F) -> i32
where
    Maps<F>: Tables<F::Address>,
{
    match egress_fast::<LINK, F>(skb, family) {
        SLOW => egress_slow::<LINK, F>(skb, family),
        action => action,
    }
}

/// Defines the paths of both hooks. They are not inlined, so that neither they nor the families add up on the stack.
macro_rules! paths {
    ($($fast:ident, $slow:ident, $back:expr;)*) => {
        $(
            #[inline(never)]
            fn $fast<const LINK: usize, F: Family>(skb: *mut __sk_buff, family: F) -> i32
            where
                Maps<F>: Tables<F::Address>,
            {
                let (mut packet, hook) = (Skb::<LINK>::new(skb), Hook::<LINK>::new(skb));
                match datapath::$fast::<F, _, _, _>(&mut packet, &Maps(family), &hook) {
                    Some(outcome) => action(skb, $back, outcome),
                    None => SLOW,
                }
            }

            #[inline(never)]
            fn $slow<const LINK: usize, F: Family>(skb: *mut __sk_buff, family: F) -> i32
            where
                Maps<F>: Tables<F::Address>,
            {
                let (mut packet, hook) = (Skb::<LINK>::bare(skb), Hook::<LINK>::new(skb));
                let outcome = datapath::$slow::<F, _, _, _>(&mut packet, &Maps(family), &hook);
                action(skb, $back, outcome)
            }
        )*
    };
}

paths! {
    ingress_fast, ingress_slow, 0;
    egress_fast, egress_slow, TO_STACK;
}

/// The protocol of a packet that is for the hook's device; 0 for others.
///
/// What carries a VLAN tag is left to the hooks of the VLAN's own device, lest it be served twice. (Tag number 0 only has a
/// priority; the packet is the device's own.)
#[inline(always)]
fn protocol(skb: *mut __sk_buff) -> u32 {
    // SAFETY: fields of the program's own context.
    unsafe {
        if (*skb).vlan_present != 0 && (*skb).vlan_tci & VLAN_NUMBER != 0 {
            return 0;
        }
        (*skb).protocol
    }
}

/// What to return for a packet. An answer to it goes back to where it came from: out of the device, or with [`TO_STACK`] to
/// the stack.
#[inline(always)]
fn action(skb: *mut __sk_buff, back: u64, outcome: Outcome) -> i32 {
    match outcome.verdict {
        Verdict::Continue if outcome.reason == Reason::Previous => heir::PREVIOUS,
        Verdict::Continue | Verdict::Rewrite => NEXT,
        Verdict::Reject => {
            log_refused(skb, outcome.reason);
            send_back(skb, back)
        }
        Verdict::Drop => {
            log_refused(skb, outcome.reason);
            DROP
        }
        Verdict::Hold => DROP,
    }
}

/// Redirects what the packet became to its device.
#[inline(always)]
fn send_back(skb: *mut __sk_buff, flags: u64) -> i32 {
    // SAFETY: a field of the program's own context, and a helper call.
    unsafe { bpf_redirect((*skb).ifindex, flags) as i32 }
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
