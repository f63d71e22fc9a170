//! Generations: what one layout of the tables needs, tables, links and filters, stands in one directory, and a new one takes
//! over from the one before it without a packet lost.
//!
//! A generation begins when the agent's tables can't be used as they are: another build has other layouts, a flag asks for
//! another size, or what is pinned is broken. Then the present generation moves into the directory `previous` of the new one,
//! where its links stay attached and forward, and
//!
//! 1. [`carry`] copies what it can of its tables, field by field by name ([`record`]);
//! 2. the programs of the new generation take the place of the old at every hook, and *follow*: each packet goes on to the old
//!    program by a tail call ([`handover`]);
//! 3. when all Services are programmed, one write has them *lead* at all hooks at once: they leave to the old programs only
//!    packets of flows that are in the old flow tables, which they know by the key;
//! 4. the flows are moved over ([`flows`]), and when none is left, programs without a look at old tables replace these, and the
//!    old generation is removed.
//!
//! Everything that a new generation needs of an old one is pinned there: programs, and the type information of the tables. For to
//! get at them by their ids takes `CAP_SYS_ADMIN`, which an agent needn't have.
//!
//! Each step may be the last one before a crash: the next agent finds in the directories and in table `handover` how far it
//! came, and goes on. What is frozen across layout versions for this: the key of the flow tables, their names, table `handover`,
//! the names of programs, links and filters, and these directories
//! and what is in them.

pub(super) mod carry;
mod flows;
mod halves;
pub(super) mod handover;
mod heal;
mod openings;
mod record;

use std::{
    collections::BTreeMap,
    fs,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use proxy_common::layout::{TableSpec, handover::LEADS, tables};

pub(super) use {heal::heal, record::Types};

use super::{
    clsact,
    hook::HEIR,
    pin::{self, PinDirectory},
    raw::{self, BytesMap},
    shape, tcx,
};

/// Where a generation waits that was found broken, until the new one has a place for it.
const ASIDE: &str = "replaced";

/// A generation's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) directory: PathBuf,
}

