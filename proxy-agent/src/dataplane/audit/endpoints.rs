//! The endpoint sets of one address family as they stand in `slots_*` and `members_*`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use proxy_common::layout::{Backend, MemberKey};

use super::{NOTHING, Report, Severity, needs::Needs};
use crate::dataplane::{
    address::Address,
    table::{FamilyTables, TableError},
};

/// All sets of a family, and which of them are used for what.
pub(super) struct Endpoints<A> {
    slots: HashMap<u32, BTreeMap<u32, Backend<A>>>,
    members: HashSet<MemberKey<A>>,
    used: HashSet<u32>,
    /// Members that sets have a use for
    kept: HashSet<MemberKey<A>>,
}

impl<A: Address> Endpoints<A> {
    pub(super) fn read(tables: &FamilyTables<A>) -> Result<Self, TableError> {
        let mut slots: HashMap<u32, BTreeMap<u32, Backend<A>>> = HashMap::new();
        tables.slots.scan(&mut |key, backend| {
            slots.entry(key.set).or_default().insert(key.index, backend);
        })?;
        let mut members = HashSet::new();
        tables.members.scan(&mut |key, _| {
            members.insert(key);
        })?;
        Ok(Self {
            slots,
            members,
            used: HashSet::new(),
            kept: HashSet::new(),
        })
    }

    /// A frontend uses a set: the endpoints in it, which need their bits, in order of addresses; and what is wrong with it.
    pub(super) fn use_set(
        &mut self,
        (set, count): (u32, u32),
        keeps_clients: bool,
        needs: &mut Needs,
    ) -> (Vec<SocketAddr>, Option<String>) {
        let mut wrong = None;
        let slots = self.slots.get(&set);
        if count == 0 {
            wrong = (set != 0).then(|| format!("set {set} for no endpoints"));
        } else if !slots.is_some_and(|slots| slots.keys().copied().eq(0..count)) {
            let present = slots.map_or(0, BTreeMap::len);
            wrong = Some(format!("set {set} of {count} with {present} endpoints, or with holes"));
        }
        self.used.insert(set);
        let mut endpoints = Vec::new();
        for backend in slots.into_iter().flat_map(BTreeMap::values) {
            needs.add(&backend.address);
            endpoints.push(endpoint(backend.address, backend.port));
            if keeps_clients {
                self.kept.insert(MemberKey::new(set, backend.address, backend.port));
            }
        }
        endpoints.sort_unstable();
        (endpoints, wrong)
    }

    /// What no frontend uses; and what those need who keep their endpoint.
    pub(super) fn compare(&self, (slots, members): (&'static str, &'static str), report: &mut Report) {
        for (set, found) in self.slots.iter().filter(|(set, _)| !self.used.contains(*set)) {
            let found = format_args!("{} endpoints", found.len()).to_string();
            report.add(
                Severity::Leftover,
                (slots, format_args!("set {set}")),
                "",
                (found, NOTHING),
            );
        }
        for lost in self.kept.difference(&self.members) {
            report.add(Severity::Wrong, (members, entry(lost)), "", (NOTHING, "a member"));
        }
        for stray in self.members.difference(&self.kept) {
            report.add(Severity::Leftover, (members, entry(stray)), "", ("a member", NOTHING));
        }
    }
}

fn entry<A: Address>(member: &MemberKey<A>) -> String {
    format!("set {} {}", member.set, endpoint(member.address, member.port))
}

fn endpoint<A: Address>(address: A, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_ip(), port)
}
