//! Endpoint sets: immutable once written, shared by the frontends of a service port that have equal lists, freed some
//! time after the last frontend has left them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use proxy_common::layout::{Backend, Member, MemberKey, SlotKey};

use super::{GRACE, filter::Filter};
use crate::dataplane::{
    address::Address,
    collect::tick,
    table::{BoxedTable, TableError},
};

struct Set<A> {
    service: u32,
    keys: Vec<SlotKey>,
    backends: Vec<Backend<A>>,
    /// For affinity, since when the service port has had each endpoint, in ticks; empty without
    since: Vec<u32>,
    /// Whether `since` is wanted
    keeps_clients: bool,
    /// Places in service entries that name it
    users: u32,
}

struct Retired<A> {
    deadline: Duration,
    keys: Vec<SlotKey>,
    backends: Vec<Backend<A>>,
    has_members: bool,
}

pub(super) struct Sets<A> {
    slots: BoxedTable<SlotKey, Backend<A>>,
    members: BoxedTable<MemberKey<A>, Member>,
    by_id: HashMap<u32, Set<A>>,
    /// Whole sets of a service port
    by_service: HashMap<u32, Vec<u32>>,
    /// Sets that may have lost their last user
    idle: Vec<u32>,
    /// Sets that lookups under way may still read
    retired: HashMap<u32, Retired<A>>,
    /// Members of no whole set: what is left where not all could be written
    strays: HashSet<MemberKey<A>>,
    /// The last id given
    last: u32,
}

impl<A: Address> Sets<A> {
    /// Reads what is pinned. `references` are the sets that service entries name: service id, set id and count.
    pub(super) fn load(
        slots: BoxedTable<SlotKey, Backend<A>>,
        members: BoxedTable<MemberKey<A>, Member>,
        references: &[(u32, u32, u32)],
        filter: &mut Filter,
    ) -> Result<Self, TableError> {
        let mut found: HashMap<u32, BTreeMap<u32, Backend<A>>> = HashMap::new();
        slots.scan(&mut |key, backend| {
            found.entry(key.set).or_default().insert(key.index, backend);
        })?;
        let known_members: HashMap<_, _> = members.entries()?.into_iter().collect();
        let mut named: HashMap<u32, HashSet<(u32, u32)>> = HashMap::new();
        for &(service, set, count) in references {
            named.entry(set).or_default().insert((service, count));
        }
        let mut sets = Self {
            slots,
            members,
            by_id: HashMap::new(),
            by_service: HashMap::new(),
            idle: found.keys().copied().collect(),
            retired: HashMap::new(),
            strays: known_members.keys().copied().collect(),
            last: found.keys().chain(named.keys()).copied().max().unwrap_or(0),
        };
        for (id, slots) in found {
            let by = named.get(&id);
            // Only a set that is whole and belongs to one service port can be taken over.
            let whole = by
                .filter(|by| by.len() == 1)
                .and_then(|by| by.iter().next())
                .filter(|(_, count)| slots.len() == *count as usize && slots.keys().copied().eq(0..*count));
            if let Some((service, _)) = whole {
                sets.by_service.entry(*service).or_default().push(id);
            }
            let keys = slots.keys().map(|&index| SlotKey { set: id, index }).collect();
            let backends: Vec<_> = slots.into_values().collect();
            let since = |backend: &Backend<A>| Some(known_members.get(&member_key(id, backend))?.since);
            let since: Vec<u32> = backends.iter().filter_map(since).collect();
            let set = Set {
                service: whole.map_or(0, |(service, _)| *service),
                keys,
                // One that was not written to its end is written anew.
                keeps_clients: since.len() == backends.len(),
                since: if since.len() == backends.len() {
                    since
                } else {
                    Vec::new()
                },
                backends,
                users: 0,
            };
            for backend in &set.backends {
                filter.hold(&backend.address);
                if set.keeps_clients {
                    sets.strays.remove(&member_key(id, backend));
                }
            }
            sets.by_id.insert(id, set);
        }
        Ok(sets)
    }

    /// The set of a service port that holds exactly these endpoints, written if there is none; 0 for no endpoints. For a
    /// port that keeps its clients the endpoints become members, too.
    pub(super) fn find_or_write(
        &mut self,
        service: u32,
        backends: &[Backend<A>],
        keeps_clients: bool,
        filter: &mut Filter,
        now: Duration,
    ) -> Result<u32, TableError> {
        if backends.is_empty() {
            return Ok(0);
        }
        for backend in backends {
            filter.admit(&backend.address, now)?;
        }
        let known = self.by_service.get(&service).into_iter().flatten();
        if let Some(&id) = known
            .copied()
            .collect::<Vec<_>>()
            .iter()
            .find(|id| self.by_id[*id].backends == backends)
        {
            self.keep_clients(id, keeps_clients, now)?;
            return Ok(id);
        }
        let id = self.next_id();
        let keys: Vec<_> = (0..)
            .map(|index| SlotKey { set: id, index })
            .take(backends.len())
            .collect();
        for (written, (key, backend)) in keys.iter().zip(backends).enumerate() {
            if let Err(error) = self.slots.insert(key, backend) {
                // Nobody names the set yet.
                for key in &keys[..written] {
                    self.slots.remove(key)?;
                }
                return Err(error);
            }
        }
        for backend in backends {
            filter.hold(&backend.address);
        }
        self.by_service.entry(service).or_default().push(id);
        self.by_id.insert(
            id,
            Set {
                service,
                keys,
                backends: backends.to_vec(),
                since: Vec::new(),
                keeps_clients: false,
                users: 0,
            },
        );
        self.idle.push(id);
        self.keep_clients(id, keeps_clients, now)?;
        Ok(id)
    }

