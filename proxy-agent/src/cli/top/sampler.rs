//! Looks at the tables, and listens to what the datapath tells of new flows and their answers in between.

use anyhow::Result;
use proxy_common::{
    datapath::{Reason, Verdict},
    layout::ANSWERED,
};

use super::{rates::Sample, setup::Setups};
use crate::dataplane::{
    self, inspect,
    pin::PinDirectory,
    watch::{self, RING_BYTES, Watch},
};

/// Where samples come from.
pub(super) struct Sampler {
    pin: PinDirectory,
    /// `None` if there is no place for another one who watches
    watch: Option<Watch>,
    setups: Setups,
}

impl Sampler {
    /// Looks at what is pinned there.
    ///
    /// # Errors
    /// If nothing is.
    pub(super) fn open(pin: &PinDirectory) -> Result<Self> {
        dataplane::kernel::open(pin)?;
        let flows = watch::bits([Reason::NewFlow]) | 1 << ANSWERED;
        Ok(Self {
            pin: pin.clone(),
            watch: Watch::open(pin, flows, RING_BYTES)
                .inspect_err(|error| tracing::warn!("how long connections take to be set up is not known: {error:#}"))
                .ok(),
            setups: Setups::default(),
        })
    }

    /// Takes in what was told meanwhile: several times a second, for what the ring has no room for is not counted.
    ///
    /// # Errors
    /// If it can't go on.
    pub(super) fn listen(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        while let Some(event) = watch.next_event() {
            self.setups.take_in(&event);
        }
        if watch.renew_when_due()?.is_some() {
            // Other tables may have other ids.
            self.setups = Setups::default();
        }
        Ok(())
    }

    /// A look at the tables that are pinned there now: an agent that takes over has others.
    ///
    /// # Errors
    /// If nothing is pinned there, or a table can't be read.
    pub(super) fn look(&mut self) -> Result<Sample> {
        self.listen()?;
        let tables = dataplane::kernel::open(&self.pin)?;
        let taken = dataplane::now();
        let loads = inspect::service_loads(&tables)?;
        let setups = self.setups.take(u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX));
        let reasons = inspect::reason_counters(&tables)?.into_iter();
        Ok(Sample {
            taken,
            setups: loads
                .iter()
                .filter_map(|(port, load)| Some((port.clone(), *setups.get(&load.id)?)))
                .collect(),
            loads,
            reasons: reasons
                .filter(|(reason, _)| matches!(reason.verdict(), Verdict::Reject | Verdict::Drop))
                .map(|(reason, counter)| (reason, counter.packets))
                .collect(),
        })
    }
}
