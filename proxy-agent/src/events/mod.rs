//! Events about this node and about Services at the API server, for whoever asks `kubectl get events`.
//!
//! Whoever records one goes on at once: it is sent by and by, and given up when the API server doesn't take it. Without a
//! cluster there is nobody to tell; the log has the same either way.

mod post;
mod tables;

use kube::Client;
use tokio::sync::mpsc;

use crate::model::ObjectName;

pub use tables::watch_tables;

/// Events that may wait to be sent; more than that are given up.
const QUEUE: usize = 64;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum About {
    /// This node
    Node,
    /// A Service
    Service(ObjectName),
}

/// Whether somebody should do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Nothing is wrong
    Normal,
    /// Something is
    Warning,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Notice {
    /// What it is about
    pub about: About,
    /// Whether somebody should do something
    pub severity: Severity,
    /// Why, in one word for machines
    pub reason: &'static str,
    /// What was being done, in one word for machines
    pub action: &'static str,
    /// What happened, for people
    pub note: String,
}

impl Notice {
    /// A warning.
    pub fn warning(about: About, reason: &'static str, action: &'static str, note: impl Into<String>) -> Self {
        Self {
            about,
            severity: Severity::Warning,
            reason,
            action,
            note: note.into(),
        }
    }
}

/// Takes events; clones share the way to the API server.
#[derive(Clone, Debug)]
pub struct Recorder(Option<mpsc::Sender<Notice>>);

impl Recorder {
    /// Where there is no cluster.
    pub const fn without_cluster() -> Self {
        Self(None)
    }

    /// Sends events by this client, in the background; needs a tokio runtime.
    pub fn start(client: Client, node_name: String) -> Self {
        let (sender, notices) = mpsc::channel(QUEUE);
        tokio::spawn(post::post(client, node_name, notices));
        Self(Some(sender))
    }

    /// Records an event; never waits.
    pub fn record(&self, notice: Notice) {
        if let Some(sender) = &self.0
            && let Err(error) = sender.try_send(notice)
        {
            tracing::debug!("an event is given up: {error}");
        }
    }
}
