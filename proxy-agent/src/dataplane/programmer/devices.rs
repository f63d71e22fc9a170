//! The table `devices`.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use proxy_common::layout::Device;

use super::filter::Filter;
use crate::dataplane::table::{BoxedTable, TableError};

pub(super) struct Devices {
    table: BoxedTable<u32, Device>,
    installed: HashMap<u32, Device>,
}

impl Devices {
    /// Reads what is pinned.
    pub(super) fn load(table: BoxedTable<u32, Device>, frontend_filter: &mut Filter) -> Result<Self, TableError> {
        let installed: HashMap<_, _> = table.entries()?.into_iter().collect();
        for device in installed.values() {
            hold(device, frontend_filter);
        }
        Ok(Self { table, installed })
    }

    /// Makes the table hold exactly these devices; tells what failed, by interface index.
    pub(super) fn set(
        &mut self,
        wanted: &BTreeMap<u32, Device>,
        frontend_filter: &mut Filter,
        now: Duration,
    ) -> Vec<(u32, TableError)> {
        let mut failed = Vec::new();
        for (&index, device) in wanted {
            let is_known = self.installed.get(&index) == Some(device);
            let written = admit(device, frontend_filter, now).and_then(|()| {
                if is_known {
                    Ok(())
                } else {
                    self.table.insert(&index, device)
                }
            });
            match written {
                Ok(()) if is_known => {}
                Ok(()) => {
                    hold(device, frontend_filter);
                    if let Some(old) = self.installed.insert(index, *device) {
                        release(&old, frontend_filter, now);
                    }
                }
                Err(error) => failed.push((index, error)),
            }
        }
        let gone: Vec<u32> = self
            .installed
            .keys()
            .filter(|index| !wanted.contains_key(index))
            .copied()
            .collect();
        for index in gone {
            match self.table.remove(&index) {
                Ok(_) => {
                    if let Some(old) = self.installed.remove(&index) {
                        release(&old, frontend_filter, now);
                    }
                }
                Err(error) => failed.push((index, error)),
            }
        }
        failed
    }
}

/// The masquerade addresses that a device has. The way back of a masqueraded packet begins at ingress, with such an
/// address as its destination.
fn addresses(device: &Device) -> (Option<[u8; 4]>, Option<[u8; 16]>) {
    (
        Some(device.masquerade_v4).filter(|address| *address != [0; 4]),
        Some(device.masquerade_v6).filter(|address| *address != [0; 16]),
    )
}

fn admit(device: &Device, filter: &mut Filter, now: Duration) -> Result<(), TableError> {
    let (v4, v6) = addresses(device);
    v4.map_or(Ok(()), |address| filter.admit(&address, now))?;
    v6.map_or(Ok(()), |address| filter.admit(&address, now))
}

fn hold(device: &Device, filter: &mut Filter) {
    let (v4, v6) = addresses(device);
    if let Some(address) = &v4 {
        filter.hold(address);
    }
    if let Some(address) = &v6 {
        filter.hold(address);
    }
}

fn release(device: &Device, filter: &mut Filter, now: Duration) {
    let (v4, v6) = addresses(device);
    if let Some(address) = &v4 {
        filter.release(address, now);
    }
    if let Some(address) = &v6 {
        filter.release(address, now);
    }
}
