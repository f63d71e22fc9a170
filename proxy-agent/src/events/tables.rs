//! Looks now and then how full the tables are, and whether masquerade ports have run out, and says so once when that changes.

use std::time::Duration;

use anyhow::Result;
use proxy_common::datapath::Reason;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval},
};

use super::{About, Notice, Recorder};
use crate::dataplane::{
    inspect::{self, TableFill},
    kernel,
    pin::PinDirectory,
    pressure::{Pressure, PressureChange, PressureWatch},
};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(10);
/// How many looks in a row must find no more refusals before the next one is told again.
const QUIET: u32 = 6;
/// What was being done, for machines.
const ACTION: &str = "WatchTables";

/// Looks from now on, in the background.
pub fn watch_tables(pin: PinDirectory, recorder: Recorder) {
    tokio::spawn(async move {
        let mut interval = interval(INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pressure, mut ports) = (PressureWatch::default(), Exhaustion::default());
        loop {
            interval.tick().await;
            let pin = pin.clone();
            // A large table takes a while to count.
            match spawn_blocking(move || read(&pin)).await {
                Ok(Ok((fills, refused))) => {
                    for change in pressure.look(fills) {
                        tell(&change, &recorder);
                    }
                    if let Some(more) = ports.look(refused) {
                        let note = format!(
                            "no free port for {more} flows: masqueraded flows to one endpoint are as many as ports"
                        );
                        tracing::warn!("{note}");
                        recorder.record(Notice::warning(About::Node, "MasqueradePortsExhausted", ACTION, note));
                    }
                }
                Ok(Err(error)) => tracing::debug!("how full tables are can't be seen: {error:#}"),
                // The runtime ends.
                Err(_) => return,
            }
        }
    });
}

/// How full the tables are, and how many flows found no port.
fn read(pin: &PinDirectory) -> Result<(Vec<TableFill>, u64)> {
    let tables = kernel::open(pin)?;
    let reasons = inspect::reason_counters(&tables)?;
    let refused = reasons.iter().find(|(reason, _)| *reason == Reason::PortsExhausted);
    Ok((
        inspect::table_fills(&tables)?,
        refused.map_or(0, |(_, counter)| counter.packets),
    ))
}

fn tell(change: &PressureChange, recorder: &Recorder) {
    let TableFill {
        name,
        entries,
        max_entries,
        ..
    } = change.fill;
    let how_full = format!("table {name} has {entries} entries and room for {max_entries}");
    let (reason, note) = match change.now {
        Pressure::Low => {
            tracing::info!("there is room again: {how_full}");
            return;
        }
        // It comes from above.
        Pressure::High if change.before == Pressure::Full => {
            tracing::info!("no longer full: {how_full}");
            return;
        }
        Pressure::High => ("TableNearlyFull", format!("nearly full: {how_full}")),
        Pressure::Full => ("TableFull", format!("full: {how_full}")),
    };
    let note = format!("{note} (--table-size {name}=ENTRIES makes it larger)");
    tracing::warn!("{note}");
    recorder.record(Notice::warning(About::Node, reason, ACTION, note));
}

/// Remembers whether refusals go on, so that each time of them is told once.
#[derive(Debug, Default)]
struct Exhaustion {
    /// What had been counted at the last look; before the first nothing is known
    counted: Option<u64>,
    /// Looks without a refusal since the last one
    quiet: Option<u32>,
}

impl Exhaustion {
    /// How many were refused since the last look, if that is to be told.
    fn look(&mut self, counted: u64) -> Option<u64> {
        let more = counted.saturating_sub(self.counted.replace(counted).unwrap_or(counted));
        if more == 0 {
            self.quiet = self.quiet.map(|quiet| quiet + 1).filter(|quiet| *quiet < QUIET);
            return None;
        }
        self.quiet.replace(0).is_none().then_some(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_refusals_is_told_once() {
        let mut ports = Exhaustion::default();
        assert_eq!(ports.look(7), None, "from before this process");
        assert_eq!(ports.look(9), Some(2));
        assert_eq!(ports.look(10), None, "it goes on");
        for _ in 1..QUIET {
            assert_eq!(ports.look(10), None);
        }
        assert_eq!(ports.look(11), None, "the same time still");
        for _ in 0..QUIET {
            assert_eq!(ports.look(11), None);
        }
        assert_eq!(ports.look(12), Some(1));
    }
}
