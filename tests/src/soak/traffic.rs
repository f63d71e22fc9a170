//! What the soak must not lose: requests, each over a socket of its own, and long connections.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{cluster::Cluster, event::Event};
use crate::lab::{Connection, Lab, Load, LoadReport, Namespace, Protocol, wait_until};

/// Errors that are kept.
const ERRORS_KEPT: usize = 20;
/// How long a long connection says nothing between two questions.
const SILENCE: Duration = Duration::from_millis(50);
/// Questions over one connection before it is closed and another opened.
const QUESTIONS: std::ops::Range<u32> = 20..2000;
/// Long connections from each place.
const CONNECTIONS: usize = 4;
/// How long a number of requests may take: beside a flood, on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);

/// What came of the traffic.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// Requests over sockets of their own, lost ones included
    pub(super) requests: usize,
    /// Long connections opened
    pub(super) connections: usize,
    /// Questions asked over them
    pub(super) questions: usize,
    /// Requests without a right answer
    pub(super) lost: usize,
    /// Long connections that could not be opened, or got no right answer
    pub(super) broken: usize,
    /// The first errors, and when they were
    pub(super) errors: Vec<String>,
}

impl Verdict {
    /// Takes another in.
    pub(super) fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.connections += other.connections;
        self.questions += other.questions;
        self.lost += other.lost;
        self.broken += other.broken;
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_KEPT);
    }
}

/// Traffic that goes on until stopped.
#[derive(Debug)]
pub(super) struct Traffic {
    loads: Vec<(&'static str, Load)>,
    stop: Arc<AtomicBool>,
    conversations: Arc<Mutex<Verdict>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    pub(super) fn start(lab: &Lab, cluster: &Cluster) -> Self {
        let sources = [
            ("client", cluster.targets_of_pod(lab, "client")),
            ("far-client", cluster.targets_of_pod(lab, "far-client")),
            ("outside", cluster.targets_outside(lab)),
        ];
        let stop = Arc::new(AtomicBool::new(false));
        let conversations = Arc::new(Mutex::new(Verdict::default()));
        let mut threads = Vec::new();
        for (from, targets) in &sources {
            let tcp: Vec<SocketAddr> = targets
                .iter()
                .filter(|(protocol, _)| *protocol == Protocol::Tcp)
                .map(|(_, to)| *to)
                .collect();
            for index in 0..CONNECTIONS {
                let to = tcp[index * tcp.len() / CONNECTIONS];
                let (stop, verdict) = (Arc::clone(&stop), Arc::clone(&conversations));
                threads.push(spawn(lab.namespace(from), move || converse(to, &stop, &verdict)));
            }
        }
        let start = |(from, targets): (&'static str, Vec<_>)| (from, Load::start(lab.namespace(from), 1, &targets));
        Self {
            loads: sources.into_iter().map(start).collect(),
            stop,
            conversations,
            threads,
        }
    }

    /// Waits until each place has ended that many more requests, well or not.
    pub(super) fn wait_for_requests(&self, requests: usize) -> Result<()> {
        let ended = |load: &Load| {
            let report = load.so_far();
            report.ok() + report.failed
        };
        let before: Vec<usize> = self.loads.iter().map(|(_, load)| ended(load)).collect();
        wait_until(&format!("{requests} requests have ended"), PATIENCE, || {
            let mut loads = self.loads.iter().zip(&before);
            loads
                .all(|((_, load), before)| ended(load) >= before + requests)
                .then_some(())
        })
    }

    /// What came of it since the last call.
    pub(super) fn take(&self, elapsed: Duration, event: Event) -> Verdict {
        let mut verdict = std::mem::take(&mut *lock(&self.conversations));
        for (from, load) in &self.loads {
            verdict.add(of_load(from, &load.take()));
        }
        for error in &mut verdict.errors {
            *error = format!("{elapsed:.1?}, at or after {event}: {error}");
        }
        verdict
    }

    /// Stops, and gives what came of it since.
    pub(super) fn stop(self, elapsed: Duration) -> Verdict {
        self.stop.store(true, Ordering::Relaxed);
        let mut verdict = Verdict::default();
        for thread in self.threads {
            if thread.join().is_err() {
                verdict.broken += 1;
                verdict.errors.push("a long connection's thread panicked".to_owned());
            }
        }
        for (from, load) in self.loads {
            verdict.add(of_load(from, &load.stop()));
        }
        verdict.add(std::mem::take(&mut *lock(&self.conversations)));
        for error in &mut verdict.errors {
            *error = format!("{elapsed:.1?}, at the end: {error}");
        }
        verdict
    }
}

/// TCP segments that clients had to send again: losses that cost time, not requests.
pub(super) fn retransmissions(lab: &Lab) -> Result<u64> {
    ["client", "far-client", "outside"]
        .into_iter()
        .map(|name| lab.namespace(name).retransmissions())
        .sum()
}

fn of_load(from: &str, report: &LoadReport) -> Verdict {
    Verdict {
        requests: report.ok() + report.failed,
        lost: report.failed,
        errors: report.errors.iter().map(|error| format!("{from}: {error}")).collect(),
        ..Verdict::default()
    }
}

fn spawn(namespace: &Namespace, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    // A thread is born in the namespace of the one that starts it.
    namespace.run(|| thread::spawn(body))
}

fn lock(verdict: &Mutex<Verdict>) -> MutexGuard<'_, Verdict> {
    verdict.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One long connection after the other: each must last until its client ends it, and always reach the same backend.
fn converse(to: SocketAddr, stop: &AtomicBool, verdict: &Mutex<Verdict>) {
    while !stop.load(Ordering::Relaxed) {
        let born = Instant::now();
        if let Err(error) = hold(to, stop, verdict) {
            let mut verdict = lock(verdict);
            verdict.broken += 1;
            if verdict.errors.len() < ERRORS_KEPT {
                let age = born.elapsed();
                verdict
                    .errors
                    .push(format!("long connection to {to}, {age:.1?} old: {error:#}"));
            }
        }
    }
}

fn hold(to: SocketAddr, stop: &AtomicBool, verdict: &Mutex<Verdict>) -> Result<()> {
    let mut connection = Connection::open(to)?;
    lock(verdict).connections += 1;
    let backend = connection.ask()?.backend;
    for _ in 0..fastrand::u32(QUESTIONS) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        thread::sleep(SILENCE);
        let answer = connection.ask()?;
        anyhow::ensure!(
            answer.backend == backend,
            "{} answered instead of {backend}",
            answer.backend
        );
        lock(verdict).questions += 1;
    }
    Ok(())
}
