//! Watching the datapath: a ring buffer of one's own, to which the programs write new flows and refused packets for as long as
//! somebody says that he watches (`proxy_common::layout::Watcher`).

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Map, MapData, RingBuf};
use nix::fcntl::{Flock, FlockArg};
use proxy_common::{
    datapath::{Reason, Verdict},
    layout::{ANYBODY, Event, LEASE, MAX_WATCHERS, TableSpec, Watcher, tables},
};

use super::{
    collect, kernel, now,
    pin::PinDirectory,
    raw::{self, BytesMap, Update},
    shape,
    table::Tables,
};

/// Bytes of a ring unless a flag says otherwise: room for some 12,000 events.
pub const RING_BYTES: u32 = 1 << 20;

/// The reasons that events may have, and no others: those that answers may end with ([`Event::outcome`]) are none.
pub fn reasons() -> impl Iterator<Item = Reason> {
    Reason::ALL.iter().copied().filter(|reason| match reason.verdict() {
        Verdict::Reject | Verdict::Drop => !matches!(reason, Reason::AnswerLimited | Reason::Unanswerable),
        _ => *reason == Reason::NewFlow,
    })
}

/// Bits of [`Watcher::reasons`].
pub fn bits(reasons: impl IntoIterator<Item = Reason>) -> u64 {
    reasons.into_iter().fold(0, |bits, reason| bits | 1 << reason as u32)
}

/// A place among those who watch; given back when dropped.
pub struct Watch {
    pin: PinDirectory,
    tables: WatchTables,
    place: u32,
    reasons: u64,
    /// Reads the ring
    reader: RingBuf<MapData>,
    ring: BytesMap,
    /// What `events_lost` held when it was last looked at
    lost: u64,
    /// Since when tables are not pinned
    missing: Option<Instant>,
    renewed: Instant,
}

/// How often somebody who watches says so.
const RENEWAL: Duration = Duration::from_secs(1);

/// How long tables may be missing: the agent moves their pins in less.
const PATIENCE: Duration = Duration::from_secs(10);

impl Watch {
    /// Begins to watch for what has these reasons ([`bits`]), with a ring of at least so many bytes. It is to be renewed when that is
    /// due.
    ///
    /// # Errors
    /// If nothing is pinned there, all places are taken, or the kernel refuses the ring.
    pub fn open(pin: &PinDirectory, reasons: u64, ring_bytes: u32) -> Result<Self> {
        let tables = WatchTables::open(pin)?;
        let ring = raw::ring(ring_size(ring_bytes)?).context("cannot make a ring buffer")?;
        let data = MapData::from_fd(ring.try_clone()?).context("the ring buffer")?;
        let reader = Map::from_map_data(data).and_then(RingBuf::try_from);
        let mut watch = Self {
            pin: pin.clone(),
            tables,
            place: ANYBODY,
            reasons,
            reader: reader.context("cannot map the ring buffer")?,
            ring: BytesMap::new(ring)?,
            lost: 0,
            missing: None,
            renewed: Instant::now(),
        };
        watch.renew()?;
        Ok(watch)
    }

    /// How long until [`Self::renew_when_due`] has something to do.
    pub fn due_in(&self) -> Duration {
        RENEWAL.saturating_sub(self.renewed.elapsed())
    }

    /// [`Self::renew`], once a second.
    ///
    /// # Errors
    /// As it has.
    pub fn renew_when_due(&mut self) -> Result<Option<Tables>> {
        if self.due_in().is_zero() {
            self.renew()
        } else {
            Ok(None)
        }
    }

    /// Says that it still watches. Who was stopped for so long that somebody else has the place by now gets another one. Gives all
    /// tables if there are others since the last time: the agent had to make them anew (docs/upgrade.md). While it does, some are not
    /// there, and it watches the old ones.
    ///
    /// # Errors
    /// If the kernel refuses, there is no place, or nothing is pinned any more for longer than that takes.
    pub fn renew(&mut self) -> Result<Option<Tables>> {
        self.renewed = Instant::now();
        let moved = match self.moved() {
            Ok(moved) => {
                self.missing = None;
                moved
            }
            Err(_) if self.missing.get_or_insert_with(Instant::now).elapsed() < PATIENCE => None,
            Err(error) => return Err(error),
        };
        let tables = moved.map(|(pinned, tables)| {
            self.leave();
            (self.tables, self.place) = (pinned, ANYBODY);
            tables
        });
        if !self.has_place()? {
            self.place = self.tables.claim(&self.ring)?;
            self.lost = self.tables.lost(self.place)?;
        }
        let until = collect::tick(now()).saturating_add(LEASE);
        for place in [self.place, ANYBODY] {
            self.tables.set(
                place,
                &Watcher {
                    reasons: self.reasons,
                    until,
                    reserved: 0,
                },
            )?;
        }
        Ok(tables)
    }

    /// The tables that are pinned, if they are others than those it watches.
    fn moved(&self) -> Result<Option<(WatchTables, Tables)>> {
        let pinned = WatchTables::open(&self.pin)?;
        if pinned.watchers.info().id == self.tables.watchers.info().id {
            return Ok(None);
        }
        Ok(Some((pinned, kernel::open(&self.pin)?)))
    }

    /// Gives the place back. If that fails it is free a few seconds later.
    fn leave(&self) {
        if self.has_place().unwrap_or(false) {
            self.tables.leave(self.place);
        }
    }

