//! Packets as the datapath sees them: bytes from the network header on, header fields, checksums, address families.
//!
//! Invariant: knows no tables.

mod buffer;
pub mod checksum;
pub mod crc32c;
mod extension;
mod family;
mod headers;
mod hop;

use crate::layout::HeldFragment;

pub use buffer::{BufferPacket, Resent};
pub use extension::skip_extensions;
pub use family::{Family, V4, V6};
pub use headers::{
    Addresses, Fragment, ICMP, ICMPV6, SCTP, Skip, TCP, Transport, UDP, has_ports, opens_connection, tcp_flags,
};
pub use hop::Hops;

/// Which side of a packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Destination address and port
    Destination,
    /// Source address and port
    Source,
}

/// The most that an answer quotes of the packet that it is about: the longest IPv4 header, or IPv6 and some extension
/// headers, and what senders look at behind them (SCTP's first chunk).
pub const MAX_QUOTE: usize = 96;

/// Access to one packet. Offsets count bytes from the start of the network header.
pub trait Packet {
    /// What [`Packet::view`] gives
    type View<'a>: View
    where
        Self: 'a;
    /// What [`Packet::view_mut`] gives
    type ViewMut<'a>: ViewMut
    where
        Self: 'a;

    /// Makes the first `length` bytes accessible, or all if there are fewer: without it only the usual headers may be.
    fn pull(&mut self, length: u32);

    /// The `N` bytes at `offset`; `None` when the packet ends before.
    fn view<const N: usize>(&self, offset: usize) -> Option<Self::View<'_>>;

    /// The `N` bytes at `offset` to write; `None` when the packet ends before.
    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<Self::ViewMut<'_>>;

    /// Bytes in the packet, from the network header on.
    fn length(&self) -> u32;

    /// Turns the packet into what an answer to it is to be written on: `room` bytes of any content, then the first `quote`
    /// bytes of the packet, 1 to [`MAX_QUOTE`]; the link layer's addresses are exchanged, and no device is to complete a
    /// checksum any more.
    ///
    /// `None` when that failed; the packet must then be dropped.
    fn become_answer(&mut self, quote: usize, room: usize) -> Option<()>;

    /// [`crc32c::difference`]: in the kernel a function that is verified by itself, once.
    #[inline(always)]
    fn crc32c_difference(&self, change: u32, length: u16) -> u32 {
        crc32c::difference(change, length)
    }

    /// [`skip_extensions`](fn@skip_extensions), likewise. Off the usual path.
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    fn skip_extensions(&self, first: u8, offset: usize, refused: u16) -> Result<(u8, usize), Skip> {
        skip_extensions(self, first, offset, refused)
    }

    /// Corrects the transport checksum after a rewrite of addresses and ports, whatever state of completion it is in.
    ///
    /// `None` when the packet could not be written; it must then be dropped, for it is half rewritten.
    fn update_transport_checksum(&mut self, change: &ChecksumChange) -> Option<()>;

    /// Tells of a rewrite that changed the sum of the packet's bytes by `difference`, with no checksum in the packet to make
    /// up for it.
    fn note_difference(&mut self, _difference: u16) {}

    /// Copies the packet; `None` where it doesn't fit, or packets can't be kept.
    fn copy_to(&self, _copy: &mut HeldFragment) -> Option<()> {
        None
    }

    /// Sends a held fragment to this packet's hook, of direction [`crate::layout::INGRESS`] or `EGRESS`, where it arrives
    /// as if it were new; but only if `claim`, asked when the fragment has been copied, allows it. Afterwards this packet has
    /// no content but what [`Packet::restore`] gives it. `None` if nothing was sent.
    fn resend(&mut self, _held: &HeldFragment, _direction: u8, _claim: impl FnOnce() -> bool) -> Option<()> {
        None
    }

    /// Gives the packet the content that [`Packet::copy_to`] copied. `None` if that failed; it must then be dropped.
    fn restore(&mut self, _copy: &HeldFragment) -> Option<()> {
        None
    }
}

/// Bytes of a packet, bounds checked once: a load beyond the `N` of [`Packet::view`] is a bug (in the kernel the verifier
/// refuses it, in user space it panics).
pub trait View {
    /// `L` bytes at `at`; `L` is 1, 2, 4, 8 or 16.
    fn load<const L: usize>(&self, at: usize) -> [u8; L];
}

/// Bytes of a packet to write, bounds checked once as in [`View`].
pub trait ViewMut {
    /// Writes `L` bytes at `at`; `L` is 1, 2, 4, 8 or 16.
    fn store<const L: usize>(&mut self, at: usize, bytes: [u8; L]);
}

/// What a rewrite did to a transport checksum.
#[derive(Clone, Copy, Debug)]
pub struct ChecksumChange {
    /// Offset of the checksum
    pub offset: usize,
    /// [`checksum::difference`] of the addresses: part of the pseudo header
    pub addresses: u16,
    /// [`checksum::difference`] of the ports: part of the transport header
    pub ports: u16,
    /// UDP: a checksum of 0 means none (RFC 768)
    pub zero_is_none: bool,
    /// The pseudo header is that of IPv6 (RFC 8200, 8.1)
    pub ipv6: bool,
}
