//! How long new flows wait for their first answer, by what the datapath tells of both. Pure.

use std::collections::HashMap;

use proxy_common::layout::{ANSWERED, AT_SOCKET, Event};
use serde::Serialize;

/// How long the flows of a service port waited that were answered meanwhile: at this node, from the first packet that came in to the
/// first answer that left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Setup {
    /// How many these were
    pub(super) answered: u64,
    /// Milliseconds, of the one in the middle
    pub(super) p50: f64,
    /// Milliseconds, of the slowest but one in a hundred
    pub(super) p99: f64,
}

/// Protocol, client, frontend and backend: the same in both events of a flow.
type Flow = (u8, [[u8; 16]; 3], [u16; 3]);

/// How many flows may wait at a time: more are not followed.
const MOST: usize = 65_536;
/// After how many nanoseconds nobody waits any more for an answer.
const PATIENCE: u64 = 60_000_000_000;

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Setups {
    /// When flows were opened that were not answered yet, nanoseconds since boot
    opened: HashMap<Flow, u64>,
    /// Nanoseconds that flows waited, by service id
    waits: HashMap<u32, Vec<u64>>,
}

impl Setups {
    /// Takes in that a flow was opened, or answered for the first time. A process that connects has no packets, and no answer here.
    pub(super) fn take_in(&mut self, event: &Event) {
        let flow = (
            event.protocol,
            [event.source, event.destination, event.backend],
            [event.source_port, event.destination_port, event.backend_port],
        );
        if event.reason == ANSWERED {
            if let Some(opened) = self.opened.remove(&flow) {
                let waits = self.waits.entry(event.service).or_default();
                waits.push(event.nanoseconds.saturating_sub(opened));
            }
        } else if event.hook != AT_SOCKET && self.opened.len() < MOST {
            self.opened.insert(flow, event.nanoseconds);
        }
    }

    /// What came of it since the last time, by service id; `now` in nanoseconds since boot.
    pub(super) fn take(&mut self, now: u64) -> HashMap<u32, Setup> {
        self.opened.retain(|_, opened| now.saturating_sub(*opened) < PATIENCE);
        let waits = std::mem::take(&mut self.waits).into_iter();
        waits
            .filter_map(|(service, waits)| Some((service, Setup::of(waits)?)))
            .collect()
    }
}

impl Setup {
    /// `None` of none.
    fn of(mut waits: Vec<u64>) -> Option<Self> {
        waits.sort_unstable();
        let at = |hundredths: usize| {
            let nanoseconds = waits.get(waits.len() * hundredths / 100)?;
            #[expect(clippy::cast_precision_loss, reason = "nobody reads 16 digits")]
            let nanoseconds = *nanoseconds as f64;
            Some(nanoseconds / 1e6)
        };
        Some(Self {
            answered: waits.len() as u64,
            p50: at(50)?,
            p99: at(99)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{datapath::Reason, layout::INGRESS};

    use super::*;

    fn event(reason: u8, port: u16, milliseconds: u64) -> Event {
        Event {
            nanoseconds: milliseconds * 1_000_000,
            source_port: port,
            service: 3,
            hook: INGRESS,
            reason,
            ..Event::default()
        }
    }

    #[test]
    fn the_wait_is_from_the_first_packet_to_the_first_answer() {
        let new = u8::try_from(Reason::NewFlow as u32).expect("small");
        let mut setups = Setups::default();
        for port in 1..=200 {
            setups.take_in(&event(new, port, 1000));
        }
        // One in a hundred and one waits longer, and one has no answer yet; one was opened before.
        for port in 1..=198 {
            setups.take_in(&event(ANSWERED, port, 1002));
        }
        setups.take_in(&event(ANSWERED, 199, 1500));
        setups.take_in(&event(ANSWERED, 900, 1500));
        let expected = Setup {
            answered: 199,
            p50: 2.0,
            p99: 2.0,
        };
        assert_eq!(setups.take(2_000_000_000), [(3, expected)].into());
        assert_eq!(setups.take(2_000_000_000), [].into());
        setups.take_in(&event(ANSWERED, 200, 3000));
        let expected = Setup {
            answered: 1,
            p50: 2000.0,
            p99: 2000.0,
        };
        assert_eq!(setups.take(3_000_000_000), [(3, expected)].into());
    }

    #[test]
    fn flows_without_an_answer_are_forgotten() {
        let new = u8::try_from(Reason::NewFlow as u32).expect("small");
        let mut setups = Setups::default();
        setups.take_in(&Event {
            hook: AT_SOCKET,
            ..event(new, 1, 0)
        });
        assert!(setups.opened.is_empty());
        setups.take_in(&event(new, 1, 0));
        setups.take(PATIENCE - 1);
        assert_eq!(setups.opened.len(), 1);
        setups.take(PATIENCE);
        assert!(setups.opened.is_empty());
    }
}