    fn has_place(&self) -> Result<bool> {
        let id = self.ring.info().id.to_ne_bytes();
        Ok(self.place != ANYBODY && self.tables.ring(self.place)?.is_some_and(|present| present == id))
    }

    /// The next event, if there is one. Then its descriptor is readable.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.reader.next()?;
        raw::from_bytes(&item)
    }

    /// How many events were lost since the last call, because the ring had no room for them.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub fn take_lost(&mut self) -> Result<u64> {
        let lost = self.tables.lost(self.place)?;
        Ok(lost.saturating_sub(std::mem::replace(&mut self.lost, lost)))
    }
}

impl AsFd for Watch {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The size of a ring of at least so many bytes: a power of two, and whole pages.
fn ring_size(bytes: u32) -> Result<u32> {
    let page = u32::try_from(procfs::page_size()).context("the size of a page")?;
    let size = bytes.max(page).checked_next_power_of_two();
    size.with_context(|| format!("a ring of {bytes} bytes is too large"))
}

/// The tables of those who watch.
struct WatchTables {
    watchers: BytesMap,
    rings: BytesMap,
    lost: BytesMap,
    /// What is locked while a place is taken
    directory: PathBuf,
}

impl WatchTables {
    fn open(pin: &PinDirectory) -> Result<Self> {
        pin.check_pinned()?;
        let open = |spec: TableSpec| {
            let path = pin.map(spec.name);
            shape::check(&path, &spec)?.with_context(|| {
                format!(
                    "table {} is not pinned at {}: start an agent",
                    spec.name,
                    path.display()
                )
            })?;
            BytesMap::open(&path).with_context(|| format!("cannot open the map pinned at {}", path.display()))
        };
        Ok(Self {
            watchers: open(tables::WATCHERS)?,
            rings: open(tables::EVENT_RINGS)?,
            lost: open(tables::EVENTS_LOST)?,
            directory: pin.maps(),
        })
    }

    /// Takes a place, and puts the ring there. What those have left who watch no more goes.
    fn claim(&self, ring: &BytesMap) -> Result<u32> {
        let directory = File::open(&self.directory).with_context(|| self.directory.display().to_string())?;
        // Until the end of this function.
        let _lock = Flock::lock(directory, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("cannot lock {}", self.directory.display()))?;
        let tick = collect::tick(now());
        let mut free = None;
        for place in ANYBODY + 1..=MAX_WATCHERS {
            if !self.get(place)?.watches(tick) {
                self.remove_ring(place)?;
                free.get_or_insert(place);
            }
        }
        let Some(place) = free else {
            bail!("{MAX_WATCHERS} others watch already: end one of them (`monitor` or `top`)");
        };
        let taken = Watcher {
            until: tick.saturating_add(LEASE),
            ..Watcher::default()
        };
        self.set(place, &taken)?;
        let fd = ring.as_fd().as_raw_fd().to_ne_bytes();
        self.rings
            .set(&place.to_ne_bytes(), &fd, Update::Any)
            .context("cannot put a ring buffer into table event_rings")?;
        Ok(place)
    }

    /// Gives a place back.
    fn leave(&self, place: u32) {
        let left = self
            .set(place, &Watcher::default())
            .and_then(|()| self.remove_ring(place));
        if let Err(error) = left {
            tracing::debug!("cannot stop watching: {error:#}");
        }
    }

    fn get(&self, place: u32) -> Result<Watcher> {
        let value = self.watchers.get(&place.to_ne_bytes()).context("table watchers")?;
        value
            .and_then(|value| raw::from_bytes(&value))
            .context("table watchers is too small")
    }

    fn set(&self, place: u32, watcher: &Watcher) -> Result<()> {
        self.watchers
            .set(&place.to_ne_bytes(), &raw::to_bytes(watcher), Update::Any)
            .context("table watchers")?;
        Ok(())
    }

    /// Id of the ring at a place.
    fn ring(&self, place: u32) -> Result<Option<Vec<u8>>> {
        self.rings.get(&place.to_ne_bytes()).context("table event_rings")
    }

    fn remove_ring(&self, place: u32) -> Result<()> {
        match self.rings.remove(&place.to_ne_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("table event_rings"),
            _ => Ok(()),
        }
    }

    /// What was lost at a place, by all who were there.
    fn lost(&self, place: u32) -> Result<u64> {
        let cell = self.lost.get(&place.to_ne_bytes()).context("table events_lost")?;
        let counters = cell.iter().flat_map(|cell| cell.chunks_exact(size_of::<u64>()));
        Ok(counters.filter_map(raw::from_bytes::<u64>).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_powers_of_two_in_whole_pages() {
        let page = u32::try_from(procfs::page_size()).expect("small");
        assert_eq!(ring_size(1).expect("small"), page);
        assert_eq!(ring_size(RING_BYTES).expect("usual"), RING_BYTES);
        assert_eq!(ring_size(RING_BYTES + 1).expect("larger"), 2 * RING_BYTES);
        assert!(ring_size(u32::MAX).is_err());
    }

    #[test]
    fn events_are_of_new_flows_and_refused_packets() {
        let all: Vec<_> = reasons().collect();
        assert!(all.contains(&Reason::NewFlow) && all.contains(&Reason::NoEndpoints));
        assert!(all.contains(&Reason::NoLocalEndpoints) && !all.contains(&Reason::Established));
        assert_eq!(bits([Reason::NewFlow, Reason::NoEndpoints]), 1 << 2 | 1 << 8);
        assert_eq!(bits(reasons()).count_ones() as usize, all.len());
    }
}
