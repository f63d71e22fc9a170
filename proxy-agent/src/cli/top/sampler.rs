//! Looks at the tables.

use anyhow::Result;
use proxy_common::datapath::Verdict;

use super::rates::Sample;
use crate::dataplane::{self, inspect, pin::PinDirectory};

/// A look at the tables that are pinned there now: an agent that takes over has others.
///
/// # Errors
/// If nothing is pinned there, or a table can't be read.
pub(super) fn look(pin: &PinDirectory) -> Result<Sample> {
    let tables = dataplane::kernel::open(pin)?;
    let taken = dataplane::now();
    let loads = inspect::service_loads(&tables)?;
    let reasons = inspect::reason_counters(&tables)?.into_iter();
    Ok(Sample {
        taken,
        loads,
        reasons: reasons
            .filter(|(reason, _)| matches!(reason.verdict(), Verdict::Reject | Verdict::Drop))
            .map(|(reason, counter)| (reason, counter.packets))
            .collect(),
    })
}
