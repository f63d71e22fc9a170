//! `monitor`: what the datapath does, as it happens.

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use proxy_common::datapath::Reason;
use ratatui::crossterm::style::{Color, Stylize as _};

use super::{
    filter::FilterArgs,
    listing::{or_dash, print_line},
    watching::Watching,
};
use crate::dataplane::{
    inspect::{EventRow, Happening, Place},
    kernel,
    pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
    watch::{self, RING_BYTES, Watch},
};

/// Show new flows, and packets that are rejected or dropped, as they happen, with the reasons
///
/// Packets of known flows are never told. What this command is told costs the datapath nothing while no such command runs.
#[derive(Debug, Args)]
pub(super) struct MonitorArgs {
    /// Directory on a BPF file system where the agent pins
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIRECTORY)]
    pin_dir: PinDirectory,

    /// How to print: lines for people, or a JSON object a line
    #[arg(short, long, value_enum, default_value_t = Lines::Text)]
    output: Lines,

    /// Only events of these kinds
    #[arg(long, value_enum, value_delimiter = ',')]
    event: Vec<Happening>,

    /// Only events with these reasons, by the names that metrics have: NoEndpoints, SourceRefused, ...
    #[arg(long, value_name = "REASON", value_delimiter = ',', value_parser = reason)]
    reason: Vec<Reason>,

    #[command(flatten)]
    filter: FilterArgs,

    /// End after so many events
    #[arg(long, value_name = "EVENTS")]
    count: Option<u64>,

    /// Size of the kernel's ring buffer for this command, rounded up to a power of two: what comes while it is full is lost,
    /// counted and told
    #[arg(long, value_name = "BYTES", default_value_t = RING_BYTES)]
    buffer: u32,
}

/// How lines are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Lines {
    /// For people
    Text,
    /// A JSON object a line
    Json,
}

/// The reason of that name, however it is written: `NoEndpoints`, `no-endpoints`.
fn reason(name: &str) -> Result<Reason, String> {
    let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
    let found = watch::reasons().find(|reason| plain(&format!("{reason:?}")) == plain(name));
    found.ok_or_else(|| {
        let names: Vec<_> = watch::reasons().map(|reason| format!("{reason:?}")).collect();
        format!("no event has the reason {name}; there are {}", names.join(", "))
    })
}

impl MonitorArgs {
    pub(super) fn run(self) -> Result<()> {
        let tables = kernel::open(&self.pin_dir)?;
        let mut ends = SigSet::empty();
        ends.add(Signal::SIGINT);
        ends.add(Signal::SIGTERM);
        // Before the first event: a place among those who watch is to be given back.
        ends.thread_block().context("cannot block signals")?;
        let ended = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC).context("cannot wait for signals")?;
        let watch = Watch::open(&self.pin_dir, watch::bits(self.reasons()), self.buffer)?;
        let mut watching = Watching::new(watch, tables)?;
        let printer = Printer::new(self.output);
        eprintln!("watching; Ctrl-C ends it");
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 {
            let mut sources = [
                PollFd::new(watching.as_fd(), PollFlags::POLLIN),
                PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            ];
            let timeout = PollTimeout::try_from(watching.due_in()).unwrap_or(PollTimeout::ZERO);
            poll(&mut sources, timeout).context("cannot wait for events")?;
            if sources[1].any().unwrap_or(false) {
                break;
            }
            while let Some(row) = watching.next_row()?.filter(|_| left > 0) {
                if self.wants(&row) {
                    left -= 1;
                    if !printer.event(&row)? {
                        return Ok(());
                    }
                }
            }
            watching.renew_when_due()?;
            let lost = watching.take_lost()?;
            if !printer.lost(lost)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// What the kernel is asked to tell.
    fn reasons(&self) -> impl Iterator<Item = Reason> {
        watch::reasons().filter(|reason| {
            (self.reason.is_empty() || self.reason.contains(reason))
                && (self.event.is_empty() || self.event.contains(&Happening::of(*reason)))
        })
    }

    fn wants(&self, row: &EventRow) -> bool {
        let address = |place: Option<Place>| place.map(|place| SocketAddr::new(place.address, place.port));
        self.filter
            .wants(row.service.as_deref(), address(row.source), address(row.backend))
    }
}

/// Prints events.
struct Printer {
    lines: Lines,
    colours: bool,
}

impl Printer {
    fn new(lines: Lines) -> Self {
        Self {
            lines,
            colours: io::stdout().is_terminal(),
        }
    }

    /// Prints an event; `false` if nobody reads any more.
    fn event(&self, row: &EventRow) -> Result<bool> {
        match self.lines {
            Lines::Json => print_line(&serde_json::to_string(row)?),
            Lines::Text => print_line(&line(row, self.colours)),
        }
    }

