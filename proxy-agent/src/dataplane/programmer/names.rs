//! Ids of service ports: small numbers that stay the same while the service port lives, also across restarts.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use proxy_common::layout::{Counter, EndpointKey, RefusalKey, ServiceCounter, ServiceName};

use super::GRACE;
use crate::{
    dataplane::{
        service_name,
        table::{BoxedTable, TableError},
    },
    model::ObjectName,
    plan::{Protocol, ServicePort},
};

/// What was counted of service ports, by id.
pub(super) struct Counts {
    pub(super) services: BoxedTable<u32, ServiceCounter>,
    pub(super) refusals: BoxedTable<RefusalKey, Counter>,
    pub(super) endpoints: BoxedTable<EndpointKey, ServiceCounter>,
}

impl Counts {
    /// Forgets what was counted by more than the id of service ports whose ids may be others' from now on.
    fn forget(&mut self, ids: &HashSet<u32>) -> Result<(), TableError> {
        if ids.is_empty() {
            return Ok(());
        }
        remove(&mut self.refusals, |key| ids.contains(&key.service))?;
        remove(&mut self.endpoints, |key| ids.contains(&key.service))
    }
}

/// Removes the entries that have one of these keys.
fn remove<K, V>(table: &mut BoxedTable<K, V>, is_one: impl Fn(&K) -> bool) -> Result<(), TableError> {
    let mut found = Vec::new();
    table.scan(&mut |key, _| found.extend(Some(key).filter(&is_one)))?;
    for key in found {
        table.remove(&key)?;
    }
    Ok(())
}

pub(super) struct Names {
    table: BoxedTable<u32, ServiceName>,
    counts: Counts,
    by_port: BTreeMap<Arc<ServicePort>, u32>,
    by_id: BTreeMap<u32, Arc<ServicePort>>,
    /// Ids whose name isn't in the table yet
    unpublished: HashSet<u32>,
    /// Ids not needed any more, and since when: flows may still name them
    retired: BTreeMap<u32, Duration>,
    /// No id below this one is free
    lowest: u32,
}

impl Names {
    /// Reads what is pinned.
    pub(super) fn load(table: BoxedTable<u32, ServiceName>, counts: Counts, now: Duration) -> Result<Self, TableError> {
        let mut entries = table.entries()?;
        entries.sort_unstable_by_key(|(id, _)| *id);
        let mut loaded = Self {
            table,
            counts,
            by_port: BTreeMap::new(),
            by_id: BTreeMap::new(),
            unpublished: HashSet::new(),
            retired: BTreeMap::new(),
            lowest: 1,
        };
        for (id, name) in entries {
            match service_name::decode(&name) {
                Some(port) if id != 0 && !loaded.by_port.contains_key(&port) => {
                    let port = Arc::new(port);
                    loaded.by_port.insert(Arc::clone(&port), id);
                    loaded.by_id.insert(id, port);
                }
                // Nothing that this agent has written.
                _ => {
                    loaded.retired.insert(id, now);
                }
            }
        }
        Ok(loaded)
    }

    /// The service port of an id.
    pub(super) fn port(&self, id: u32) -> Option<&ServicePort> {
        self.by_id.get(&id).map(Arc::as_ref)
    }

    /// The service ports of a Service and their ids.
    pub(super) fn of_object(&self, object: &ObjectName) -> Vec<(ServicePort, u32)> {
        let first = ServicePort {
            namespace: object.namespace.clone(),
            service: object.name.clone(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
        };
        self.by_port
            .range(first..)
            .take_while(|(port, _)| port.namespace == object.namespace && port.service == object.name)
            .map(|(port, id)| (ServicePort::clone(port), *id))
            .collect()
    }

    /// All Services that have an id.
    pub(super) fn objects(&self) -> impl Iterator<Item = ObjectName> + '_ {
        self.by_port.keys().map(|port| super::object_of(port))
    }

    /// The id of a service port, its old one if it has one, else the smallest that is free.
    pub(super) fn id(&mut self, port: &ServicePort) -> Result<u32, TableError> {
        if let Some(&id) = self.by_port.get(port) {
            self.retired.remove(&id);
            return Ok(id);
        }
        while self.by_id.contains_key(&self.lowest) || self.retired.contains_key(&self.lowest) {
            self.lowest += 1;
        }
        let id = self.lowest;
        // Ids are also the places in the table of counters.
        let limit = self.counts.services.max_entries();
        if id >= limit {
            return Err(TableError::Full {
                table: "service_counts",
                limit,
            });
        }
        let port = Arc::new(port.clone());
        self.by_port.insert(Arc::clone(&port), id);
        self.by_id.insert(id, port);
        self.unpublished.insert(id);
        Ok(id)
    }

    /// Writes the name of an id, unless it is there, after taking back what its last owner counted.
    pub(super) fn publish(&mut self, id: u32) -> Result<(), PublishError> {
        let Some(port) = self.by_id.get(&id).filter(|_| self.unpublished.contains(&id)) else {
            return Ok(());
        };
        let name = service_name::encode(port).ok_or(PublishError::TooLong)?;
        if self
            .counts
            .services
            .get(&id)?
            .is_some_and(|counted| counted != ServiceCounter::default())
        {
            self.counts.services.insert(&id, &ServiceCounter::default())?;
        }
        self.table.insert(&id, &name)?;
        self.unpublished.remove(&id);
        Ok(())
    }

    /// Writes the names that were written before and are not there any more, so that ids stay whose they are.
    pub(super) fn restore(&mut self) -> Result<(), TableError> {
        for (id, port) in self.by_id.iter().filter(|(id, _)| !self.unpublished.contains(id)) {
            let name = service_name::encode(port);
            if let Some(name) = name.filter(|_| self.table.get(id).is_ok_and(|found| found != name)) {
                self.table.insert(id, &name)?;
            }
        }
        Ok(())
    }

    /// The service port is gone.
    pub(super) fn retire(&mut self, id: u32, now: Duration) {
        self.retired.entry(id).or_insert(now);
    }

    /// Frees the ids that were gone for a while before a scan of the flows began which found none that names them.
    pub(super) fn reclaim(&mut self, in_use: &HashSet<u32>, scan_began: Duration) -> Result<(), TableError> {
        let unused: HashSet<u32> = self
            .retired
            .iter()
            .filter(|(id, since)| **since + GRACE <= scan_began && !in_use.contains(id))
            .map(|(id, _)| *id)
            .collect();
        self.counts.forget(&unused)?;
        for id in unused {
            self.table.remove(&id)?;
            self.retired.remove(&id);
            self.unpublished.remove(&id);
            if let Some(port) = self.by_id.remove(&id) {
                self.by_port.remove(&port);
            }
            self.lowest = self.lowest.min(id.max(1));
        }
        Ok(())
    }
}

/// Why a name could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum PublishError {
    #[error("a part of its name is longer than 63 bytes")]
    TooLong,
    #[error(transparent)]
    Table(#[from] TableError),
}
