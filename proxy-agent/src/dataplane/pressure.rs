//! How close tables are to their limits, told once when that changes.

use std::collections::BTreeMap;

use super::inspect::TableFill;

/// How close a table is to its limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// There is room
    #[default]
    Low,
    /// More than three quarters are taken
    High,
    /// New entries are refused, or will be in a moment
    Full,
}

impl Pressure {
    /// The pressure of a table that had this one before. It falls later than it rises, so that a table at the edge is not
    /// told of again and again. The kernel keeps some free entries for each CPU: full is a little before the limit.
    fn next(self, fill: &TableFill) -> Self {
        let limit = u64::from(fill.max_entries);
        let above = |numerator: u64, denominator: u64| fill.entries * denominator > limit * numerator;
        let at_limit = fill.entries >= limit;
        match self {
            _ if at_limit || above(63, 64) => Self::Full,
            Self::Full if above(15, 16) => Self::Full,
            _ if above(3, 4) => Self::High,
            Self::High | Self::Full if above(5, 8) => Self::High,
            _ => Self::Low,
        }
    }
}

/// A table whose pressure is another now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PressureChange {
    /// How full it is
    pub fill: TableFill,
    /// Its pressure before
    pub before: Pressure,
    /// Its pressure now
    pub now: Pressure,
}

/// Remembers the pressure of each table.
#[derive(Debug, Default)]
pub struct PressureWatch(BTreeMap<&'static str, Pressure>);

impl PressureWatch {
    /// The tables whose pressure is another than at the last look; those that evict have none.
    pub fn look(&mut self, fills: Vec<TableFill>) -> Vec<PressureChange> {
        let change = |fill: TableFill| {
            let known = self.0.entry(fill.name).or_default();
            let (before, now) = (*known, known.next(&fill));
            *known = now;
            (before != now).then_some(PressureChange { fill, before, now })
        };
        fills
            .into_iter()
            .filter(|fill| !fill.evicts)
            .filter_map(change)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(entries: u64) -> TableFill {
        TableFill {
            name: "slots_v4",
            entries,
            max_entries: 640,
            evicts: false,
        }
    }

    #[test]
    fn a_change_is_told_once() {
        let mut watch = PressureWatch::default();
        let mut look = |entries| {
            let changes = watch.look(vec![fill(entries)]);
            changes.first().map(|change| (change.before, change.now))
        };
        assert_eq!(look(0), None);
        assert_eq!(look(480), None, "three quarters");
        assert_eq!(look(481), Some((Pressure::Low, Pressure::High)));
        assert_eq!(look(630), None);
        assert_eq!(look(631), Some((Pressure::High, Pressure::Full)));
        assert_eq!(look(640), None);
        assert_eq!(look(601), None, "it falls later than it rises");
        assert_eq!(look(600), Some((Pressure::Full, Pressure::High)));
        assert_eq!(look(401), None);
        assert_eq!(look(400), Some((Pressure::High, Pressure::Low)));
        assert_eq!(look(640), Some((Pressure::Low, Pressure::Full)));
        assert_eq!(look(0), Some((Pressure::Full, Pressure::Low)));
    }

    #[test]
    fn tables_that_evict_are_never_under_pressure() {
        let full = TableFill {
            evicts: true,
            ..fill(640)
        };
        assert_eq!(PressureWatch::default().look(vec![full]), []);
    }

    #[test]
    fn a_table_for_one_entry_is_full_with_it() {
        let one = TableFill {
            max_entries: 1,
            ..fill(1)
        };
        assert_eq!(PressureWatch::default().look(vec![one])[0].now, Pressure::Full);
    }
}
