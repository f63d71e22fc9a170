//! How long flows without packets are kept, by their state.

use std::{str::FromStr, time::Duration};

use proxy_common::layout::{TICK_SHIFT, Timeouts};

/// Finds the timeout of a state.
type Field = fn(&mut Timeouts) -> &mut u32;

/// Names of the states and where their timeouts are.
const STATES: [(&str, Field); 10] = [
    ("tcp-opening", |timeouts| &mut timeouts.tcp_opening),
    ("tcp-answered", |timeouts| &mut timeouts.tcp_answered),
    ("tcp-established", |timeouts| &mut timeouts.tcp_established),
    ("tcp-half-closed", |timeouts| &mut timeouts.tcp_half_closed),
    ("tcp-closing", |timeouts| &mut timeouts.tcp_closing),
    ("udp-opening", |timeouts| &mut timeouts.udp_opening),
    ("udp-established", |timeouts| &mut timeouts.udp_established),
    ("sctp-opening", |timeouts| &mut timeouts.sctp_opening),
    ("sctp-established", |timeouts| &mut timeouts.sctp_established),
    ("sctp-closing", |timeouts| &mut timeouts.sctp_closing),
];

/// A timeout as configured: of which state, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTimeout {
    /// Index into [`STATES`]
    state: usize,
    /// In ticks
    ticks: u32,
}

impl FlowTimeout {
    /// The timeout of the state of this name; `None` if there is no such state, or the time is none that can be counted.
    pub fn new(state: &str, time: Duration) -> Option<Self> {
        let state = STATES.iter().position(|(name, _)| *name == state)?;
        let ticks = time.as_nanos().div_ceil(1 << TICK_SHIFT);
        let ticks = u32::try_from(ticks).ok().filter(|ticks| *ticks > 0)?;
        Some(Self { state, ticks })
    }

    /// Sets it.
    pub fn apply(self, timeouts: &mut Timeouts) {
        if let Some((_, timeout)) = STATES.get(self.state) {
            *timeout(timeouts) = self.ticks;
        }
    }
}

impl FromStr for FlowTimeout {
    type Err = String;

    /// `STATE=DURATION`
    fn from_str(text: &str) -> Result<Self, String> {
        let (state, time) = text.split_once('=').ok_or("this is no STATE=DURATION")?;
        let time = duration(time)?;
        Self::new(state, time).ok_or_else(|| {
            if STATES.iter().any(|(name, _)| *name == state) {
                return format!("{time:?} is no time that a flow can be kept");
            }
            let names: Vec<_> = STATES.iter().map(|(name, _)| *name).collect();
            format!("no state is called {state}; there are {}", names.join(", "))
        })
    }
}

/// A time as Go writes it (`time.ParseDuration`): numbers with units, as in `1h30m` or `0.5s`.
///
/// # Errors
/// Says what it can't read.
pub fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("\u{b5}s", 1e-6),
        ("\u{3bc}s", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let unreadable = || format!("{text:?} is no duration: write it like 90s or 1h30m");
    let (mut seconds, mut rest) = (0.0, text);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
        let (number, behind) = rest.split_at(digits.ok_or_else(unreadable)?);
        let end = behind.find(|letter: char| letter.is_ascii_digit() || letter == '.');
        let (unit, next) = behind.split_at(end.unwrap_or(behind.len()));
        let number: f64 = number.parse().map_err(|_| unreadable())?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(unreadable)?;
        seconds += number * factor;
        rest = next;
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|_| !text.is_empty())
        .ok_or_else(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let seconds = |text: &str| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("24h0m0s"), Ok(86_400.0));
        assert_eq!(seconds("1h30m"), Ok(5400.0));
        assert_eq!(seconds("0.5s"), Ok(0.5));
        assert_eq!(seconds("0"), Ok(0.0));
        for wrong in ["", "5", "-1s", "1d", "s", "1.2.3s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_state_has_its_timeout() {
        let mut timeouts = Timeouts::DEFAULT;
        for (state, _) in STATES {
            let text = format!("{state}=1000s");
            text.parse::<FlowTimeout>().expect("a state").apply(&mut timeouts);
        }
        assert!(
            STATES
                .iter()
                .all(|(_, timeout)| *timeout(&mut timeouts) == Timeouts::ticks(1000))
        );
    }

    #[test]
    fn an_unknown_state_is_told_the_known_ones() {
        let error = "udp=30s".parse::<FlowTimeout>().expect_err("no such state");
        assert!(error.contains("udp-established"), "{error}");
        assert!("tcp-opening=0s".parse::<FlowTimeout>().is_err());
    }
}
