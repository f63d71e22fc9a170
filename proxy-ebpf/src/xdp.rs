//! A frame at the XDP hook as the datapath's packet, and the kernel's routes.
//!
//! Checksums are complete here: real devices deliver them so. A packet of a neighbouring veth may have only the pseudo
//! header's sum (`CHECKSUM_PARTIAL`), which nothing tells and no device would complete after XDP; such a neighbour must
//! compute checksums itself (`ethtool -K DEVICE tx off`).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibLookup,
        xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX},
        xdp_md,
    },
    helpers::generated::{bpf_fib_lookup, bpf_redirect},
    programs::XdpContext,
};
use core::marker::PhantomData;
use proxy_common::{
    datapath::{self, Claim, Crossing, Eviction, Forwarding, Hop, Routes, Scratch, Tables},
    layout::{AddressBytes, FlowKey},
    packet::{ChecksumChange, Hops, Packet, V4, V6, View as _, ViewMut as _, checksum},
};

use crate::{
    environment::Kernel,
    maps,
    outlined::NOTHING,
    skb::{Bytes, crc32c_difference},
    tables::Maps,
};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// EtherTypes (IEEE 802 numbers). Tagged frames have others: they go up.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// The bit of an Ethernet address that says "for a group".
const GROUP: u8 = 1;
/// Longest distance from the network header that is looked at: plain headers only.
const MAX_OFFSET: usize = 0xff;

/// Stands for an action: what the previous generation's program makes of the frame.
pub const PREVIOUS: u32 = u32::MAX;

/// Forwards a frame, or passes it up untouched.
#[inline(always)]
pub fn forward(context: &XdpContext) -> u32 {
    let frame = Frame(context.as_ptr().cast());
    let Some(header) = frame.bytes::<ETHERNET>() else {
        return XDP_PASS;
    };
    let ([first, _], ether_type) = (header.load(0), u16::from_be_bytes(header.load(12)));
    if first & GROUP != 0 {
        return XDP_PASS;
    }
    match ether_type {
        IPV4 => forward_v4(frame),
        IPV6 => forward_v6(frame),
        _ => XDP_PASS,
    }
}

/// Not inlined, so that the families do not add up on the stack.
#[inline(never)]
fn forward_v4(frame: Frame) -> u32 {
    match maps::CROSSING_V4.get_ptr_mut(0) {
        // SAFETY: this CPU's own slot; XDP programs do not preempt each other.
        Some(crossing) => forward_of(frame, V4, unsafe { &mut *crossing }),
        None => XDP_PASS,
    }
}

/// See [`forward_v4`].
#[inline(never)]
fn forward_v6(frame: Frame) -> u32 {
    match maps::CROSSING_V6.get_ptr_mut(0) {
        // SAFETY: as above.
        Some(crossing) => forward_of(frame, V6, unsafe { &mut *crossing }),
        None => XDP_PASS,
    }
}

