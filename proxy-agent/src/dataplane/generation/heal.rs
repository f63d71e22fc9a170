//! Pins of tables that went lost, or were replaced: every table is pinned twice.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use proxy_common::layout::tables;

use super::Generation;
use crate::dataplane::{pin, raw::BytesMap};

/// Pins the tables of a generation again that are not pinned under their names any more, and those anew that are pinned only
/// once. What is pinned in the place of a table that the programs don't know is set aside: it may be somebody's.
///
/// # Errors
/// If a pin can't be made.
pub(in crate::dataplane) fn heal(generation: &Generation) -> Result<()> {
    let mut used = Vec::new();
    for path in pin::entries(&generation.program(""))? {
        used.extend(
            ProgramInfo::from_pin(&path)
                .and_then(|program| program.map_ids())
                .ok()
                .flatten()
                .unwrap_or_default(),
        );
    }
    for spec in &tables::ALL {
        let (path, spare) = (generation.map(spec.name), generation.spare(spec.name));
        match (map(&path)?, map(&spare)?) {
            (Some(map), None) => pin_at(&map, &spare)?,
            (None, Some(map)) => {
                tracing::warn!("the table that was pinned at {} is pinned again", path.display());
                pin_at(&map, &path)?;
            }
            (Some(present), Some(map)) if present.info().id == map.info().id => {}
            (Some(present), Some(_))
                if present.info().name() == spec.name.as_bytes() && used.contains(&present.info().id) =>
            {
                pin::remove(&spare)?;
                pin_at(&present, &spare)?;
            }
            (Some(_), Some(map)) => {
                let foreign = generation.map(&format!("foreign_{}", spec.name));
                fs::rename(&path, &foreign).with_context(|| format!("cannot move {}", path.display()))?;
                let foreign = foreign.display();
                tracing::warn!(
                    "{} is no table of ours: it is {foreign} now, and the table pinned again",
                    path.display()
                );
                pin_at(&map, &path)?;
            }
            (None, None) => {}
        }
    }
    Ok(())
}

/// The map pinned at a path; `None` if nothing is, or something else.
fn map(path: &Path) -> Result<Option<BytesMap>> {
    match BytesMap::open(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot open the map pinned at {}", path.display())),
    }
}

fn pin_at(map: &BytesMap, path: &Path) -> Result<()> {
    map.pin(path).with_context(|| format!("cannot pin {}", path.display()))
}
