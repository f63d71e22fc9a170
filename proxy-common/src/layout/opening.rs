//! Tables `openings_v4` and `openings_v6`: the flows opened last, by their client's half, in a ring; and where it begins and
//! ends. Who needs room in a full flow table finds here what to give up, the oldest first.
//!
//! A slot isn't cleaned when its flow ends: then nothing is found in the flow table, or a flow that is to stay.

use super::{AddressBytes, FlowKey, INGRESS, plain};

/// That a flow was opened: the key of its client's half, and when.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Opening<A> {
    /// The client's address, network byte order
    pub source: A,
    /// The frontend's address, network byte order
    pub destination: A,
    /// The client's port, host byte order
    pub source_port: u16,
    /// The frontend's port, host byte order
    pub destination_port: u16,
    /// IP protocol number
    pub protocol: u8,
    /// Always 0
    pub reserved: u8,
    /// Tick (see [`super::TICK_SHIFT`]) of the first packet, the lower half of it
    pub tick: u16,
}

impl<A: AddressBytes> Opening<A> {
    /// That the flow of this client's half was opened, or used, in this tick.
    #[inline(always)]
    pub const fn new(key: &FlowKey<A>, tick: u32) -> Self {
        Self {
            source: key.source,
            destination: key.destination,
            source_port: key.source_port,
            destination_port: key.destination_port,
            protocol: key.protocol,
            reserved: 0,
            tick: lower_half(tick),
        }
    }

    /// The key of the client's half.
    #[inline(always)]
    pub const fn key(&self) -> FlowKey<A> {
        let (source, destination) = (
            (self.source, self.source_port),
            (self.destination, self.destination_port),
        );
        FlowKey::new(INGRESS, self.protocol, source, destination)
    }

    /// Whether a flow that was used last in `tick` has been used since this opening, or is another under the same key. (In one
    /// of 65,536 ticks it is not known, and told to be unused.)
    #[inline(always)]
    pub const fn is_before(&self, tick: u32) -> bool {
        self.tick != lower_half(tick)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
const fn lower_half(tick: u32) -> u16 {
    tick as u16
}

/// Where the ring of openings begins and ends: one entry each of `opening_ends_v4` and `opening_ends_v6`. The numbers only
/// grow; a number modulo the number of slots is its slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct OpeningEnds {
    /// Flows opened so far: the number of the next
    pub head: u64,
    /// Number of the oldest that nobody has looked at
    pub tail: u64,
    /// Where the search for flows to give up has begun: what `tail` was when one was found last
    pub begun: u64,
}

impl OpeningEnds {
    /// Takes the number of the oldest opening that nobody has looked at and that is still in one of the slots.
    #[inline(always)]
    pub const fn take(&mut self, slots: u64) -> Option<u64> {
        let in_slots = self.head.saturating_sub(slots);
        if self.tail < in_slots {
            // Those between were never looked at.
            self.tail = in_slots;
            self.begun = in_slots;
        }
        if self.tail >= self.head {
            return None;
        }
        self.tail += 1;
        Some(self.tail - 1)
    }

    /// Whether the whole ring has been gone round without finding a flow to give up.
    #[inline(always)]
    pub const fn is_in_vain(&self, slots: u64) -> bool {
        self.tail.saturating_sub(self.begun) >= slots
    }
}

/// Slots of the ring for a flow table of so many entries: no more flows than half of them fit. A power of two, so that a
/// mask finds the slot.
pub const fn opening_slots(flow_entries: u32) -> u32 {
    usable_slots(flow_entries / 2)
}

/// How many of a table's slots are used: the largest power of two, at least one.
pub const fn usable_slots(slots: u32) -> u32 {
    match slots.checked_ilog2() {
        Some(exponent) => 1 << exponent,
        None => 1,
    }
}

plain! {
    Opening<[u8; 4]> = 16;
    Opening<[u8; 16]> = 40;
    OpeningEnds = 24;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_holds_the_last_openings() {
        let take = |head, tail| OpeningEnds { head, tail, begun: 0 }.take(4);
        assert_eq!(take(0, 0), None);
        assert_eq!(take(3, 0), Some(0));
        assert_eq!(take(3, 3), None);
        assert_eq!(take(9, 2), Some(5), "older ones are written over");
        assert_eq!(take(9, 7), Some(7));
    }

    #[test]
    fn a_search_is_in_vain_when_the_ring_has_been_gone_round() {
        let mut ends = OpeningEnds {
            head: 9,
            tail: 2,
            begun: 0,
        };
        for number in 5..9 {
            assert!(!ends.is_in_vain(4), "before {number}");
            assert_eq!(ends.take(4), Some(number));
            // It is to stay.
            ends.head += 1;
        }
        assert!(ends.is_in_vain(4));
        ends.begun = ends.tail;
        assert!(!ends.is_in_vain(4));
    }

    #[test]
    fn slots_are_a_power_of_two() {
        assert_eq!([0, 1, 5, 1000, 524_288].map(opening_slots), [1, 1, 2, 256, 262_144]);
    }
}
