//! One of the address filters: bits are set before an address is served and cleared when nothing can use it any more.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proxy_common::layout::{AddressBytes, FILTER_WORDS, filter_bit};

use super::GRACE;
use crate::dataplane::table::{BoxedTable, TableError};

/// Number of an address's bit in a filter.
pub(crate) fn bit_of<A: AddressBytes>(address: &A) -> u32 {
    let (word, mask) = filter_bit(address);
    (word << 6) | mask.trailing_zeros()
}

pub(super) struct Filter {
    table: BoxedTable<u32, u64>,
    words: Vec<u64>,
    /// How many served addresses have a bit
    holders: HashMap<u32, u32>,
    /// Bits that are set without a holder, and since when
    stale: HashMap<u32, Duration>,
}

impl Filter {
    /// Reads what is pinned.
    pub(super) fn load(table: BoxedTable<u32, u64>, now: Duration) -> Result<Self, TableError> {
        let mut words = vec![0; FILTER_WORDS as usize];
        table.scan(&mut |index, word| {
            if let Some(known) = words.get_mut(index as usize) {
                *known = word;
            }
        })?;
        let mut stale = HashMap::new();
        // Most words are 0, which is quick to see.
        for (index, word) in (0..).zip(&words).filter(|(_, word)| **word != 0) {
            stale.extend(
                (0..64)
                    .filter(|bit| word >> bit & 1 != 0)
                    .map(|bit| ((index << 6) | bit, now)),
            );
        }
        Ok(Self {
            table,
            words,
            holders: HashMap::new(),
            stale,
        })
    }

    /// Sets the bit of an address that is going to be served.
    pub(super) fn admit<A: AddressBytes>(&mut self, address: &A, now: Duration) -> Result<(), TableError> {
        let (index, mask) = filter_bit(address);
        let word = &mut self.words[index as usize];
        if *word & mask == 0 {
            self.table.insert(&index, &(*word | mask))?;
            *word |= mask;
            // A bit that was lost may have holders already.
            if !self.holders.contains_key(&bit_of(address)) {
                self.stale.insert(bit_of(address), now);
            }
        }
        Ok(())
    }

    /// Sets these bits, and those of all addresses that are served: what stood in the table came from another one.
    pub(super) fn admit_bits(&mut self, bits: &HashSet<u32>, now: Duration) -> Result<(), TableError> {
        for bit in self.holders.keys().chain(bits) {
            let (index, mask) = (bit >> 6, 1 << (bit & 63));
            let word = &mut self.words[index as usize];
            if *word & mask == 0 {
                self.table.insert(&index, &(*word | mask))?;
                *word |= mask;
                if !self.holders.contains_key(bit) {
                    self.stale.insert(*bit, now);
                }
            }
        }
        Ok(())
    }

    /// An address is served from now on.
    pub(super) fn hold<A: AddressBytes>(&mut self, address: &A) {
        let bit = bit_of(address);
        *self.holders.entry(bit).or_default() += 1;
        self.stale.remove(&bit);
    }

    /// An address is not served any more.
    pub(super) fn release<A: AddressBytes>(&mut self, address: &A, now: Duration) {
        let bit = bit_of(address);
        if let Some(holders) = self.holders.get_mut(&bit) {
            *holders -= 1;
            if *holders == 0 {
                self.holders.remove(&bit);
                self.stale.insert(bit, now);
            }
        }
    }

    /// Clears the bits that had no holder for a while before a scan of the flows began which found none that uses them.
    pub(super) fn reclaim(&mut self, in_use: &HashSet<u32>, scan_began: Duration) -> Result<(), TableError> {
        let unused: Vec<u32> = self
            .stale
            .iter()
            .filter(|(bit, since)| **since + GRACE <= scan_began && !in_use.contains(bit))
            .map(|(bit, _)| *bit)
            .collect();
        for bit in unused {
            let (index, mask) = (bit >> 6, 1 << (bit & 63));
            let word = &mut self.words[index as usize];
            self.table.insert(&index, &(*word & !mask))?;
            *word &= !mask;
            self.stale.remove(&bit);
        }
        Ok(())
    }
}
