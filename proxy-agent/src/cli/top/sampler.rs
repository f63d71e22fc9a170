//! Looks at the tables, and listens to what is refused in between: the tables count that by reason only, not by Service.

use std::collections::BTreeMap;

use anyhow::Result;
use proxy_common::{
    datapath::{Reason, Verdict},
    layout::NO_SERVICE,
};

use super::rates::Sample;
use crate::dataplane::{
    self, inspect,
    pin::PinDirectory,
    table::Tables,
    watch::{self, RING_BYTES, Watch},
};

/// Where samples come from.
pub(super) struct Sampler {
    pin: PinDirectory,
    tables: Tables,
    /// `None` if there is no place for another one who watches
    watch: Option<Watch>,
    /// Packets refused so far by service id
    refused: BTreeMap<u32, u64>,
}

impl Sampler {
    /// Looks at the tables pinned there.
    ///
    /// # Errors
    /// If nothing is pinned there.
    pub(super) fn open(pin: &PinDirectory) -> Result<Self> {
        let refusals = watch::reasons().filter(|reason| is_refusal(*reason));
        Ok(Self {
            pin: pin.clone(),
            tables: dataplane::kernel::open(pin)?,
            watch: Watch::open(pin, watch::bits(refusals), RING_BYTES)
                .inspect_err(|error| tracing::warn!("refused packets are not known by Service: {error:#}"))
                .ok(),
            refused: BTreeMap::new(),
        })
    }

    /// Takes in what was refused meanwhile: at least once a second.
    ///
    /// # Errors
    /// If it can't go on.
    pub(super) fn listen(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        while let Some(event) = watch.next_event() {
            if event.service != NO_SERVICE {
                *self.refused.entry(event.service).or_default() += 1;
            }
        }
        if watch.renew()? {
            // Other tables, and in them other ids.
            (self.tables, self.refused) = (dataplane::kernel::open(&self.pin)?, BTreeMap::new());
        }
        Ok(())
    }

    /// A look at the tables.
    ///
    /// # Errors
    /// If one can't be read.
    pub(super) fn look(&mut self) -> Result<Sample> {
        self.listen()?;
        let taken = dataplane::now();
        let inspect::ServiceLoads { loads, names } = inspect::service_loads(&self.tables)?;
        let reasons = inspect::reason_counters(&self.tables)?;
        let by_name = || {
            let named = self.refused.iter();
            let named = named.filter_map(|(id, count)| Some((names.get(id)?.clone(), *count)));
            named.collect()
        };
        Ok(Sample {
            taken,
            loads,
            refused: self.watch.is_some().then(by_name),
            reasons: reasons
                .into_iter()
                .filter(|(reason, _)| is_refusal(*reason))
                .map(|(reason, counter)| (reason, counter.packets))
                .collect(),
        })
    }
}

fn is_refusal(reason: Reason) -> bool {
    matches!(reason.verdict(), Verdict::Reject | Verdict::Drop)
}
