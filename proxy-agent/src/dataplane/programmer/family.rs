//! The frontends of one address family: what stands in `services_*`, who owns it, and how it changes.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use proxy_common::layout::{AFFINITY_NONE, Backend, ServiceKey, ServiceValue, service_flags};

use super::{filter::Filter, names::Names, node::Addresses, sets::Sets, sources::Sources};
use crate::{
    dataplane::{
        address::{self, Address},
        features,
        table::{BoxedTable, FamilyTables, TableError},
    },
    plan::{Frontend, Kind},
};

/// The answer for the unknown ports of a cluster address.
const WILDCARD: ServiceValue = ServiceValue {
    service: 0,
    flags: service_flags::WILDCARD,
    cluster_set: 0,
    cluster_count: 0,
    local_set: 0,
    local_count: 0,
    affinity_timeout: AFFINITY_NONE,
};

struct Installed {
    /// Id of the service port that wants it; `None` once it is given up
    owner: Option<u32>,
    value: ServiceValue,
}

/// A frontend whose endpoint sets are written, ready to be flipped to.
pub(super) struct Prepared<A> {
    key: ServiceKey<A>,
    value: ServiceValue,
}

pub(super) struct Family<A> {
    services: BoxedTable<ServiceKey<A>, ServiceValue>,
    sets: Sets<A>,
    installed: HashMap<ServiceKey<A>, Installed>,
    /// Frontends of a service port
    owned: HashMap<u32, HashSet<ServiceKey<A>>>,
    /// Frontends given up, to be removed unless somebody else takes them first
    released: Vec<ServiceKey<A>>,
    /// Cluster addresses and how many frontends they have
    cluster_addresses: HashMap<A, u32>,
    /// Addresses with a wildcard entry
    wildcards: HashSet<A>,
    /// Addresses that may have to get or lose their wildcard entry
    unsettled: HashSet<A>,
    pub(super) sources: Sources<A>,
    pub(super) addresses: Addresses<A>,
}

impl<A: Address> Family<A> {
    /// Reads what is pinned. Frontends without a name have no owner.
    pub(super) fn load(
        tables: FamilyTables<A>,
        names: &Names,
        frontend_filter: &mut Filter,
        backend_filter: &mut Filter,
    ) -> Result<Self, TableError> {
        let entries = tables.services.entries()?;
        let references: Vec<_> = entries
            .iter()
            .flat_map(|(_, value)| references_of(value).map(|(set, count)| (value.service, set, count)))
            .collect();
        let mut family = Self {
            services: tables.services,
            sets: Sets::load(tables.slots, tables.members, &references, backend_filter)?,
            installed: HashMap::new(),
            owned: HashMap::new(),
            released: Vec::new(),
            cluster_addresses: HashMap::new(),
            wildcards: HashSet::new(),
            unsettled: HashSet::new(),
            sources: Sources::load(tables.sources)?,
            addresses: Addresses::load(tables.addresses, frontend_filter)?,
        };
        for (key, value) in entries {
            if key == ServiceKey::wildcard(key.address) && value == WILDCARD {
                frontend_filter.hold(&key.address);
                family.wildcards.insert(key.address);
                family.unsettled.insert(key.address);
                continue;
            }
            family.count_cluster_address(&key, None, Some(&value));
            let owner = names.port(value.service).map(|_| value.service);
            match owner {
                Some(owner) => {
                    family.owned.entry(owner).or_default().insert(key);
                }
                None => family.released.push(key),
            }
            for (set, _) in references_of(&value) {
                family.sets.hold(set);
            }
            if let Some(address) = virtual_address(&key) {
                frontend_filter.hold(&address);
            }
            family.installed.insert(key, Installed { owner, value });
        }
        Ok(family)
    }

    /// Key of a frontend; `None` if its address is of the other family.
    pub(super) fn key(frontend: &Frontend) -> Option<ServiceKey<A>> {
        let address = match frontend.address {
            Some(address) => A::from_ip(address)?,
            None => A::default(),
        };
        Some(ServiceKey::new(
            address,
            frontend.port,
            frontend.service_port.protocol.number(),
        ))
    }

    /// Who owns a frontend.
    pub(super) fn owner(&self, key: &ServiceKey<A>) -> Option<u32> {
        self.installed.get(key)?.owner
    }

    /// Whether a service port has frontends, be it only until another has taken them.
    pub(super) fn has_frontends(&self, service: u32) -> bool {
        let is_its = |key: &ServiceKey<A>| {
            let installed = self.installed.get(key);
            installed.is_some_and(|installed| installed.owner.is_none() && installed.value.service == service)
        };
        self.owned.contains_key(&service) || self.released.iter().any(is_its)
    }

    /// A service port gives up its frontends, except those in `keep`.
    pub(super) fn release(&mut self, service: u32, keep: &HashSet<ServiceKey<A>>) {
        let Some(owned) = self.owned.get_mut(&service) else {
            return;
        };
        owned.retain(|key| {
            let kept = keep.contains(key);
            if !kept {
                if let Some(installed) = self.installed.get_mut(key) {
                    installed.owner = None;
                }
                self.released.push(*key);
            }
            kept
        });
        if owned.is_empty() {
            self.owned.remove(&service);
        }
    }