impl Generation {
    pub(super) fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// Pin of the table called `name`.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    fn maps(&self) -> PathBuf {
        self.directory.join("maps")
    }

    /// A second pin of the table called `name`.
    fn spare(&self, name: &str) -> PathBuf {
        self.spares().join(name)
    }

    fn spares(&self) -> PathBuf {
        self.directory.join("spare")
    }

    /// Pin of the type information of the tables.
    fn layout(&self) -> PathBuf {
        self.directory.join("layout")
    }

    /// Pin of the program called `name`.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.programs().join(name)
    }

    /// Where its programs are pinned.
    pub(super) fn programs(&self) -> PathBuf {
        self.directory.join("programs")
    }

    /// Pins a program, in the place of the one of the last load.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn keep_program(&self, name: &str, program: BorrowedFd<'_>) -> Result<()> {
        let path = self.program(name.strip_suffix(HEIR).unwrap_or(name));
        let new = self.program("new");
        pin::remove(&new)?;
        raw::object_pin(program, &new)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot pin the program at {}", path.display()))
    }

    pub(super) fn links(&self) -> PathBuf {
        self.directory.join("links")
    }

    pub(super) fn filters(&self) -> PathBuf {
        self.directory.join("filters")
    }

    /// The generation that this one takes over from, or its place.
    pub(super) fn previous(&self) -> Self {
        Self::new(self.directory.join("previous"))
    }

    fn exists(&self) -> bool {
        self.directory.exists()
    }

    /// Whether it has decided on packets: one that didn't come so far only stands before the one that does.
    fn has_led(&self) -> bool {
        !self.previous().exists() || self.word() == Some(LEADS)
    }

    /// The word of its table `handover`.
    fn word(&self) -> Option<u32> {
        let map = BytesMap::open(&self.map(tables::HANDOVER.name)).ok()?;
        let value = map.get(&0_u32.to_ne_bytes()).ok()??;
        Some(u32::from_ne_bytes(value.try_into().ok()?))
    }

    /// Why its tables can't be used as they are; `None` if they can.
    fn misfit(&self, sizes: &BTreeMap<String, u32>) -> Option<String> {
        tables::ALL.iter().find_map(|spec| {
            let max_entries = sizes.get(spec.name).copied().unwrap_or(spec.max_entries);
            let spec = TableSpec { max_entries, ..*spec };
            match shape::check(&self.map(spec.name), &spec) {
                Ok(Some(entries)) if entries == max_entries => None,
                Ok(Some(entries)) => Some(format!(
                    "table {} has room for {entries} entries, {max_entries} are asked for",
                    spec.name
                )),
                Ok(None) => Some(format!("table {} is missing", spec.name)),
                Err(error) => Some(format!("{error:#}")),
            }
        })
    }

    fn make(&self) -> Result<()> {
        for directory in [
            self.maps(),
            self.spares(),
            self.links(),
            self.filters(),
            self.programs(),
        ] {
            pin::make_directory(&directory)?;
        }
        Ok(())
    }

    /// Detaches all of its programs and removes it, with all before it; gives what was removed.
    pub(super) fn remove(&self) -> Result<Removed> {
        let mut removed = Removed::default();
        if self.previous().exists() {
            removed += self.previous().remove()?;
        }
        // Detach first: a program must not run on tables that are half gone.
        for filtered in pin::entries(&self.filters())? {
            clsact::remove(&filtered)?;
            removed.filtered_devices += 1;
        }
        for link in pin::entries(&self.links())? {
            tcx::detach(&link)?;
            removed.links += 1;
        }
        for map in pin::entries(&self.maps())? {
            fs::remove_file(&map).with_context(|| format!("cannot remove {}", map.display()))?;
            removed.tables += 1;
        }
        fs::remove_dir_all(&self.directory).with_context(|| format!("cannot remove {}", self.directory.display()))?;
        Ok(removed)
    }
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// tcx links, each a program detached from a device
    pub links: usize,
    /// Devices with clsact filters
    pub filtered_devices: usize,
    /// Tables
    pub tables: usize,
}

impl std::ops::AddAssign for Removed {
    fn add_assign(&mut self, other: Self) {
        self.links += other.links;
        self.filtered_devices += other.filtered_devices;
        self.tables += other.tables;
    }
}

/// Every generation at the top of a pin directory.
pub(super) fn all(pin: &PinDirectory) -> Result<Vec<Generation>> {
    let entries = pin::entries(pin.root())?.into_iter();
    Ok(entries
        .filter(|path| version_of(path).is_some() || path.ends_with(ASIDE))
        .map(Generation::new)
        .collect())
}

/// The version in the name of a generation's directory.
fn version_of(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()
}

/// The generations before the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Previous {
    /// From the last to the one that decides, which is the last here; those in between never did
    chain: Vec<Generation>,
    /// Whether the agent's own generation decides already
    pub(super) own_leads: bool,
}

impl Previous {
    /// The one that decides, or did before the agent's own.
    pub(super) fn leader(&self) -> &Generation {
        self.chain.last().expect("never empty")
    }

    /// The generation before `own`, if there is one.
    pub(super) fn of(own: &Generation) -> Option<Self> {
        let mut chain = vec![own.previous()];
        while chain.last().is_some_and(|last| last.exists() && !last.has_led()) {
            let before = chain.last().expect("just looked at").previous();
            chain.push(before);
        }
        chain[0].exists().then(|| Self {
            chain,
            own_leads: own.word() == Some(LEADS),
        })
    }
}

