//! Who is told of the dataplane's own work. It goes on in several threads; what becomes of the numbers is not its concern.

use std::{fmt::Debug, sync::Arc, time::Duration};

use crate::model::Family;

/// Counts, or measures, what is done.
pub trait Observer: Debug + Send + Sync {
    /// A write to this table was refused: by the kernel, or because the table is full.
    fn write_refused(&self, table: &'static str);

    /// A round for old flows is done, which took this long and removed so many entries; or it failed.
    fn collected(&self, took: Duration, removed: Option<u64>);

    /// The flows of a family to endpoints that serve no more have been removed, so many entries; it took this long.
    fn purged(&self, family: Family, took: Duration, removed: u64);

    /// The tables have been compared with the plan, which took this long.
    fn compared(&self, took: Duration);
}

/// Nobody.
#[derive(Debug)]
struct Nobody;

impl Observer for Nobody {
    fn write_refused(&self, _table: &'static str) {}
    fn collected(&self, _took: Duration, _removed: Option<u64>) {}
    fn purged(&self, _family: Family, _took: Duration, _removed: u64) {}
    fn compared(&self, _took: Duration) {}
}

/// Whoever observes; clones share it.
pub type SharedObserver = Arc<dyn Observer>;

/// An observer that does nothing.
pub fn nobody() -> SharedObserver {
    Arc::new(Nobody)
}
