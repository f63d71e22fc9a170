//! Labs that stand without a process (`proxy-lab up`).

use std::path::PathBuf;

use anyhow::Result;

use super::owner::{self, Estate};

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