    /// Makes the endpoints of a set members, or has them be none when the frontends have been flipped.
    fn keep_clients(&mut self, id: u32, keeps_clients: bool, now: Duration) -> Result<(), TableError> {
        let Some(set) = self.by_id.get(&id) else {
            return Ok(());
        };
        let mut since = set.since.clone();
        if keeps_clients && since.is_empty() {
            let others = self.by_service.get(&set.service).into_iter().flatten();
            let others: Vec<&Set<A>> = others.filter_map(|other| self.by_id.get(other)).collect();
            // What the port has had all along, in another set, keeps its clients (behaviour.md 6.4).
            let known = |backend: &Backend<A>| {
                let mut known = others.iter().filter(|other| other.keeps_clients).filter_map(|other| {
                    let index = other.backends.iter().position(|other| other == backend)?;
                    other.since.get(index).copied()
                });
                known.next()
            };
            since = set
                .backends
                .iter()
                .map(|backend| known(backend).unwrap_or_else(|| tick(now)))
                .collect();
            let keys = set.backends.iter().map(|backend| member_key(id, backend));
            for (key, &since) in keys.clone().zip(&since) {
                self.members.insert(&key, &Member { since })?;
                self.strays.insert(key);
            }
            for key in keys {
                self.strays.remove(&key);
            }
        }
        if let Some(set) = self.by_id.get_mut(&id) {
            if set.keeps_clients && !keeps_clients {
                self.idle.push(id);
            }
            (set.since, set.keeps_clients) = (since, keeps_clients);
        }
        Ok(())
    }

    /// A service entry names the set from now on.
    pub(super) fn hold(&mut self, id: u32) {
        if let Some(set) = self.by_id.get_mut(&id) {
            set.users += 1;
        }
    }

    /// A service entry doesn't name the set any more.
    pub(super) fn release(&mut self, id: u32) {
        if let Some(set) = self.by_id.get_mut(&id) {
            set.users -= 1;
            if set.users == 0 {
                self.idle.push(id);
            }
        }
    }

    /// Puts the sets without users aside, and forgets the members of those that keep no clients any more.
    pub(super) fn retire_idle(&mut self, now: Duration) -> Result<(), TableError> {
        while let Some(id) = self.idle.last().copied() {
            if self.by_id.get(&id).is_some_and(|set| set.users == 0) {
                self.retire(id, now);
            } else if let Some(set) = self.by_id.get_mut(&id)
                && !set.keeps_clients
                && !set.since.is_empty()
            {
                // A whole set of members or none: what is left by a failure goes with the next attempt.
                for backend in &set.backends {
                    self.members.remove(&member_key(id, backend))?;
                }
                set.since.clear();
            }
            self.idle.pop();
        }
        Ok(())
    }

    fn retire(&mut self, id: u32, now: Duration) {
        let Some(set) = self.by_id.remove(&id) else { return };
        if let Some(ids) = self.by_service.get_mut(&set.service) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_service.remove(&set.service);
            }
        }
        self.retired.insert(
            id,
            Retired {
                deadline: now + GRACE,
                keys: set.keys,
                backends: set.backends,
                has_members: !set.since.is_empty(),
            },
        );
    }

    /// Frees the sets put aside long enough ago, and what nobody has taken over.
    pub(super) fn free(&mut self, filter: &mut Filter, now: Duration) -> Result<(), TableError> {
        while let Some(key) = self.strays.iter().next().copied() {
            self.members.remove(&key)?;
            self.strays.remove(&key);
        }
        let due = self.retired.iter().filter(|(_, set)| set.deadline <= now);
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            let set = &self.retired[&id];
            for key in &set.keys {
                self.slots.remove(key)?;
            }
            if set.has_members {
                for backend in &set.backends {
                    self.members.remove(&member_key(id, backend))?;
                }
            }
            for backend in self.retired.remove(&id).into_iter().flat_map(|set| set.backends) {
                filter.release(&backend.address, now);
            }
        }
        Ok(())
    }

    /// Ids count up; after 2^32 sets they start again, leaving out 0 and what is in use.
    fn next_id(&mut self) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && !self.by_id.contains_key(&self.last) && !self.retired.contains_key(&self.last) {
                return self.last;
            }
        }
    }
}

const fn member_key<A: Address>(set: u32, backend: &Backend<A>) -> MemberKey<A> {
    MemberKey::new(set, backend.address, backend.port)
}