/// Makes the directory of the agent's own generation ready: with tables that can be used, or without any. Returns the
/// generation to take over from, if there is one.
///
/// # Errors
/// If the pin directory can't be read or written.
pub(super) fn settle(pin: &PinDirectory, sizes: &BTreeMap<String, u32>) -> Result<Option<Previous>> {
    let own = pin.generation();
    let aside = Generation::new(pin.root().join(ASIDE));
    if own.exists() && !pin::entries(&own.maps())?.is_empty() {
        own.make()?;
        heal(&own)?;
        match own.misfit(sizes) {
            None => return Ok(Previous::of(&own)),
            Some(reason) => {
                tracing::info!("new tables are made, and flows and counters are carried over: {reason}");
                move_directory(&own, &aside)?;
            }
        }
    }
    own.make()?;
    // Usually there is one: others are left over from builds that knew nothing of generations.
    let mut others = all(pin)?;
    others.retain(|generation| *generation != own);
    others.sort_by_key(|generation| {
        (
            !generation.directory.ends_with(ASIDE),
            version_of(&generation.directory),
        )
    });
    if let Some(last) = others.pop()
        && !own.previous().exists()
    {
        heal(&last)?;
        move_directory(&last, &own.previous())?;
    }
    for stray in others {
        tracing::warn!("{} is of no use any more, and removed", stray.directory.display());
        stray.remove()?;
    }
    Ok(Previous::of(&own))
}

fn move_directory(from: &Generation, to: &Generation) -> Result<()> {
    let (from, to) = (&from.directory, &to.directory);
    fs::rename(from, to).with_context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// What is left of the tables before those of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PreviousStatus {
    /// Whether its programs still decide on new flows
    pub decides: bool,
    /// Entries of flows that are still there
    pub flows: u64,
}

/// Looks at what is being taken over; `None` if nothing is.
///
/// # Errors
/// If a table can't be read.
pub(super) fn previous_status(pin: &PinDirectory) -> Result<Option<PreviousStatus>> {
    let Some(previous) = Previous::of(&pin.generation()) else {
        return Ok(None);
    };
    let mut flows = 0;
    for table in [tables::FLOWS_V4, tables::FLOWS_V6] {
        if let Ok(table) = BytesMap::open(&previous.leader().map(table.name)) {
            table
                .scan(&mut |_, _| flows += 1)
                .context("cannot read the flows of the tables before")?;
        }
    }
    Ok(Some(PreviousStatus {
        decides: !previous.own_leads,
        flows,
    }))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use proxy_common::layout::{EGRESS, FlowKey, INGRESS, handover::FOLLOWS};

    use super::*;
    use crate::dataplane::hook::Place;

    /// Other versions look for these: they may be added to, and not changed.
    #[test]
    fn frozen_names_and_keys() {
        type Key = FlowKey<[u8; 16]>;
        assert_eq!((size_of::<FlowKey<[u8; 4]>>(), size_of::<Key>()), (16, 40));
        let offsets = [
            offset_of!(Key, source),
            offset_of!(Key, destination),
            offset_of!(Key, source_port),
            offset_of!(Key, destination_port),
            offset_of!(Key, protocol),
            offset_of!(Key, direction),
        ];
        assert_eq!(offsets, [0, 16, 32, 34, 36, 37]);
        assert_eq!((INGRESS, EGRESS), (0, 1));
        assert_eq!((FOLLOWS, LEADS), (1, 2));
        for name in [
            "flows_v4",
            "flows_v6",
            "service_names",
            "reason_counts",
            "service_counts",
            "handover",
        ] {
            assert!(tables::ALL.iter().any(|spec| spec.name == name), "{name}");
        }
        let places = Place::ALL.map(|place| (place.name, place.list, place.index));
        assert_eq!(
            places,
            [
                ("ingress", "previous_tc", 0),
                ("egress", "previous_tc", 1),
                ("ingress_l3", "previous_tc", 2),
                ("egress_l3", "previous_tc", 3),
                ("forward", "previous_xdp", 0),
            ]
        );
        let generation = Generation::new("/pins/v4");
        for (path, expected) in [
            (generation.map("flows_v4"), "/pins/v4/maps/flows_v4"),
            (generation.program("ingress"), "/pins/v4/programs/ingress"),
            (generation.layout(), "/pins/v4/layout"),
            (generation.links(), "/pins/v4/links"),
            (generation.filters(), "/pins/v4/filters"),
            (generation.previous().directory, "/pins/v4/previous"),
        ] {
            assert_eq!(path, Path::new(expected));
        }
    }
}
