//! A packet in ordinary memory: what user space runs the datapath on.

use core::fmt;

use super::{ChecksumChange, MAX_QUOTE, Packet, View, ViewMut, checksum};
use crate::layout::HeldFragment;

/// Told of packets that are sent to a hook again, from their network header on.
pub type Resent<'a> = &'a mut dyn FnMut(&[u8]);

/// The bytes of a packet from its network header on.
pub struct BufferPacket<'a> {
    bytes: &'a mut [u8],
    /// As `CHECKSUM_PARTIAL` (`include/linux/skbuff.h`): only the pseudo header is summed up yet
    partial: bool,
    /// What the packet became when it was answered; the packet's own bytes stay
    answer: Option<Answer>,
    resent: Option<Resent<'a>>,
}

impl fmt::Debug for BufferPacket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferPacket")
            .field("bytes", &self.bytes)
            .field("partial", &self.partial)
            .field("answer", &self.answer)
            .finish_non_exhaustive()
    }
}

/// The longest headers of an answer, and a quote.
type AnswerBytes = [u8; 48 + MAX_QUOTE];

/// An answer to a packet.
#[derive(Debug)]
struct Answer {
    bytes: AnswerBytes,
    length: usize,
}

impl<'a> BufferPacket<'a> {
    /// A packet whose transport checksum is complete.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            partial: false,
            answer: None,
            resent: None,
        }
    }

    /// A packet whose transport checksum the device will complete: it holds the sum of the pseudo header.
    pub const fn with_partial_checksum(bytes: &'a mut [u8]) -> Self {
        Self {
            bytes,
            partial: true,
            answer: None,
            resent: None,
        }
    }

    /// A packet that may be held at its hook, and make others that were come there again: `resent` gets those.
    pub const fn with_resent(bytes: &'a mut [u8], resent: Resent<'a>) -> Self {
        Self {
            bytes,
            partial: false,
            answer: None,
            resent: Some(resent),
        }
    }

    /// The answer that the packet became, from its network header on, if it did.
    pub fn answer(&self) -> Option<&[u8]> {
        self.answer
            .as_ref()
            .and_then(|answer| answer.bytes.get(..answer.length))
    }

    /// What the packet consists of now.
    fn bytes(&self) -> &[u8] {
        self.answer().unwrap_or(self.bytes)
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
        self.bytes().get(offset..offset + N)
    }

    fn view_mut<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8]> {
        let bytes = match &mut self.answer {
            Some(answer) => answer.bytes.get_mut(..answer.length)?,
            None => self.bytes,
        };
        bytes.get_mut(offset..offset + N)
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes().len()).unwrap_or(u32::MAX)
    }

    fn become_answer(&mut self, quote: usize, room: usize) -> Option<()> {
        let length = room + quote;
        let mut bytes = [0; size_of::<AnswerBytes>()];
        bytes.get_mut(room..length)?.copy_from_slice(self.bytes.get(..quote)?);
        self.answer = Some(Answer { bytes, length });
        Some(())
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

    fn copy_to(&self, copy: &mut HeldFragment) -> Option<()> {
        copy.bytes.get_mut(..self.bytes.len())?.copy_from_slice(self.bytes);
        copy.length = self.length();
        Some(())
    }

    fn resend(&mut self, held: &HeldFragment, _direction: u8, claim: impl FnOnce() -> bool) -> Option<()> {
        let resent = self.resent.as_mut()?;
        let bytes = held.bytes.get(..held.length as usize)?;
        claim().then(|| resent(bytes))
    }

    /// It has its content still.
    fn restore(&mut self, _copy: &HeldFragment) -> Option<()> {
        Some(())
    }
}
