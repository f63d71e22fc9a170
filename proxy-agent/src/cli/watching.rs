//! Events as rows, for the commands that watch: with the names that the tables have for them.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use anyhow::Result;

use crate::dataplane::{
    self,
    inspect::{EventRow, EventWords},
    table::Tables,
    watch::Watch,
};

/// A watch, and what its events are told with.
pub(super) struct Watching {
    watch: Watch,
    tables: Tables,
    words: EventWords,
}

impl Watching {
    /// Tells what `watch` sees by these tables.
    ///
    /// # Errors
    /// If one can't be read.
    pub(super) fn new(watch: Watch, tables: Tables) -> Result<Self> {
        let words = EventWords::read(&tables, dataplane::now())?;
        Ok(Self { watch, tables, words })
    }

    /// The next event that there are words for.
    ///
    /// # Errors
    /// If the tables can't be read.
    pub(super) fn next_row(&mut self) -> Result<Option<EventRow>> {
        while let Some(event) = self.watch.next_event() {
            if !self.words.know(&event) {
                self.words = EventWords::read(&self.tables, dataplane::now())?;
            }
            if let Some(row) = self.words.tell(&event) {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// How long until [`Self::renew_when_due`] has something to do.
    pub(super) fn due_in(&self) -> Duration {
        self.watch.due_in()
    }

    /// [`Watch::renew_when_due`], and goes on with other tables if there are others.
    ///
    /// # Errors
    /// If it can't go on.
    pub(super) fn renew_when_due(&mut self) -> Result<()> {
        if let Some(moved) = self.watch.renew_when_due()? {
            self.tables = moved;
            self.words = EventWords::read(&self.tables, dataplane::now())?;
        }
        Ok(())
    }

    /// [`Watch::take_lost`].
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub(super) fn take_lost(&mut self) -> Result<u64> {
        self.watch.take_lost()
    }
}

impl AsFd for Watching {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
