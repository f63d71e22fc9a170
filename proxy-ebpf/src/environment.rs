//! The kernel's clock and chance, and the device of the hook.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock},
    cty::c_void,
    helpers::generated::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_sk_lookup_udp, bpf_sk_release,
        bpf_skc_lookup_tcp,
    },
};
use proxy_common::{
    datapath::{Claim, Environment, Eviction, Reason, Scratch, Tables},
    layout::{AddressBytes, Event, FlowKey, TICK_SHIFT, Timeouts},
    packet::{TCP, UDP},
};

use crate::{
    outlined::{self, is_ipv6},
    settings, tell, xdp,
};

/// The environment at a hook.
pub struct Kernel {
    /// Interface index of the device
    pub device: u32,
    /// The program's context
    pub context: *mut c_void,
}

/// `struct bpf_sock_tuple` of one address family: a packet that a socket would get.
#[repr(C, align(4))]
struct SocketTuple<A> {
    source: A,
    destination: A,
    source_port: u16,
    destination_port: u16,
}

impl Environment for Kernel {
    #[inline(always)]
    fn now(&self) -> u32 {
        (self.nanoseconds() >> TICK_SHIFT) as u32
    }

    #[inline(always)]
    fn nanoseconds(&self) -> u64 {
        // SAFETY: a helper without arguments. The coarse clock is cheap, and goes on every few milliseconds.
        unsafe { bpf_ktime_get_coarse_ns() }
    }

    #[inline(always)]
    fn exact_nanoseconds(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        self.device
    }

    #[inline(always)]
    fn timeouts(&self) -> &Timeouts {
        settings::timeouts()
    }

    #[inline(never)]
    fn has_socket<A: AddressBytes>(&self, key: &FlowKey<A>) -> bool {
        let mut tuple = SocketTuple {
            source: key.source,
            destination: key.destination,
            source_port: key.source_port.to_be(),
            destination_port: key.destination_port.to_be(),
        };
        let protocol = key.protocol;
        let (tuple, size) = ((&raw mut tuple).cast(), size_of::<SocketTuple<A>>() as u32);
        let netns = BPF_F_CURRENT_NETNS as u64;
        let socket: *mut bpf_sock = match protocol {
            // SAFETY: helper calls on the program's own context, with a tuple of the size given.
            TCP => unsafe { bpf_skc_lookup_tcp(self.context, tuple, size, netns, 0) },
            // SAFETY: as above.
            UDP => unsafe { bpf_sk_lookup_udp(self.context, tuple, size, netns, 0) },
            _ => return false,
        };
        if socket.is_null() {
            return false;
        }
        // SAFETY: a field of a socket that is held until it is released; the verifier checks both.
        unsafe {
            let listens = protocol == TCP && (*socket).state == BPF_TCP_LISTEN;
            bpf_sk_release(socket.cast());
            !listens
        }
    }

    #[inline(always)]
    fn tell<A: AddressBytes, T: Tables<A>>(&self, _tables: &T, event: &Event) {
        tell::tell(&raw const *event);
    }

    /// At an uplink, where no hook stands before this.
    #[inline(always)]
    fn choose<A: AddressBytes, T: Tables<A>>(&self, _tables: &T, scratch: &mut Scratch<A>) -> Result<(), Reason> {
        let (context, scratch) = (self.context.cast(), &raw mut *scratch);
        outlined::reason(if is_ipv6::<A>() {
            xdp::choose_at_uplink_v6(context, scratch.cast())
        } else {
            xdp::choose_at_uplink_v4(context, scratch.cast())
        })
        .map_or(Ok(()), Err)
    }

    /// As above.
    #[inline(always)]
    fn claim<A: AddressBytes, T: Tables<A>>(&self, _tables: &T, scratch: &mut Scratch<A>, eviction: Eviction) -> Claim {
        let (context, scratch, eviction) = (self.context.cast(), &raw mut *scratch, eviction as u32);
        outlined::claimed(if is_ipv6::<A>() {
            xdp::claim_at_uplink_v6(context, scratch.cast(), eviction)
        } else {
            xdp::claim_at_uplink_v4(context, scratch.cast(), eviction)
        })
    }
}
