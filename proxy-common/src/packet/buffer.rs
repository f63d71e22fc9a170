//! A packet in ordinary memory: what user space runs the datapath on.

use super::{ChecksumChange, Packet, View, ViewMut, checksum};

/// The bytes of a packet from its network header on.
#[derive(Debug)]
pub struct BufferPacket<'a> {
    bytes: &'a mut [u8],
    /// As `CHECKSUM_PARTIAL` (`include/linux/skbuff.h`): only the pseudo header is summed up yet
    partial: bool,
}

impl<'a> BufferPacket<'a> {
    /// A packet whose transport checksum is complete.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, partial: false }
    }

    /// A packet whose transport checksum the device will complete: it holds the sum of the pseudo header.
    pub const fn with_partial_checksum(bytes: &'a mut [u8]) -> Self {
        Self { bytes, partial: true }
    }
}

impl View for &[u8] {
    fn load<const L: usize>(&self, at: usize) -> [u8; L] {
        let mut bytes = [0; L];
        bytes.copy_from_slice(&self[at..at + L]);
        bytes
    }
}

impl ViewMut for &mut [u8] {
    fn store<const L: usize>(&mut self, at: usize, bytes: [u8; L]) {
        self[at..at + L].copy_from_slice(&bytes);
    }
}

impl Packet for BufferPacket<'_> {
    type View<'a>
        = &'a [u8]
    where
        Self: 'a;
    type ViewMut<'a>
        = &'a mut [u8]
    where
        Self: 'a;

    /// They are.
    fn pull(&mut self, _length: u32) {}

    fn view<const N: usize>(&self, offset: usize) -> Option<&[u8]> {
        self.bytes.get(offset..offset + N)
    }

    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8]> {
        self.bytes.get_mut(offset..offset + N)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn update_transport_checksum(&mut self, change: &ChecksumChange) -> Option<()> {
        let partial = self.partial;
        let mut field = self.view_mut::<2>(change.offset)?;
        let before = u16::from_ne_bytes((&*field).load(0));
        if change.zero_is_none && before == 0 {
            return Some(());
        }
        let mut after = if partial {
            checksum::fold(u32::from(before) + u32::from(change.addresses))
        } else {
            checksum::update(checksum::update(before, change.addresses), change.ports)
        };
        if change.zero_is_none && after == 0 {
            after = 0xffff;
        }
        field.store(0, after.to_ne_bytes());
        Some(())
    }
}
