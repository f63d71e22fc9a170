//! A socket buffer as the datapath's packet.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_CSUM_LEVEL_RESET, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{
        bpf_clone_redirect, bpf_csum_level, bpf_csum_update, bpf_l4_csum_replace, bpf_skb_adjust_room,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use core::{arch::asm, marker::PhantomData};
use proxy_common::{
    layout::{HELD_BYTES, HeldFragment, INGRESS},
    packet::{self, ChecksumChange, MAX_QUOTE, Packet, Skip, View, ViewMut, checksum, crc32c},
};

use crate::settings;

/// Longest distance from the network header that is read: bounds what the verifier must consider. Extension headers
/// can be longer in theory; such a packet counts as malformed.
const MAX_OFFSET: usize = 0x3fff;

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// Bytes pulled into the linear part at once: Ethernet, IPv6, a few extension headers, TCP.
const LINEAR: u32 = 128;

/// Checked bytes of a packet: an address that the verifier knows the range of.
///
/// Loads and stores are single instructions. Rust would split them into bytes, for headers are not aligned and the BPF
/// target knows no unaligned access; packet memory allows it (the verifier refuses it where the machine doesn't).
pub struct Bytes<'a>(pub usize, pub PhantomData<&'a ()>);

/// A load of `L` bytes into the register `$value`.
macro_rules! load {
    ($type:ident, $name:literal, $address:expr) => {{
        let value: u64;
        // SAFETY: a plain load in the range that was checked; the verifier checks it again.
        unsafe {
            asm!(
                concat!("{value} = *(", $name, " *)({address} + 0)"),
                value = out(reg) value, address = in(reg) $address, options(pure, readonly, nostack, preserves_flags)
            );
        };
        (value as $type).to_ne_bytes()
    }};
}

/// A store of a register.
macro_rules! store {
    ($type:ident, $name:literal, $address:expr, $bytes:expr) => {{
        let value = u64::from($type::from_ne_bytes($bytes));
        // SAFETY: a plain store in the range that was checked; the verifier checks it again.
        unsafe {
            asm!(
                concat!("*(", $name, " *)({address} + 0) = {value}"),
                value = in(reg) value, address = in(reg) $address, options(nostack, preserves_flags)
            );
        };
    }};
}

/// The first `N` of `L` bytes.
#[inline(always)]
fn part<const L: usize, const N: usize>(bytes: [u8; L], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&bytes[at..at + N]);
    part
}

impl View for Bytes<'_> {
    #[inline(always)]
    fn load<const L: usize>(&self, at: usize) -> [u8; L] {
        const { assert!(matches!(L, 1 | 2 | 4 | 8 | 16), "no such access") };
        let address = self.0 + at;
        match L {
            1 => part(load!(u8, "u8", address), 0),
            2 => part(load!(u16, "u16", address), 0),
            4 => part(load!(u32, "u32", address), 0),
            8 => part(load!(u64, "u64", address), 0),
            _ => {
                let mut bytes = [0; L];
                bytes[..8].copy_from_slice(&load!(u64, "u64", address));
                bytes[8..].copy_from_slice(&load!(u64, "u64", address + 8));
                bytes
            }
        }
    }
}

impl ViewMut for Bytes<'_> {
    #[inline(always)]
    fn store<const L: usize>(&mut self, at: usize, bytes: [u8; L]) {
        const { assert!(matches!(L, 1 | 2 | 4 | 8 | 16), "no such access") };
        let address = self.0 + at;
        match L {
            1 => store!(u8, "u8", address, part(bytes, 0)),
            2 => store!(u16, "u16", address, part(bytes, 0)),
            4 => store!(u32, "u32", address, part(bytes, 0)),
            8 => store!(u64, "u64", address, part(bytes, 0)),
            _ => {
                store!(u64, "u64", address, part(bytes, 0));
                store!(u64, "u64", address + 8, part(bytes, 8));
            }
        }
    }
}

/// [`crc32c::difference`], with a name, which makes it a global function to the verifier: it looks at its steps once, and not
/// again with every state in which it is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc32c_difference(change: u32, length: u32) -> u32 {
    crc32c::difference(change, length as u16)
}

/// What [`skip_extensions`] returns: the protocol above the offset, or one of these.
const MALFORMED: u32 = 0x0100_0000;
const FRAGMENT: u32 = 0x0200_0000;
const OTHER_PROTOCOL: u32 = 0x0300_0000;

/// [`packet::skip_extensions`], global likewise. Offsets count from the link-layer header here, so that it is the same function
/// for all devices.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skip_extensions(skb: *mut __sk_buff, first: u32, offset: u32, refused: u32) -> u32 {
    match packet::skip_extensions(&Skb::<0>::bare(skb), first as u8, offset as usize, refused as u16) {
        Ok((protocol, offset)) => u32::from(protocol) << 16 | offset as u32 & 0xffff,
        Err(Skip::Malformed) => MALFORMED,
        Err(Skip::Fragment) => FRAGMENT,
        Err(Skip::OtherProtocol) => OTHER_PROTOCOL,
    }
}

