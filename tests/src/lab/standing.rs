//! Labs that stand without a process (`proxy-lab up`).

use std::{io, path::PathBuf, process, thread};

use anyhow::Result;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use super::{
    Lab, cgroup,
    owner::{self, Estate},
};

/// A lab found on this machine.
#[derive(Debug)]
pub struct Standing(Estate);

impl Standing {
    /// The one of a name.
    pub fn find(name: &str) -> Option<Self> {
        Estate::existing(name).map(Self)
    }

    /// What its namespaces' names start with.
    pub fn prefix(&self) -> &str {
        self.0.prefix()
    }

    /// Where it keeps its files.
    pub fn directory(&self) -> PathBuf {
        self.0.directory()
    }

    /// Pids of its agents that run.
    pub fn processes(&self) -> Vec<i32> {
        self.0.processes()
    }

    /// Ends its processes and removes all of it.
    pub fn remove(self) -> Result<()> {
        self.0.remove()
    }
}

/// All labs on this machine, also those of running tests.
pub fn standing() -> Vec<Standing> {
    owner::standing().into_iter().map(Standing).collect()
}

impl Lab {
    /// Removes the lab and ends this process, with the status shells expect, when somebody interrupts or terminates it.
    pub fn remove_when_interrupted(&self) -> Result<()> {
        let estate = self.estate.clone();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
            let interrupted = runtime.block_on(async {
                let (mut interrupt, mut terminate) =
                    (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
                Ok::<_, io::Error>(tokio::select! {
                    _ = interrupt.recv() => SignalKind::interrupt(),
                    _ = terminate.recv() => SignalKind::terminate(),
                })
            });
            match interrupted {
                Ok(signal) => {
                    // What is being made meanwhile is found by the next attempt.
                    let removed = estate
                        .remove()
                        .or_else(|_| estate.remove())
                        .or_else(|_| estate.remove());
                    if let Err(error) = removed {
                        eprintln!("lab: removing {}: {error:#}", estate.prefix());
                    }
                    cgroup::abandon();
                    process::exit(128 + signal.as_raw_value());
                }
                Err(error) => eprintln!("lab: signals are not handled: {error}"),
            }
        })?;
        Ok(())
    }
}
