//! The environment at a tc hook: the kernel's, with what is rare and long behind functions of their own (see [`outlined`]).
//!
//! [`outlined`]: crate::outlined

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    datapath::{self, Claim, Environment, Eviction, Reason, Scratch, Tables},
    layout::{AddressBytes, Event, FlowKey, HeldKey, Timeouts},
    packet::{Family, Packet, V4, V6},
};

use crate::{
    ETHERNET, NONE,
    environment::Kernel,
    outlined::{NOTHING, claimed, is_ipv6, reason},
    skb::Skb,
    tables::Maps,
};

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

/// Defines the functions for a family behind link-layer headers of one length.
macro_rules! outlined {
    ($link:ident, $family:ident, $address:ty, $icmp_error:ident, $refuse:ident, $send_held:ident, $choose:ident,
     $claim:ident, $judge_host_packet:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $icmp_error(skb: *mut __sk_buff, direction: u32) -> u32 {
            let mut packet = Skb::<$link>::bare(skb);
            datapath::icmp_error::<$family, _, _>(&mut packet, &Maps($family), direction as u8)
                .map_or(NOTHING, |reason| reason as u32)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $refuse(skb: *mut __sk_buff, direction: u32, number: u32) -> u32 {
            let (mut packet, hook) = (Skb::<$link>::bare(skb), Hook::<$link>::new(skb));
            match reason(number) {
                Some(reason) => {
                    datapath::refuse::<$family, _, _, _>(&mut packet, &Maps($family), &hook, direction as u8, reason)
                        as u32
                }
                None => NOTHING,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $send_held(skb: *mut __sk_buff, queue: u32, place: u32, direction: u32) -> u32 {
            let (mut packet, key) = (Skb::<$link>::bare(skb), HeldKey { queue, place });
            datapath::send_held::<$family, _, _>(&mut packet, &Maps($family), key, direction as u8);
            NOTHING
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $choose(skb: *mut __sk_buff, scratch: *mut Scratch<$address>) -> u32 {
            // SAFETY: the caller's scratch memory; the verifier checks its size.
            let Some(scratch) = (unsafe { scratch.as_mut() }) else {
                return NOTHING;
            };
            match datapath::choose(&Maps($family), &Hook::<$link>::new(skb), scratch) {
                Ok(()) => NOTHING,
                Err(reason) => reason as u32,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $claim(skb: *mut __sk_buff, scratch: *mut Scratch<$address>, eviction: u32) -> u32 {
            // SAFETY: as above.
            match unsafe { scratch.as_mut() } {
                Some(scratch) => datapath::claim(
                    &Maps($family),
                    &Hook::<$link>::new(skb),
                    scratch,
                    Eviction::from_number(eviction),
                ) as u32,
                None => Claim::Full as u32,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $judge_host_packet(skb: *mut __sk_buff) -> u32 {
            let (packet, hook) = (Skb::<$link>::bare(skb), Hook::<$link>::new(skb));
            match datapath::judge_host_packet::<$family, _, _, _>(&packet, &Maps($family), &hook) {
                Reason::Unrelated => NOTHING,
                reason => reason as u32,
            }
        }
    };
}

outlined!(
    ETHERNET,
    V4,
    [u8; 4],
    icmp_error_v4,
    refuse_v4,
    send_held_v4,
    choose_v4,
    claim_v4,
    judge_host_packet_v4
);
outlined!(
    ETHERNET,
    V6,
    [u8; 16],
    icmp_error_v6,
    refuse_v6,
    send_held_v6,
    choose_v6,
    claim_v6,
    judge_host_packet_v6
);
outlined!(
    NONE,
    V4,
    [u8; 4],
    icmp_error_l3_v4,
    refuse_l3_v4,
    send_held_l3_v4,
    choose_l3_v4,
    claim_l3_v4,
    judge_host_packet_l3_v4
);
outlined!(
    NONE,
    V6,
    [u8; 16],
    icmp_error_l3_v6,
    refuse_l3_v6,
    send_held_l3_v6,
    choose_l3_v6,
    claim_l3_v6,
    judge_host_packet_l3_v6
);

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
    fn exact_nanoseconds(&self) -> u64 {
        self.kernel.exact_nanoseconds()
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
    fn timeouts(&self) -> &Timeouts {
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
    fn refuse<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        _packet: &mut P,
        _tables: &T,
        direction: u8,
        refused: Reason,
    ) -> Reason {
        let (direction, number) = (direction.into(), refused as u32);
        let outcome = reason(match (LINK, F::IPV6) {
            (ETHERNET, false) => refuse_v4(self.skb, direction, number),
            (ETHERNET, true) => refuse_v6(self.skb, direction, number),
            (_, false) => refuse_l3_v4(self.skb, direction, number),
            (_, true) => refuse_l3_v6(self.skb, direction, number),
        });
        outcome.unwrap_or(refused)
    }

    #[inline(always)]
    fn tell<A: AddressBytes, T: Tables<A>>(&self, tables: &T, event: &Event) {
        self.kernel.tell(tables, event);
    }

    #[inline(always)]
    fn send_held<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        _packet: &mut P,
        _tables: &T,
        HeldKey { queue, place }: HeldKey,
        direction: u8,
    ) {
        let direction = direction.into();
        match (LINK, F::IPV6) {
            (ETHERNET, false) => send_held_v4(self.skb, queue, place, direction),
            (ETHERNET, true) => send_held_v6(self.skb, queue, place, direction),
            (_, false) => send_held_l3_v4(self.skb, queue, place, direction),
            (_, true) => send_held_l3_v6(self.skb, queue, place, direction),
        };
    }

    #[inline(always)]
    fn choose<A: AddressBytes, T: Tables<A>>(&self, _tables: &T, scratch: &mut Scratch<A>) -> Result<(), Reason> {
        let (skb, scratch) = (self.skb, &raw mut *scratch);
        reason(match (LINK, is_ipv6::<A>()) {
            (ETHERNET, false) => choose_v4(skb, scratch.cast()),
            (ETHERNET, true) => choose_v6(skb, scratch.cast()),
            (_, false) => choose_l3_v4(skb, scratch.cast()),
            (_, true) => choose_l3_v6(skb, scratch.cast()),
        })
        .map_or(Ok(()), Err)
    }

    #[inline(always)]
    fn claim<A: AddressBytes, T: Tables<A>>(&self, _tables: &T, scratch: &mut Scratch<A>, eviction: Eviction) -> Claim {
        let (skb, scratch, eviction) = (self.skb, &raw mut *scratch, eviction as u32);
        claimed(match (LINK, is_ipv6::<A>()) {
            (ETHERNET, false) => claim_v4(skb, scratch.cast(), eviction),
            (ETHERNET, true) => claim_v6(skb, scratch.cast(), eviction),
            (_, false) => claim_l3_v4(skb, scratch.cast(), eviction),
            (_, true) => claim_l3_v6(skb, scratch.cast(), eviction),
        })
    }

    #[inline(always)]
    fn judge_host_packet<F: Family, P: Packet, T: Tables<F::Address>>(&self, _packet: &P, _tables: &T) -> Reason {
        let judged = reason(match (LINK, F::IPV6) {
            (ETHERNET, false) => judge_host_packet_v4(self.skb),
            (ETHERNET, true) => judge_host_packet_v6(self.skb),
            (_, false) => judge_host_packet_l3_v4(self.skb),
            (_, true) => judge_host_packet_l3_v6(self.skb),
        });
        judged.unwrap_or(Reason::Unrelated)
    }
}