/// A packet at a tc hook of a device whose link-layer header is `LINK` bytes long.
pub struct Skb<const LINK: usize> {
    skb: *mut __sk_buff,
}

impl<const LINK: usize> Skb<LINK> {
    /// Wraps the context of a classifier program, whose headers [`Skb::new`] has made readable.
    #[inline(always)]
    pub fn bare(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Wraps the context of a classifier program and makes its headers readable.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        let packet = Self::bare(skb);
        // IPv4 and TCP must be in the linear part, of a packet long enough IPv6 and TCP; nearly always they are.
        if packet.view::<40>(0).is_none() || packet.view::<60>(0).is_none() && packet.length() >= 60 {
            // SAFETY: a helper call on the program's own context. Failure leaves the packet as short as it was, which
            // every access checks.
            unsafe { bpf_skb_pull_data(skb, LINEAR.min((*skb).len)) };
        }
        packet
    }

    /// Start and end of the linear part.
    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        // SAFETY: fields of the program's own context; the verifier turns them into packet pointers.
        unsafe { ((*self.skb).data as usize, (*self.skb).data_end as usize) }
    }

    /// Address of `N` bytes at `offset`, if the linear part holds them.
    #[inline(always)]
    fn address<const N: usize>(&self, offset: usize) -> Option<usize> {
        const { assert!(N >= 2, "the verifier learns nothing from a check of one byte") };
        if offset > MAX_OFFSET {
            return None;
        }
        let (data, end) = self.linear();
        let start = data + LINK + offset;
        (start + N <= end).then_some(start)
    }

    /// Exchanges the addresses of the Ethernet header, if there is one.
    #[inline(always)]
    fn turn_around(&mut self) -> Option<()> {
        if LINK == ETHERNET {
            let (data, end) = self.linear();
            if data + ETHERNET > end {
                return None;
            }
            let mut header = Bytes(data, PhantomData);
            let (destination, source): ([u8; 8], [u8; 4]) = (header.load(0), header.load(8));
            let [d0, d1, d2, d3, d4, d5, s0, s1] = destination;
            let [s2, s3, s4, s5] = source;
            header.store(0, [s0, s1, s2, s3, s4, s5, d0, d1]);
            header.store(8, [d2, d3, d4, d5]);
        }
        Some(())
    }

    /// Sets the length of the packet after its link-layer header.
    #[inline(always)]
    fn resize(&self, length: usize) -> Option<()> {
        // SAFETY: a helper call on the program's own context.
        (unsafe { bpf_skb_change_tail(self.skb, (LINK + length) as u32, 0) } == 0).then_some(())
    }

    /// Calls `bpf_l4_csum_replace` for a difference.
    #[inline(always)]
    fn replace(&self, offset: usize, difference: u16, flags: u64) -> Option<()> {
        // SAFETY: a helper call on the program's own context; size 0 means that `to` is a difference.
        let error = unsafe { bpf_l4_csum_replace(self.skb, (LINK + offset) as u32, 0, difference.into(), flags) };
        (error == 0).then_some(())
    }
}

impl<const LINK: usize> Packet for Skb<LINK> {
    type View<'a> = Bytes<'a>;
    type ViewMut<'a> = Bytes<'a>;

    #[inline(always)]
    fn pull(&mut self, length: u32) {
        // SAFETY: a helper call on the program's own context. Failure leaves the packet as it was, which every access
        // checks.
        unsafe { bpf_skb_pull_data(self.skb, (length + LINK as u32).min((*self.skb).len)) };
    }