    /// Tells how many events were lost, if any.
    fn lost(&self, lost: u64) -> Result<bool> {
        match (lost, self.lines) {
            (0, _) => Ok(true),
            (lost, Lines::Json) => print_line(&serde_json::json!({ "event": "lost", "events": lost }).to_string()),
            (lost, Lines::Text) => print_line(&format!(
                "{lost} events lost: they came faster than they were read (see --buffer)"
            )),
        }
    }
}

/// An event for people.
pub(super) fn line(row: &EventRow, colours: bool) -> String {
    let (word, colour) = match row.event {
        Happening::New => ("new", Color::Green),
        Happening::Reject => ("reject", Color::Yellow),
        Happening::Drop => ("drop", Color::Red),
    };
    let word = format!("{word:<6}");
    let word = if colours { word.with(colour).to_string() } else { word };
    let mut parts = vec![
        row.time.clone(),
        word,
        format!("{:<4}", or_dash(row.protocol)),
        or_dash(row.source),
        "->".to_owned(),
        or_dash(row.destination),
    ];
    if let Some(backend) = row.backend {
        parts.extend(["->".to_owned(), backend.to_string()]);
    }
    parts.push(or_dash(row.service.as_ref()));
    parts.push(row.device.as_deref().unwrap_or(row.hook).to_owned());
    if row.masqueraded {
        parts.push("masqueraded".to_owned());
    }
    if row.event != Happening::New {
        parts.push(format!("({})", row.text));
    }
    if let Some(why) = &row.unanswered {
        parts.push(format!("({why})"));
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use proxy_common::datapath::Reason;

    use super::*;
    use crate::plan::Protocol;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        monitor: MonitorArgs,
    }

    fn parsed(arguments: &[&str]) -> Result<MonitorArgs, clap::Error> {
        let command = Command::try_parse_from([&["monitor"], arguments].concat());
        command.map(|command| command.monitor)
    }

    fn place(address: [u8; 4], port: u16) -> Place {
        Place {
            address: address.into(),
            port,
        }
    }

    fn row() -> EventRow {
        EventRow {
            time: "2026-01-02T03:04:05.678Z".to_owned(),
            event: Happening::New,
            protocol: Some(Protocol::Tcp),
            source: Some(place([10, 244, 0, 5], 40_000)),
            destination: Some(place([10, 96, 0, 1], 80)),
            backend: Some(place([10, 244, 1, 7], 8080)),
            service: Some("default/web:http".to_owned()),
            hook: "ingress",
            device: Some("veth-a".to_owned()),
            bytes: 60,
            masqueraded: true,
            express: false,
            reason: "NewFlow".to_owned(),
            text: "new flow".to_owned(),
            unanswered: None,
        }
    }

    #[test]
    fn the_kernel_is_asked_for_what_is_wanted_only() {
        let asked = |arguments: &[&str]| -> Vec<Reason> { parsed(arguments).expect("understood").reasons().collect() };
        assert_eq!(asked(&[]), watch::reasons().collect::<Vec<_>>());
        assert_eq!(asked(&["--event", "new"]), [Reason::NewFlow]);
        assert_eq!(
            asked(&["--event", "new,reject"]),
            [Reason::NewFlow, Reason::NoEndpoints, Reason::NoPort]
        );
        assert_eq!(
            asked(&["--reason", "NoPort,source-refused"]),
            [Reason::NoPort, Reason::SourceRefused]
        );
        assert!(asked(&["--reason", "NoPort", "--event", "drop"]).is_empty());
        let error = parsed(&["--reason", "Established"]).expect_err("no event").to_string();
        assert!(error.contains("NoEndpoints"), "{error}");
    }

    #[test]
    fn filters_look_at_service_client_and_backend() {
        let wants = |arguments: &[&str]| parsed(arguments).expect("understood").wants(&row());
        assert!(
            wants(&[])
                && wants(&[
                    "--service",
                    "web",
                    "--client",
                    "10.244.0.0/24",
                    "--backend",
                    "10.244.1.7:8080"
                ])
        );
        assert!(!wants(&["--service", "dns"]) && !wants(&["--client", "10.244.0.6"]));
        assert!(!wants(&["--backend", "10.244.1.7:80"]));
        let refused = EventRow { backend: None, ..row() };
        assert!(
            !parsed(&["--backend", "10.0.0.0/8"])
                .expect("understood")
                .wants(&refused)
        );
    }

    #[test]
    fn lines_say_who_where_and_why() {
        assert_eq!(
            line(&row(), false),
            "2026-01-02T03:04:05.678Z new    TCP  10.244.0.5:40000 -> 10.96.0.1:80 -> 10.244.1.7:8080 default/web:http \
             veth-a masqueraded"
        );
        let refused = EventRow {
            event: Happening::Reject,
            protocol: None,
            source: None,
            destination: Some(place([10, 96, 0, 1], 0)),
            backend: None,
            service: None,
            hook: "socket",
            device: None,
            masqueraded: false,
            text: "no such port".to_owned(),
            unanswered: Some("too many".to_owned()),
            ..row()
        };
        assert_eq!(
            line(&refused, false),
            "2026-01-02T03:04:05.678Z reject -    - -> 10.96.0.1 - socket (no such port) (too many)"
        );
        assert_ne!(line(&row(), true), line(&row(), false), "colours");
    }
}
