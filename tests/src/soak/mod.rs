//! The soak: requests and long connections go on for as long as one likes, while Services change, agents are stopped, killed
//! and started, tables are resized and floods come. Nothing may be lost, and in the end the tables equal the plan.
//!
//! What happens is drawn from a seed, which is printed: the same seed makes the same sequence of events.

mod cluster;
mod event;
mod traffic;

use std::{
    env, fs,
    io::{IsTerminal as _, Write as _, stderr},
    process,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};

use crate::lab::Lab;
use cluster::Cluster;
use event::{Agents, Event};
use traffic::{Traffic, Verdict};

/// How often the progress is told where nobody watches it.
const REPORT: Duration = Duration::from_secs(30);
/// After how many losses the lab's tables, counters and logs are kept.
const REPORTS: usize = 3;

/// How the soak is run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Options {
    /// How long, in minutes
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// The same seed makes the same events [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Requests that may be lost; long connections may not
    #[arg(long, default_value_t = 0)]
    allow_lost: usize,
}

impl Options {
    /// A soak of that many minutes.
    pub const fn lasting(minutes: u64) -> Self {
        Self {
            minutes,
            seed: None,
            allow_lost: 0,
        }
    }

    /// In which so many requests may be lost.
    #[must_use]
    pub const fn allowing(mut self, lost: usize) -> Self {
        self.allow_lost = lost;
        self
    }
}

/// Runs it.
///
/// # Errors
/// Something was lost, a connection broke, or the tables differ from the plan; what and when is printed.
pub fn run(options: &Options) -> Result<()> {
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    eprintln!("soak of {} minutes, seed {seed}", options.minutes);
    let mut outcome = Outcome::default();
    cluster::describe().run(|lab| {
        lab.remove_when_interrupted()?;
        let duration = Duration::from_secs(60 * options.minutes);
        soak(lab, duration, &mut fastrand::Rng::with_seed(seed), &mut outcome)?;
        outcome.conclude(options.allow_lost)
    })
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    events: Vec<(Event, usize)>,
    verdict: Verdict,
    retransmissions: u64,
    differences: Vec<String>,
    /// Reports written after losses
    reports: usize,
}

impl Outcome {
    fn note(&mut self, event: Event) {
        match self.events.iter_mut().find(|(noted, _)| *noted == event) {
            Some((_, count)) => *count += 1,
            None => self.events.push((event, 1)),
        }
    }

    fn events(&self) -> String {
        let events = self.events.iter().map(|(event, count)| format!("{count} x {event}"));
        events.collect::<Vec<_>>().join(", ")
    }

    fn conclude(&self, allowed: usize) -> Result<()> {
        println!("events          {}", self.events());
        println!("requests        {}", self.verdict.requests);
        println!(
            "connections     {} long ones, {} questions",
            self.verdict.connections, self.verdict.questions
        );
        println!("retransmissions {}", self.retransmissions);
        println!("lost            {}", self.verdict.lost);
        println!("broken          {}", self.verdict.broken);
        println!("differences     {}", self.differences.len());
        for problem in self.verdict.errors.iter().chain(&self.differences) {
            println!("  {problem}");
        }
        let Verdict { lost, broken, .. } = self.verdict;
        if lost > allowed || broken > 0 || !self.differences.is_empty() {
            bail!("{lost} lost, {broken} broken, {} differences", self.differences.len());
        }
        Ok(())
    }
}

fn soak(lab: &Lab, duration: Duration, random: &mut fastrand::Rng, outcome: &mut Outcome) -> Result<()> {
    let mut cluster = Cluster::apply(lab)?;
    let mut agents = Agents::start(lab)?;
    let traffic = Traffic::start(lab, &cluster);
    let (start, mut told) = (Instant::now(), Instant::now());
    while start.elapsed() < duration {
        let event = Event::draw(random);
        outcome.note(event);
        event
            .happen(lab, &mut cluster, &mut agents, random)
            .with_context(|| format!("after {:.0?}: {event}", start.elapsed()))?;
        // Between two events the traffic meets a node at rest, too.
        traffic.wait_for_requests(random.usize(50..400))?;
        let verdict = traffic.take(start.elapsed(), event);
        for error in &verdict.errors {
            eprintln!("\n{error}");
        }
        if verdict.lost + verdict.broken > 0 && outcome.reports < REPORTS {
            outcome.reports += 1;
            report(lab, outcome.reports)?;
        }
        outcome.verdict.add(verdict);
        if told.elapsed() >= REPORT || stderr().is_terminal() {
            told = Instant::now();
            tell(start.elapsed(), duration, outcome);
        }
    }
    outcome.verdict.add(traffic.stop(start.elapsed()));
    eprintln!();
    outcome.retransmissions = traffic::retransmissions(lab)?;
    agents.all_running(lab)?;
    lab.settle_everywhere()?;
    outcome.differences = agents.differences(lab);
    Ok(())
}

/// Keeps what can be told of the lab soon after a loss, while the flow is still in the tables.
fn report(lab: &Lab, number: usize) -> Result<()> {
    let path = env::temp_dir().join(format!("soak-{}-{number}.txt", process::id()));
    fs::write(&path, lab.report()).with_context(|| format!("writing {}", path.display()))?;
    eprintln!("tables, counters and logs: {}", path.display());
    Ok(())
}

fn tell(elapsed: Duration, duration: Duration, outcome: &Outcome) {
    let line = format!(
        "{:>5.0?} of {duration:.0?}: {} requests, {} lost; {}",
        elapsed,
        outcome.verdict.requests + outcome.verdict.questions,
        outcome.verdict.lost,
        outcome.events()
    );
    let mut stderr = stderr();
    // Progress is for the reader's comfort: that it can't be shown is no reason to end.
    let _ = if stderr.is_terminal() {
        write!(stderr, "\r\x1b[K{line}")
    } else {
        writeln!(stderr, "{line}")
    };
}