    #[inline(always)]
    fn view<const N: usize>(&self, offset: usize) -> Option<Bytes<'_>> {
        self.address::<N>(offset).map(|address| Bytes(address, PhantomData))
    }

    #[inline(always)]
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<Bytes<'_>> {
        self.address::<N>(offset).map(|address| Bytes(address, PhantomData))
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: a field of the program's own context.
        unsafe { (*self.skb).len }.wrapping_sub(LINK as u32)
    }

    #[inline(always)]
    fn crc32c_difference(&self, change: u32, length: u16) -> u32 {
        crc32c_difference(change, length.into())
    }

    #[inline(always)]
    fn skip_extensions(&self, first: u8, offset: usize, refused: u16) -> Result<(u8, usize), Skip> {
        match skip_extensions(self.skb, first.into(), (LINK + offset) as u32, refused.into()) {
            MALFORMED => Err(Skip::Malformed),
            FRAGMENT => Err(Skip::Fragment),
            OTHER_PROTOCOL => Err(Skip::OtherProtocol),
            found => Ok(((found >> 16) as u8, (found as usize & 0xffff).wrapping_sub(LINK))),
        }
    }

    /// Helpers can't say "no checksum is partial", but one that cuts off the packet's beginning up to behind the place where
    /// the device was to begin its sum has that effect (`skb_postpull_rcsum`). So the packet is made longer, and its beginning
    /// cut off. Growing makes the kernel forget a complete sum (`__skb_grow_rcsum`), and the packet is cut before so that it
    /// does grow; resizing also ends segmentation offload.
    #[inline(never)]
    fn become_answer(&mut self, quote: usize, room: usize) -> Option<()> {
        // More than link-layer header and quote, in which the transport header is.
        const CUT: usize = 128;
        let mut quoted = [0u8; MAX_QUOTE];
        if quote == 0 || quote > MAX_QUOTE {
            return None;
        }
        let (bytes, length) = ((&raw mut quoted).cast(), quote as u32);
        // SAFETY: a helper call on the program's own context and as much of its stack as was checked.
        if unsafe { bpf_skb_load_bytes(self.skb.cast(), LINK as u32, bytes, length) } != 0 {
            return None;
        }
        self.resize(quote)?;
        self.resize(CUT + room + quote)?;
        // SAFETY: a helper call on the program's own context.
        if unsafe { bpf_skb_adjust_room(self.skb, -(CUT as i32), BPF_ADJ_ROOM_MAC, 0) } != 0 {
            return None;
        }
        // SAFETY: as above.
        if unsafe { bpf_skb_store_bytes(self.skb, (LINK + room) as u32, bytes, length, 0) } != 0 {
            return None;
        }
        self.turn_around()
    }

    /// With one helper call where two would be usual: the helper knows whether the checksum is complete or partial
    /// (`CHECKSUM_PARTIAL`), which programs cannot see, and its effect tells it: only a complete one also covers the ports.
    #[inline(always)]
    fn update_transport_checksum(&mut self, change: &ChecksumChange) -> Option<()> {
        let before = u16::from_ne_bytes(self.view::<2>(change.offset)?.load(0));
        if change.zero_is_none && before == 0 {
            return Some(());
        }
        let mangled = if change.zero_is_none {
            u64::from(BPF_F_MARK_MANGLED_0)
        } else {
            0
        };
        if change.addresses == 0 {
            // Nothing to tell it by.
            return if change.ports == 0 {
                Some(())
            } else {
                self.replace(change.offset, change.ports, mangled)
            };
        }
        let ipv6 = if change.ipv6 {
            u64::from(settings::ipv6_checksum_flag())
        } else {
            0
        };
        self.replace(
            change.offset,
            change.addresses,
            u64::from(BPF_F_PSEUDO_HDR) | mangled | ipv6,
        )?;
        if change.ipv6 && ipv6 == 0 {
            // An older kernel believes that the header has a checksum which makes up for the addresses.
            // SAFETY: a helper call on the program's own context; it fails harmlessly unless CHECKSUM_COMPLETE.
            unsafe { bpf_csum_update(self.skb, change.addresses.into()) };
        }
        if change.ports == 0 {
            return Some(());
        }
        let zero = |sum: u16| if change.zero_is_none && sum == 0 { 0xffff } else { sum };
        let mut field = self.view_mut::<2>(change.offset)?;
        let after = u16::from_ne_bytes(field.load(0));
        if after == zero(checksum::update(before, change.addresses)) {
            field.store(0, zero(checksum::update(after, change.ports)).to_ne_bytes());
        }
        Some(())
    }

    #[inline(always)]
    fn note_difference(&mut self, difference: u16) {
        // SAFETY: a helper call on the program's own context; it fails harmlessly unless CHECKSUM_COMPLETE.
        unsafe { bpf_csum_update(self.skb, difference.into()) };
    }

    #[inline(always)]
    fn copy_to(&self, copy: &mut HeldFragment) -> Option<()> {
        let length = self.length();
        if length == 0 || length as usize > HELD_BYTES {
            return None;
        }
        copy.length = length;
        // SAFETY: a helper call on the program's own context and as much memory as was checked.
        let error = unsafe { bpf_skb_load_bytes(self.skb.cast(), LINK as u32, (&raw mut copy.bytes).cast(), length) };
        (error == 0).then_some(())
    }

    /// The link-layer header stays: fragments of one packet come from the same neighbour, or as good a one.
    #[inline(always)]
    fn resend(&mut self, held: &HeldFragment, direction: u8, claim: impl FnOnce() -> bool) -> Option<()> {
        self.restore(held)?;
        if !claim() {
            return None;
        }
        let flags = if direction == INGRESS {
            u64::from(BPF_F_INGRESS)
        } else {
            0
        };
        // SAFETY: a helper call on the program's own context.
        (unsafe { bpf_clone_redirect(self.skb, (*self.skb).ifindex, flags) } == 0).then_some(())
    }

    #[inline(always)]
    fn restore(&mut self, copy: &HeldFragment) -> Option<()> {
        let length = copy.length;
        if length == 0 || length as usize > HELD_BYTES {
            return None;
        }
        // What a device said of one fragment's checksum is not true of another's.
        // SAFETY: helper calls on the program's own context and as much memory as was checked.
        let error = unsafe {
            bpf_csum_level(self.skb, BPF_CSUM_LEVEL_RESET.into());
            if bpf_skb_change_tail(self.skb, LINK as u32 + length, 0) != 0 {
                return None;
            }
            let (bytes, flags) = ((&raw const copy.bytes).cast(), u64::from(BPF_F_RECOMPUTE_CSUM));
            bpf_skb_store_bytes(self.skb, LINK as u32, bytes, length, flags)
        };
        (error == 0).then_some(())
    }
}
