//! What the agent says while it runs.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use proxy_tests::lab::{Lab, PATIENCE, wait_until};

/// The log of a node's agents from some moment on.
pub(super) struct Log {
    path: PathBuf,
    from: usize,
}

impl Log {
    /// Lines written from now on.
    pub(super) fn from_now(lab: &Lab, node: &str) -> Self {
        let path = lab.agent_log(node);
        let from = fs::read(&path).map_or(0, |text| text.len());
        Self { path, from }
    }

    /// Waits for a line that holds all of these, and returns it.
    pub(super) fn wait_for(&self, parts: &[&str]) -> Result<String> {
        let holds_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        let find = || self.text().lines().find(holds_all).map(str::to_owned);
        wait_until(&format!("the agent says {parts:?}"), PATIENCE, find)
            .with_context(|| format!("its log:\n{}", self.text()))
    }

    /// How many lines hold all of these.
    pub(super) fn count(&self, parts: &[&str]) -> usize {
        let text = self.text();
        let lines = text.lines();
        lines
            .filter(|line| parts.iter().all(|part| line.contains(part)))
            .count()
    }

    fn text(&self) -> String {
        let text = fs::read(&self.path).unwrap_or_default();
        String::from_utf8_lossy(text.get(self.from..).unwrap_or_default()).into_owned()
    }
}
