//! The bits that one of the address filters needs.

use std::collections::HashMap;

use proxy_common::layout::{AddressBytes, filter_bit};

use super::{NOTHING, Report, Severity};
use crate::dataplane::{
    address::Address,
    table::{BoxedTable, TableError},
};

/// Words by index, with the needed bits set.
#[derive(Default)]
pub(super) struct Needs(HashMap<u32, u64>);

impl Needs {
    /// An address is served.
    pub(super) fn add<A: AddressBytes>(&mut self, address: &A) {
        let (index, mask) = filter_bit(address);
        *self.0.entry(index).or_default() |= mask;
    }

    /// The same, if it is one: all zero stands for none.
    pub(super) fn add_some<A: Address>(&mut self, address: &A) {
        if *address != A::default() {
            self.add(address);
        }
    }

    /// A needed bit that is clear hides what is served. One that is set for nobody may be a flow's.
    pub(super) fn compare(
        &self,
        name: &'static str,
        filter: &BoxedTable<u32, u64>,
        report: &mut Report,
    ) -> Result<(), TableError> {
        let mut clear = self.0.clone();
        let mut spare = 0;
        filter.scan(&mut |index, word| {
            let needed = clear.remove(&index).unwrap_or(0);
            spare += (word & !needed).count_ones();
            if needed & !word != 0 {
                clear.insert(index, needed & !word);
            }
        })?;
        for (index, bits) in clear {
            let place = (name, format_args!("word {index}").to_string());
            let wanted = format!("{} more bits set ({bits:#x})", bits.count_ones());
            report.add(Severity::Wrong, place, "", ("clear", wanted));
        }
        if spare > 0 {
            let found = format!("{spare} bits set that nobody needs");
            report.add(Severity::Spare, (name, "all words"), "", (found, NOTHING));
        }
        Ok(())
    }
}
