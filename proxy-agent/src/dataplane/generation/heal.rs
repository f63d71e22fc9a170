//! Pins of tables that went lost, or were replaced, while the programs still have the tables.

use std::{collections::BTreeMap, fs, io, os::fd::AsFd as _};

use anyhow::{Context as _, Result};
use aya::{maps::MapInfo, programs::loaded_programs};
use proxy_common::layout::tables;

use super::Generation;
use crate::dataplane::{hook::Place, raw, raw::BytesMap};

/// Pins the tables again that the programs of a generation use and that aren't pinned under their names.
///
/// Its programs are those that use most of what is pinned. A table that only the agent uses is none of theirs: it stays lost.
pub(super) fn heal(generation: &Generation) -> Result<()> {
    let pinned = |name: &str| {
        let map = BytesMap::open(&generation.map(name)).ok()?;
        Some((name.to_owned(), map.info().id))
    };
    let pins: BTreeMap<String, u32> = tables::ALL.iter().filter_map(|spec| pinned(spec.name)).collect();
    let mut best: (usize, BTreeMap<String, u32>) = (0, BTreeMap::new());
    for program in loaded_programs().filter_map(Result::ok) {
        if program.name_as_str().and_then(Place::of_program).is_none() {
            continue;
        }
        let ids = program.map_ids().ok().flatten().unwrap_or_default();
        let named = |id: u32| Some((MapInfo::from_id(id).ok()?.name_as_str()?.to_owned(), id));
        let used: BTreeMap<String, u32> = ids.into_iter().filter_map(named).collect();
        let shared = used.iter().filter(|(name, id)| pins.get(*name) == Some(id)).count();
        if shared * 2 > used.len() && shared > best.0 {
            best = (shared, used);
        }
    }
    for (name, id) in best.1 {
        let is_table = tables::ALL.iter().any(|spec| spec.name == name);
        if !is_table || pins.get(&name) == Some(&id) {
            continue;
        }
        let path = generation.map(&name);
        tracing::warn!("{} is pinned again: the programs use it still", path.display());
        set_aside(generation, &name)?;
        let map = MapInfo::from_id(id).and_then(|info| info.fd());
        let map = map.with_context(|| format!("cannot open table {name} by its id"))?;
        raw::object_pin(map.as_fd(), &path).with_context(|| format!("cannot pin {}", path.display()))?;
    }
    Ok(())
}

/// Whatever has the name of a table is not ours: it is kept, under another name, for whose it may be.
fn set_aside(generation: &Generation, name: &str) -> Result<()> {
    let (path, foreign) = (generation.map(name), generation.map(&format!("foreign_{name}")));
    match fs::rename(&path, &foreign) {
        Ok(()) => {
            tracing::warn!("what was pinned there is now {}", foreign.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot move {}", path.display())),
    }
}
