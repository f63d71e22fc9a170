//! `top`: what Services have to do, live.
//!
//! [`sampler`] looks at the tables, [`rates`] makes rates of two looks, [`view`] chooses what is shown, [`draw`] shows it.

mod draw;
mod rates;
mod sampler;
mod setup;
mod view;

use std::{
    io::{self, IsTerminal as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::Table;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use self::{
    draw::{short, waits},
    rates::{Rates, rates},
    sampler::Sampler,
    view::{Column, View, Wish},
};
use super::{
    Output,
    flows::seconds,
    listing::{ListingArgs, table},
};

/// Show what Services have to do, live: new connections, packets, bytes and refused packets a second, flows, and how long connections
/// take to be set up
///
/// Keys: s sorts by the next column, / filters, Enter shows the endpoints of a Service, Space pauses, q quits.
#[derive(Debug, Args)]
pub(super) struct TopArgs {
    #[command(flatten)]
    listing: ListingArgs,

    /// Print one sample over an interval, and end: as it is also done where there is no terminal, or for JSON and YAML
    #[arg(long)]
    once: bool,

    /// Seconds between two looks at the tables
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    interval: f64,

    /// What to sort by
    #[arg(long, value_enum, default_value_t = Column::Connections)]
    sort: Column,

    /// Only service ports whose name or frontend has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
}

impl TopArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut sampler = Sampler::open(self.listing.pin())?;
        let interval = Duration::from_secs_f64(self.interval);
        let view = View::new(self.sort, self.filter.clone());
        if !self.once && self.listing.output() == Output::Table && io::stdout().is_terminal() {
            let terminal = ratatui::try_init().context("cannot use the terminal")?;
            let shown = show(terminal, &mut sampler, interval, view);
            ratatui::restore();
            return shown;
        }
        let first = sampler.look()?;
        let end = Instant::now() + interval;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            thread::sleep(left.min(LISTENING));
            sampler.listen()?;
        }
        let mut rates = rates(&first, &sampler.look()?);
        rates.services = view.services(&rates).into_iter().cloned().collect();
        self.listing.print(&rates, text)
    }
}

/// How often to listen to what the datapath tells.
const LISTENING: Duration = Duration::from_millis(100);

/// The screen, until a key ends it.
fn show(mut terminal: DefaultTerminal, sampler: &mut Sampler, interval: Duration, mut view: View) -> Result<()> {
    let mut before = sampler.look()?;
    let mut shown = rates(&before, &before);
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| draw::draw(frame, &shown, &view))?;
        let mut is_pressed = false;
        while !is_pressed && let Some(left) = next.checked_duration_since(Instant::now()) {
            is_pressed = event::poll(left.min(LISTENING))?;
            sampler.listen()?;
        }
        if is_pressed
            && let Event::Key(key) = event::read()?
            && key.kind != KeyEventKind::Release
            && view.press(key, &shown) == Wish::Quit
        {
            return Ok(());
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if !view.paused {
                let after = sampler.look()?;
                shown = rates(&before, &after);
                before = after;
            }
        }
    }
}

/// A sample for people.
fn text(rates: &Rates) -> Table {
    let mut table = table([
        "SERVICE",
        "PROTOCOL",
        "CONN/S",
        "PACKETS/S",
        "BYTES/S",
        "REFUSED/S",
        "FLOWS",
        "SETUP MS",
        "ENDPOINTS",
    ]);
    for row in &rates.services {
        let endpoints = row
            .endpoints
            .iter()
            .map(|endpoint| format!("{} {}", endpoint.endpoint, endpoint.flows));
        table.add_row([
            row.service.clone(),
            row.protocol.to_string(),
            short(row.load.connections),
            short(row.load.packets),
            short(row.load.bytes),
            short(row.load.refused),
            row.load.flows.to_string(),
            row.setup.map_or_else(|| "-".to_owned(), waits),
            endpoints.collect::<Vec<_>>().join("\n"),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        top: TopArgs,
    }

    #[test]
    fn intervals_are_ones_that_can_be_waited_for() {
        for wrong in ["0", "-1", "often", "inf", "NaN"] {
            let parsed = Command::try_parse_from(["top", &format!("--interval={wrong}")]);
            assert!(parsed.is_err(), "{wrong}: {parsed:?}");
        }
        let parsed = Command::try_parse_from(["top", "--once", "--sort", "flows", "--interval", "0.5"]);
        let top = parsed.expect("understood").top;
        assert_eq!((top.once, top.sort), (true, Column::Flows));
    }

    #[test]
    fn a_sample_is_a_table() {
        let rates = rates(&rates::Sample::default(), &rates::Sample::default());
        assert!(text(&rates).to_string().contains("REFUSED/S"));
    }
}
