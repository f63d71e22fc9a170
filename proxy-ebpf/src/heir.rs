//! The same programs as heirs: for the time in which they take over from a previous generation of programs, which has flows in
//! tables of its own.
//!
//! They take its place at every hook before anything else changes: as long as they follow, each packet goes on to the previous
//! generation's program by a tail call. One write then has all of them lead at once: they decide themselves, and leave to the
//! previous programs only what belongs to their flows. So every packet is treated by one generation, at all hooks by the same.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action::XDP_PASS},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use proxy_common::layout::handover::FOLLOWS;

use crate::{ETHERNET, NEXT, NONE, egress_behind, ingress_behind, maps, xdp as express};

/// Stands for an action: what the previous generation's program makes of the packet.
pub const PREVIOUS: i32 = i32::MIN;

/// Places in `previous_tc`; the agent knows them by the programs' names.
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;
const INGRESS_L3: u32 = 2;
const EGRESS_L3: u32 = 3;

/// See [`crate::ingress`].
#[classifier]
pub fn ingress_heir(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    if !follows() {
        let action = ingress_behind::<ETHERNET>(context);
        if action != PREVIOUS {
            return action;
        }
    }
    leave_to::<INGRESS>(skb)
}

/// See [`crate::egress`].
#[classifier]
pub fn egress_heir(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    if !follows() {
        let action = egress_behind::<ETHERNET>(context);
        if action != PREVIOUS {
            return action;
        }
    }
    leave_to::<EGRESS>(skb)
}

/// See [`crate::ingress_l3`].
#[classifier]
pub fn ingress_l3_heir(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    if !follows() {
        let action = ingress_behind::<NONE>(context);
        if action != PREVIOUS {
            return action;
        }
    }
    leave_to::<INGRESS_L3>(skb)
}

/// See [`crate::egress_l3`].
#[classifier]
pub fn egress_l3_heir(context: TcContext) -> i32 {
    let skb = context.skb.skb;
    if !follows() {
        let action = egress_behind::<NONE>(context);
        if action != PREVIOUS {
            return action;
        }
    }
    leave_to::<EGRESS_L3>(skb)
}

/// See [`crate::forward`].
#[xdp]
pub fn forward_heir(context: XdpContext) -> u32 {
    if !follows() {
        let action = express::forward(&context);
        if action != express::PREVIOUS {
            return action;
        }
    }
    // SAFETY: the program's own context and a map; nothing here has a destructor.
    unsafe { maps::PREVIOUS_XDP.tail_call(&context, 0) };
    // There is none: the hooks leave the flow to the programs that there are.
    XDP_PASS
}

/// Whether the previous generation decides. (A function of its own: what it has on the stack would be below all that follows, and there
/// is none to spare.)
#[inline(never)]
fn follows() -> bool {
    // SAFETY: read at once; the map's memory outlives the program.
    maps::HANDOVER
        .get_ptr(0)
        .is_some_and(|word| unsafe { word.read_volatile() } == FOLLOWS)
}

/// Ends this program and runs the previous generation's one for this place, if there is one.
#[inline(always)]
fn leave_to<const PLACE: u32>(skb: *mut __sk_buff) -> i32 {
    let context = TcContext::new(skb);
    // SAFETY: the program's own context and a map; nothing here has a destructor.
    unsafe { maps::PREVIOUS_TC.tail_call(&context, PLACE) };
    NEXT
}