/// Defines the functions for a family that the verifier looks at once.
macro_rules! outlined {
    ($family:ident, $address:ty, $choose:ident, $claim:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $choose(context: *mut xdp_md, scratch: *mut Scratch<$address>) -> u32 {
            // SAFETY: the caller's scratch memory; the verifier checks its size.
            let Some(scratch) = (unsafe { scratch.as_mut() }) else {
                return NOTHING;
            };
            match datapath::choose(&Maps($family), &kernel(context), scratch) {
                Ok(()) => NOTHING,
                Err(reason) => reason as u32,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $claim(context: *mut xdp_md, scratch: *mut Scratch<$address>, eviction: u32) -> u32 {
            // SAFETY: as above.
            match unsafe { scratch.as_mut() } {
                Some(scratch) => datapath::claim(
                    &Maps($family),
                    &kernel(context),
                    scratch,
                    Eviction::from_number(eviction),
                ) as u32,
                None => Claim::Full as u32,
            }
        }
    };
}

outlined!(V4, [u8; 4], choose_at_uplink_v4, claim_at_uplink_v4);
outlined!(V6, [u8; 16], choose_at_uplink_v6, claim_at_uplink_v6);

/// The environment at the uplink that a frame comes from.
#[inline(always)]
fn kernel(context: *mut xdp_md) -> Kernel {
    // SAFETY: a field of the program's own context.
    let device = unsafe { (*context).ingress_ifindex };
    let context = context.cast();
    Kernel { device, context }
}

#[inline(always)]
fn forward_of<F: Hops>(mut frame: Frame, family: F, crossing: &mut Crossing<F::Address>) -> u32
where
    Maps<F>: Tables<F::Address>,
{
    let kernel = kernel(frame.0);
    match datapath::forward::<F, _, _, _>(&mut frame, &Maps(family), &kernel, crossing) {
        Forwarding::PassUp => XDP_PASS,
        Forwarding::Drop => XDP_ABORTED,
        Forwarding::Previous => PREVIOUS,
        Forwarding::Transmit => transmit(&frame, kernel.device, &crossing.hop),
    }
}

/// Addresses the frame to its next hop and sends it there.
#[inline(always)]
fn transmit(frame: &Frame, device: u32, hop: &Hop) -> u32 {
    let Some(mut header) = frame.bytes::<ETHERNET>() else {
        return XDP_ABORTED;
    };
    let [d0, d1, d2, d3, d4, d5] = hop.destination;
    let [s0, s1, s2, s3, s4, s5] = hop.source;
    header.store(0, [d0, d1, d2, d3]);
    header.store(4, [d4, d5, s0, s1]);
    header.store(8, [s2, s3, s4, s5]);
    if hop.device == device {
        return XDP_TX;
    }
    // SAFETY: a helper call.
    unsafe { bpf_redirect(hop.device, 0) as u32 }
}

impl Routes for Kernel {
    #[inline(always)]
    fn at(&self, device: u32) -> Self {
        Self {
            device,
            context: self.context,
        }
    }

    /// A frame for another host, which a device without a filter receives, is none of ours. That shows where the packet would
    /// leave by the device that it came from, whose address is told then.
    #[inline(never)]
    fn route<A: AddressBytes>(&self, journey: &FlowKey<A>, class: u32, length: u32, hop: &mut Hop) -> bool {
        const FAMILY_V4: u8 = 2;
        const FAMILY_V6: u8 = 10;
        let v4 = size_of::<A>() == 4;
        // SAFETY: integers only.
        let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
        lookup.family = if v4 { FAMILY_V4 } else { FAMILY_V6 };
        lookup.l4_protocol = journey.protocol;
        lookup.sport = journey.source_port.to_be();
        lookup.dport = journey.destination_port.to_be();
        lookup.__bindgen_anon_1.tot_len = length.min(u16::MAX.into()) as u16;
        lookup.ifindex = self.device;
        // The type of service is the first byte of this word, the IPv6 class and label all of it: as they stand in memory.
        lookup.__bindgen_anon_2.flowinfo = class;
        // SAFETY: both unions have room for an address of either family, at their beginning; addresses are 4 or 16 bytes.
        unsafe {
            *(&raw mut lookup.__bindgen_anon_3).cast::<A>() = journey.source;
            *(&raw mut lookup.__bindgen_anon_4).cast::<A>() = journey.destination;
        }
        let size = size_of::<FibLookup>() as i32;
        // SAFETY: a helper call on the program's own context, with a structure of the size given.
        let found = unsafe { bpf_fib_lookup(self.context, &raw mut lookup, size, 0) } as u32;
        hop.device = match found {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => lookup.ifindex,
            _ => 0,
        };
        (hop.destination, hop.source) = (lookup.dmac, lookup.smac);
        found == BPF_FIB_LKUP_RET_SUCCESS
            && (hop.device != self.device || Frame(self.context.cast()).is_for(&hop.source))
    }
}

/// A frame at the XDP hook.
#[derive(Clone, Copy)]
pub struct Frame(*mut xdp_md);

impl Frame {
    /// Its first `N` bytes, if it is so long.
    #[inline(always)]
    fn bytes<const N: usize>(&self) -> Option<Bytes<'_>> {
        self.address::<N>(0).map(|address| Bytes(address, PhantomData))
    }

    /// Whether it is addressed to a device.
    #[inline(always)]
    fn is_for(&self, address: &[u8; 6]) -> bool {
        let [a, b, c, d, e, f] = *address;
        self.bytes::<ETHERNET>()
            .is_some_and(|header| header.load(0) == [a, b, c, d] && header.load(4) == [e, f])
    }

    /// Address of `N` bytes at `offset`, if the frame holds them.
    #[inline(always)]
    fn address<const N: usize>(&self, offset: usize) -> Option<usize> {
        const { assert!(N >= 2, "the verifier learns nothing from a check of one byte") };
        // SAFETY: fields of the program's own context; the verifier turns them into packet pointers.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let start = data + offset;
        (start + N <= end).then_some(start)
    }

    /// [`Frame::address`] from the network header on.
    #[inline(always)]
    fn behind_ethernet<const N: usize>(&self, offset: usize) -> Option<usize> {
        if offset > MAX_OFFSET {
            return None;
        }
        self.address::<N>(ETHERNET + offset)
    }
}

impl Packet for Frame {
    type View<'a> = Bytes<'a>;
    type ViewMut<'a> = Bytes<'a>;

    /// All of it is.
    #[inline(always)]
    fn pull(&mut self, _length: u32) {}

    #[inline(always)]
    fn view<const N: usize>(&self, offset: usize) -> Option<Bytes<'_>> {
        self.behind_ethernet::<N>(offset)
            .map(|address| Bytes(address, PhantomData))
    }

    #[inline(always)]
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<Bytes<'_>> {
        self.behind_ethernet::<N>(offset)
            .map(|address| Bytes(address, PhantomData))
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: fields of the program's own context.
        let length = unsafe { (*self.0).data_end.wrapping_sub((*self.0).data) };
        length.wrapping_sub(ETHERNET as u32)
    }

    #[inline(always)]
    fn crc32c_difference(&self, change: u32, length: u16) -> u32 {
        crc32c_difference(change, length.into())
    }

    /// Nothing is answered here.
    #[inline(always)]
    fn become_answer(&mut self, _quote: usize, _room: usize) -> Option<()> {
        None
    }

    #[inline(always)]
    fn update_transport_checksum(&mut self, change: &ChecksumChange) -> Option<()> {
        let mut field = self.view_mut::<2>(change.offset)?;
        let before = u16::from_ne_bytes(field.load(0));
        if change.zero_is_none && before == 0 {
            return Some(());
        }
        let after = checksum::update(checksum::update(before, change.addresses), change.ports);
        let after = if change.zero_is_none && after == 0 {
            0xffff
        } else {
            after
        };
        field.store(0, after.to_ne_bytes());
        Some(())
    }
}
