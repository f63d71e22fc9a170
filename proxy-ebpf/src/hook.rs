//! The environment at a tc hook: the kernel's, with what is rare and long behind functions of their own.
//!
//! A function with a name and simple arguments is global to the verifier: it goes through it once, whatever the arguments, and
//! not again with every state in which it is called. That makes the programs half as expensive to load.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    datapath::{self, Environment, Reason, Tables},
    layout::{AddressBytes, FlowKey, Timeouts},
    packet::{Family, Packet, V4, V6},
};

use crate::{ETHERNET, NONE, environment::Kernel, skb::Skb, tables::Maps};

/// A hook of a device whose link-layer header is `LINK` bytes long.
pub struct Hook<const LINK: usize> {
    kernel: Kernel,
    skb: *mut __sk_buff,
}

impl<const LINK: usize> Hook<LINK> {
    /// The hook that the packet is at.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        // SAFETY: a field of the program's own context.
        let device = unsafe { (*skb).ifindex };
        let context = skb.cast();
        Self {
            kernel: Kernel { device, context },
            skb,
        }
    }
}

/// What the functions below return: nothing to say, or one of these reasons.
const NOTHING: u32 = u32::MAX;

/// The reason that a function has returned.
#[inline(always)]
fn reason(number: u32) -> Option<Reason> {
    const ICMP_ERROR: u32 = Reason::IcmpError as u32;
    const REWRITE_FAILED: u32 = Reason::RewriteFailed as u32;
    const ANSWER_LIMITED: u32 = Reason::AnswerLimited as u32;
    const UNANSWERABLE: u32 = Reason::Unanswerable as u32;
    match number {
        ICMP_ERROR => Some(Reason::IcmpError),
        REWRITE_FAILED => Some(Reason::RewriteFailed),
        ANSWER_LIMITED => Some(Reason::AnswerLimited),
        UNANSWERABLE => Some(Reason::Unanswerable),
        _ => None,
    }
}

/// Defines the functions for a family behind link-layer headers of one length.
macro_rules! outlined {
    ($link:ident, $family:ident, $icmp_error:ident, $reject:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $icmp_error(skb: *mut __sk_buff, direction: u32) -> u32 {
            let mut packet = Skb::<$link>::bare(skb);
            datapath::icmp_error::<$family, _, _>(&mut packet, &Maps($family), direction as u8)
                .map_or(NOTHING, |reason| reason as u32)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reject(skb: *mut __sk_buff) -> u32 {
            let (mut packet, hook) = (Skb::<$link>::bare(skb), Hook::<$link>::new(skb));
            match datapath::reject::<$family, _, _, _>(&mut packet, &Maps($family), &hook, Reason::NoEndpoints) {
                Reason::NoEndpoints => NOTHING,
                reason => reason as u32,
            }
        }
    };
}

outlined!(ETHERNET, V4, icmp_error_v4, reject_v4);
outlined!(ETHERNET, V6, icmp_error_v6, reject_v6);
outlined!(NONE, V4, icmp_error_l3_v4, reject_l3_v4);
outlined!(NONE, V6, icmp_error_l3_v6, reject_l3_v6);

impl<const LINK: usize> Environment for Hook<LINK> {
    #[inline(always)]
    fn now(&self) -> u32 {
        self.kernel.now()
    }

    #[inline(always)]
    fn nanoseconds(&self) -> u64 {
        self.kernel.nanoseconds()
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        self.kernel.random()
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        self.kernel.device()
    }

    #[inline(always)]
    fn timeouts(&self) -> Timeouts {
        self.kernel.timeouts()
    }

    #[inline(always)]
    fn has_socket<A: AddressBytes>(&self, key: &FlowKey<A>) -> bool {
        self.kernel.has_socket(key)
    }

    #[inline(always)]
    fn icmp_error<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        _packet: &mut P,
        _tables: &T,
        direction: u8,
    ) -> Option<Reason> {
        let direction = direction.into();
        reason(match (LINK, F::IPV6) {
            (ETHERNET, false) => icmp_error_v4(self.skb, direction),
            (ETHERNET, true) => icmp_error_v6(self.skb, direction),
            (_, false) => icmp_error_l3_v4(self.skb, direction),
            (_, true) => icmp_error_l3_v6(self.skb, direction),
        })
    }

    #[inline(always)]
    fn reject<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        _packet: &mut P,
        _tables: &T,
        refused: Reason,
    ) -> Reason {
        let unanswered = reason(match (LINK, F::IPV6) {
            (ETHERNET, false) => reject_v4(self.skb),
            (ETHERNET, true) => reject_v6(self.skb),
            (_, false) => reject_l3_v4(self.skb),
            (_, true) => reject_l3_v6(self.skb),
        });
        unanswered.unwrap_or(refused)
    }
}