    /// Writes what a frontend needs before it can be served: filter bits and endpoint sets.
    pub(super) fn prepare(
        &mut self,
        service: u32,
        key: ServiceKey<A>,
        frontend: &Frontend,
        (frontend_filter, backend_filter): (&mut Filter, &mut Filter),
        now: Duration,
    ) -> Result<Prepared<A>, TableError> {
        if let Some(address) = virtual_address(&key) {
            frontend_filter.admit(&address, now)?;
        }
        self.sources.add(service, &frontend.sources)?;
        let mut write = |endpoints: Option<&[std::net::SocketAddr]>| {
            let backends: Vec<Backend<A>> = endpoints
                .into_iter()
                .flatten()
                .copied()
                .filter_map(address::backend)
                .collect();
            let keeps_clients = frontend.affinity.is_some();
            let set = self
                .sets
                .find_or_write(service, &backends, keeps_clients, backend_filter, now)?;
            // There are fewer slots than 2^32.
            Ok((set, u32::try_from(backends.len()).unwrap_or(u32::MAX)))
        };
        let (cluster_set, cluster_count) = write(frontend.cluster.as_deref())?;
        let (local_set, local_count) = write(frontend.local.as_deref())?;
        Ok(Prepared {
            key,
            value: ServiceValue {
                service,
                flags: features::encode(frontend),
                cluster_set,
                cluster_count,
                local_set,
                local_count,
                affinity_timeout: frontend.affinity.map_or(AFFINITY_NONE, std::num::NonZeroU32::get),
            },
        })
    }

    /// Flips a frontend to what was prepared: one write, none if nothing changed.
    pub(super) fn install(&mut self, prepared: &Prepared<A>, frontend_filter: &mut Filter) -> Result<(), TableError> {
        let Prepared { key, value } = *prepared;
        let old = self.installed.get(&key).map(|installed| installed.value);
        if old != Some(value) {
            self.services.insert(&key, &value)?;
            for (set, _) in references_of(&value) {
                self.sets.hold(set);
            }
            for (set, _) in old.iter().flat_map(references_of) {
                self.sets.release(set);
            }
            if let (None, Some(address)) = (old, virtual_address(&key)) {
                frontend_filter.hold(&address);
            }
            self.count_cluster_address(&key, old.as_ref(), Some(&value));
        }
        let owner = Some(value.service);
        self.installed.insert(key, Installed { owner, value });
        self.owned.entry(value.service).or_default().insert(key);
        Ok(())
    }

    /// Removes the frontends that were given up and that nobody has taken; those that are `awaited` stay as they are until
    /// then.
    pub(super) fn remove_released(
        &mut self,
        awaited: &HashSet<ServiceKey<A>>,
        frontend_filter: &mut Filter,
        now: Duration,
    ) -> Result<(), TableError> {
        let mut left = std::mem::take(&mut self.released);
        let mut removed = Ok(());
        left.retain(|key| {
            let is_free = self
                .installed
                .get(key)
                .is_some_and(|installed| installed.owner.is_none());
            if !is_free {
                return false;
            }
            if removed.is_err() || awaited.contains(key) {
                return true;
            }
            removed = self.remove(key, frontend_filter, now);
            removed.is_err()
        });
        self.released = left;
        removed
    }

    fn remove(&mut self, key: &ServiceKey<A>, frontend_filter: &mut Filter, now: Duration) -> Result<(), TableError> {
        let Some(value) = self.installed.get(key).map(|installed| installed.value) else {
            return Ok(());
        };
        self.services.remove(key)?;
        for (set, _) in references_of(&value) {
            self.sets.release(set);
        }
        self.count_cluster_address(key, Some(&value), None);
        if let Some(address) = virtual_address(key) {
            frontend_filter.release(&address, now);
        }
        self.installed.remove(key);
        Ok(())
    }

    /// Has cluster addresses, and only those, answer for their unknown ports (behaviour.md 4.6, 4.8).
    pub(super) fn settle_wildcards(&mut self, frontend_filter: &mut Filter, now: Duration) -> Result<(), TableError> {
        while let Some(address) = self.unsettled.iter().next().copied() {
            let key = ServiceKey::wildcard(address);
            match (
                self.cluster_addresses.contains_key(&address),
                self.wildcards.contains(&address),
            ) {
                (true, false) => {
                    self.services.insert(&key, &WILDCARD)?;
                    frontend_filter.hold(&address);
                    self.wildcards.insert(address);
                }
                (false, true) => {
                    self.services.remove(&key)?;
                    frontend_filter.release(&address, now);
                    self.wildcards.remove(&address);
                }
                _ => {}
            }
            self.unsettled.remove(&address);
        }
        Ok(())
    }

    /// Puts the endpoint sets aside that no frontend names any more.
    pub(super) fn retire_idle(&mut self, now: Duration) -> Result<(), TableError> {
        self.sets.retire_idle(now)
    }

    /// Frees the endpoint sets put aside long enough ago.
    pub(super) fn free(&mut self, backend_filter: &mut Filter, now: Duration) -> Result<(), TableError> {
        self.sets.free(backend_filter, now)
    }

    fn count_cluster_address(&mut self, key: &ServiceKey<A>, old: Option<&ServiceValue>, new: Option<&ServiceValue>) {
        let is_cluster_address = |value: Option<&ServiceValue>| {
            value.is_some_and(|value| features::decode(value.flags).kind == Kind::ClusterIP)
        };
        let (before, after) = (is_cluster_address(old), is_cluster_address(new));
        if before == after {
            return;
        }
        let count = self.cluster_addresses.entry(key.address).or_default();
        *count = if after { *count + 1 } else { *count - 1 };
        if *count == 0 {
            self.cluster_addresses.remove(&key.address);
        }
        self.unsettled.insert(key.address);
    }
}

/// The sets that a service entry names, with their counts.
fn references_of(value: &ServiceValue) -> impl Iterator<Item = (u32, u32)> + use<> {
    [
        (value.cluster_set, value.cluster_count),
        (value.local_set, value.local_count),
    ]
    .into_iter()
    .filter(|(set, _)| *set != 0)
}

/// The virtual address of a frontend; a nodePort has none.
fn virtual_address<A: Address>(key: &ServiceKey<A>) -> Option<A> {
    (key.address != A::default()).then_some(key.address)
}
