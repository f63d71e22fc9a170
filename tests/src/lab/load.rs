//! Requests that go on while something happens.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{Namespace, PATIENCE, Protocol, client, wait_until};

/// Errors that are kept; the others are only counted.
const ERRORS_KEPT: usize = 5;
/// Pause between two requests of one thread: the load must leave the machine to what is tested.
const PAUSE: Duration = Duration::from_millis(1);

/// What a load met with.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Latency of each answered request by the backend that answered
    pub answered: BTreeMap<String, Vec<Duration>>,
    /// Requests without a right answer
    pub failed: usize,
    /// Those of them that were refused
    pub refused: usize,
    /// The first errors
    pub errors: Vec<String>,
}

impl LoadReport {
    /// Requests answered.
    pub fn ok(&self) -> usize {
        self.answered.values().map(Vec::len).sum()
    }

    /// Latencies of all answered requests.
    pub fn latencies(&self) -> Vec<Duration> {
        self.answered.values().flatten().copied().collect()
    }

    /// Takes the counts of another report in.
    pub fn add(&mut self, other: Self) {
        for (backend, latencies) in other.answered {
            self.answered.entry(backend).or_default().extend(latencies);
        }
        self.failed += other.failed;
        self.refused += other.refused;
        self.errors.extend(other.errors);
        self.errors.truncate(ERRORS_KEPT);
    }

    /// Fails if a request was lost.
    pub fn expect_no_loss(&self) -> Result<()> {
        ensure!(
            self.failed == 0,
            "{} of {} requests were lost, the first: {:#?}",
            self.failed,
            self.failed + self.ok(),
            self.errors
        );
        Ok(())
    }
}

/// Threads that send one request after another from a namespace until stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    report: Arc<Mutex<LoadReport>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts with a number of threads, each to one target after the other.
    pub fn start(from: &Namespace, threads: usize, targets: &[(Protocol, SocketAddr)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let report = Arc::new(Mutex::new(LoadReport::default()));
        let start = |_| {
            let (stop, report, targets) = (Arc::clone(&stop), Arc::clone(&report), targets.to_vec());
            // A thread is born in the namespace of the one that starts it.
            from.run(|| thread::spawn(move || work(&stop, &report, &targets)))
        };
        let threads = (0..threads).map(start).collect();
        Self { stop, report, threads }
    }

    /// What it met with so far.
    pub fn so_far(&self) -> LoadReport {
        lock(&self.report).clone()
    }

    /// Takes what it met with so far: the next report starts from zero.
    pub fn take(&self) -> LoadReport {
        std::mem::take(&mut lock(&self.report))
    }

    /// Waits until that many more requests have ended, well or not.
    pub fn wait_for(&self, requests: usize) -> Result<()> {
        let ended = || {
            let report = lock(&self.report);
            report.ok() + report.failed
        };
        let before = ended();
        wait_until(&format!("{requests} requests have ended"), PATIENCE, || {
            (ended() >= before + requests).then_some(())
        })
    }

    /// Stops and says what it met with.
    pub fn stop(mut self) -> LoadReport {
        self.end();
        self.take()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                let mut report = lock(&self.report);
                report.failed += 1;
                report.errors.push("a thread of the load panicked".to_owned());
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(report: &Mutex<LoadReport>) -> MutexGuard<'_, LoadReport> {
    report.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn work(stop: &AtomicBool, report: &Mutex<LoadReport>, targets: &[(Protocol, SocketAddr)]) {
    for &(protocol, to) in targets.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let outcome = client::request(protocol, to);
        let mut report = lock(report);
        match outcome {
            Ok(answer) => report.answered.entry(answer.backend).or_default().push(answer.latency),
            Err(error) => {
                report.failed += 1;
                report.refused += usize::from(error.is_refused());
                if report.errors.len() < ERRORS_KEPT {
                    report.errors.push(format!("{protocol} {to}: {error}"));
                }
            }
        }
        drop(report);
        thread::sleep(PAUSE);
    }
}
