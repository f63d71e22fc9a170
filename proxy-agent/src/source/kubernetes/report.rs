//! What is wrong with one watch now, told once when it changes.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc::{Sender, error::SendError};

use crate::{
    model::{ObjectName, Problem},
    source::Event,
};

/// The problems of one watch.
pub(super) struct Report {
    /// Such as `watch services`
    origin: String,
    /// What keeps the watch itself from working
    failure: Option<Problem>,
    /// Objects that arrived but can't be read
    unreadable: BTreeMap<ObjectName, Problem>,
    /// What the receiver knows
    told: BTreeSet<Problem>,
    events: Sender<Event>,
}

impl Report {
    pub(super) fn new(origin: String, events: Sender<Event>) -> Self {
        Self {
            origin,
            failure: None,
            unreadable: BTreeMap::new(),
            told: BTreeSet::new(),
            events,
        }
    }

    /// The watch doesn't work.
    pub(super) async fn failing(&mut self, reason: String) -> Result<(), SendError<Event>> {
        self.failure = Some(Problem {
            object: self.origin.clone(),
            field: String::new(),
            reason,
        });
        self.tell().await
    }

    /// The watch works.
    pub(super) async fn working(&mut self) -> Result<(), SendError<Event>> {
        self.failure = None;
        self.tell().await
    }

    /// A complete list has just these unreadable objects.
    pub(super) async fn listed(&mut self, unreadable: BTreeMap<ObjectName, Problem>) -> Result<(), SendError<Event>> {
        self.failure = None;
        self.unreadable = unreadable;
        self.tell().await
    }

    /// An object arrived that can't be read.
    pub(super) async fn unreadable(&mut self, name: ObjectName, problem: Problem) -> Result<(), SendError<Event>> {
        self.unreadable.insert(name, problem);
        self.tell().await
    }

    /// An object arrived that can be read, or is gone.
    pub(super) async fn readable(&mut self, name: &ObjectName) -> Result<(), SendError<Event>> {
        self.unreadable.remove(name);
        self.tell().await
    }

    async fn tell(&mut self) -> Result<(), SendError<Event>> {
        let problems: BTreeSet<_> = self.failure.iter().chain(self.unreadable.values()).cloned().collect();
        if problems == self.told {
            return Ok(());
        }
        self.told.clone_from(&problems);
        let problems = problems.into_iter().collect();
        self.events
            .send(Event::Problems {
                origin: self.origin.clone(),
                problems,
                // An object that can't be read counts as gone (see `Watch::apply`).
                has_unread: false,
            })
            .await
    }
}
