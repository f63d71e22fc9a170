//! The frontends of one address family: `services_*`, and what follows from it in `slots_*`, `members_*` and `sources_*`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

use ipnet::IpNet;
use proxy_common::layout::{AFFINITY_NONE, LOCAL_PODS, ServiceKey, ServiceValue, TableSpec, service_flags, tables};

use super::{NOTHING, Names, Report, Severity, Wanted, endpoints::Endpoints, full_name, needs::Needs, service_of};
use crate::{
    dataplane::{
        address::{self, Address},
        features,
        table::{FamilyTables, TableError},
    },
    plan::{Family, Frontend, Kind, LocalSources, Protocol, ServicePort},
};

/// Names of the tables of a family.
struct TableNames {
    services: &'static str,
    slots: &'static str,
    members: &'static str,
    sources: &'static str,
}

impl TableNames {
    const fn of(family: Family) -> Self {
        let [services, slots, members, sources]: [TableSpec; 4] = match family {
            Family::V4 => [
                tables::SERVICES_V4,
                tables::SLOTS_V4,
                tables::MEMBERS_V4,
                tables::SOURCES_V4,
            ],
            Family::V6 => [
                tables::SERVICES_V6,
                tables::SLOTS_V6,
                tables::MEMBERS_V6,
                tables::SOURCES_V6,
            ],
        };
        Self {
            services: services.name,
            slots: slots.name,
            members: members.name,
            sources: sources.name,
        }
    }
}

/// Compares what a family serves. Notes the ids that its frontends use, and the filter bits of frontends and backends that
/// are needed.
pub(super) fn compare_frontends<A: Address>(
    tables: &FamilyTables<A>,
    family: Family,
    wanted: &Wanted<'_>,
    names: &Names,
    used: &mut HashSet<u32>,
    needs: &mut (&mut Needs, &mut Needs),
    report: &mut Report,
) -> Result<(), TableError> {
    let mut audit = Audit {
        table: TableNames::of(family),
        endpoints: Endpoints::read(tables)?,
        ids: HashMap::new(),
        names,
        report,
    };
    let mut services: HashMap<ServiceKey<A>, ServiceValue> = tables.services.entries()?.into_iter().collect();
    let frontends = wanted.frontends.values().flatten().filter(|one| one.family == family);
    let keyed = frontends.filter_map(|frontend| Some((key::<A>(frontend)?, frontend)));
    let keyed: Vec<_> = keyed.collect();
    let cluster = keyed.iter().filter(|(_, frontend)| frontend.kind == Kind::ClusterIP);
    let cluster_addresses: BTreeSet<A> = cluster.map(|(key, _)| key.address).collect();
    for (key, frontend) in &keyed {
        let object = service_of(&frontend.service_port);
        let place = (audit.table.services, entry(key));
        // What is planned needs its bits, whatever is there.
        needs.0.add_some(&key.address);
        let endpoints = frontend.cluster.iter().chain(&frontend.local).flatten();
        for address in endpoints.filter_map(|endpoint| A::from_ip(endpoint.ip())) {
            needs.1.add(&address);
        }
        let Some(value) = services.remove(key) else {
            let wanted = full_name(&frontend.service_port);
            audit.report.add(Severity::Wrong, place, &object, (NOTHING, wanted));
            continue;
        };
        audit.compare(&place.1, frontend, &value, needs.1);
    }
    for address in cluster_addresses {
        let key = ServiceKey::wildcard(address);
        let wanted = ServiceValue {
            flags: service_flags::WILDCARD,
            ..ServiceValue::default()
        };
        let found = services.remove(&key);
        if found != Some(wanted) {
            let found = found.map_or_else(|| NOTHING.to_owned(), |found| format!("{found:?}"));
            let place = (audit.table.services, entry(&key));
            let wanted = "the answer for unknown ports";
            audit.report.add(Severity::Wrong, place, "", (found, wanted));
        }
    }
    for (key, value) in services {
        let name = names.of(value.service);
        let object = name.map_or_else(String::new, service_of);
        let found = name.map_or_else(|| format!("id {}", value.service), full_name);
        let place = (audit.table.services, entry(&key));
        audit.report.add(Severity::Wrong, place, &object, (found, NOTHING));
    }
    let places = (audit.table.slots, audit.table.members);
    audit.endpoints.compare(places, audit.report);
    audit.compare_sources(tables, wanted, keyed.iter().map(|(_, frontend)| *frontend))?;
    used.extend(audit.ids.values());
    Ok(())
}

struct Audit<'a, A> {
    table: TableNames,
    endpoints: Endpoints<A>,
    /// The ids that the frontends of a service port have
    ids: HashMap<&'a ServicePort, u32>,
    names: &'a Names,
    report: &'a mut Report,
}

impl<'a, A: Address> Audit<'a, A> {
    fn compare(&mut self, entry: &str, frontend: &'a Frontend, value: &ServiceValue, needs: &mut Needs) {
        let object = service_of(&frontend.service_port);
        let services = self.table.services;
        let wanted_name = full_name(&frontend.service_port);
        let found_name = self
            .names
            .of(value.service)
            .map_or_else(|| NOTHING.to_owned(), full_name);
        if found_name != wanted_name {
            let place = (tables::SERVICE_NAMES.name, format_args!("id {}", value.service));
            let texts = (found_name, wanted_name);
            self.report.add(Severity::Wrong, place, &object, texts);
        }
        let id = *self.ids.entry(&frontend.service_port).or_insert(value.service);
        let aspect = |aspect: &str| (services, format!("{entry} {aspect}"));
        if id != value.service {
            let texts = (value.service, id);
            self.report.add(Severity::Wrong, aspect("id"), &object, texts);
        }
        let flags = features::encode(frontend);
        if value.flags != flags {
            let text = |flags: u32| format!("{:?} ({flags:#x})", features::decode(flags));
            let texts = (text(value.flags), text(flags));
            self.report.add(Severity::Wrong, aspect("flags"), &object, texts);
        }
        let affinity = frontend.affinity.map_or(AFFINITY_NONE, std::num::NonZeroU32::get);
        if value.affinity_timeout != affinity {
            let texts = (value.affinity_timeout, affinity);
            self.report
                .add(Severity::Wrong, aspect("affinity timeout"), &object, texts);
        }
        let lists = [
            ("cluster", value.cluster_set, value.cluster_count, &frontend.cluster),
            ("local", value.local_set, value.local_count, &frontend.local),
        ];
        for (list, set, count, wanted) in lists {
            let keeps_clients = frontend.affinity.is_some();
            let (found, wrong) = self.endpoints.use_set((set, count), keeps_clients, needs);
            let mut wanted = wanted.clone().unwrap_or_default();
            wanted.sort_unstable();
            if found != wanted || wrong.is_some() {
                let broken = wrong.map_or_else(String::new, |wrong| format!(" ({wrong})"));
                let texts = (text(&found) + &broken, text(&wanted));
                self.report.add(Severity::Wrong, aspect(list), &object, texts);
            }
        }
    }

    fn compare_sources(
        &mut self,
        tables: &FamilyTables<A>,
        wanted: &Wanted<'_>,
        frontends: impl Iterator<Item = &'a Frontend>,
    ) -> Result<(), TableError> {
        let table = self.table.sources;
        let mut found: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
        // The values say nothing.
        tables.sources.scan(&mut |key, _| {
            let range = address::ip_range(&key).map_or_else(|| format!("{key:?}"), |range| range.to_string());
            found.entry(key.source.service).or_default().insert(range);
        })?;
        let mut planned: BTreeMap<u32, BTreeSet<String>> = BTreeMap::from([(LOCAL_PODS, BTreeSet::new())]);
        let of_family = |range: &&IpNet| address::source::<A>(0, **range).is_some();
        if let LocalSources::Ranges(ranges) = &wanted.node.local_sources {
            let pods = ranges.iter().filter(of_family).map(|range| range.trunc().to_string());
            planned.entry(LOCAL_PODS).or_default().extend(pods);
        }
        for frontend in frontends {
            let Some(id) = self.ids.get(&frontend.service_port) else {
                continue;
            };
            let ranges = frontend
                .sources
                .iter()
                .filter(of_family)
                .map(|range| range.trunc().to_string());
            planned.entry(*id).or_default().extend(ranges);
        }
        let ids: BTreeSet<u32> = found.keys().chain(planned.keys()).copied().collect();
        for id in ids {
            let (found, planned) = (found.remove(&id).unwrap_or_default(), planned.remove(&id));
            let object = match self.names.of(id) {
                _ if id == LOCAL_PODS => "this node".to_owned(),
                Some(port) => service_of(port),
                None => String::new(),
            };
            // Whom nobody asks for is let in nowhere.
            let severity = if planned.is_some() {
                Severity::Wrong
            } else {
                Severity::Leftover
            };
            let planned = planned.unwrap_or_default();
            for range in found.symmetric_difference(&planned) {
                let texts = if planned.contains(range) {
                    (NOTHING, "let in")
                } else {
                    ("let in", NOTHING)
                };
                self.report
                    .add(severity, (table, format_args!("id {id} {range}")), &object, texts);
            }
        }
        Ok(())
    }
}

/// Key of a frontend; `None` if its address is of another family than it says.
fn key<A: Address>(frontend: &Frontend) -> Option<ServiceKey<A>> {
    let address = frontend.address.map_or_else(|| Some(A::default()), A::from_ip)?;
    let protocol = frontend.service_port.protocol.number();
    Some(ServiceKey::new(address, frontend.port, protocol))
}

/// A key in words.
fn entry<A: Address>(key: &ServiceKey<A>) -> String {
    let protocol = Protocol::from_number(key.protocol);
    let protocol = protocol.map_or_else(|| key.protocol.to_string(), |protocol| protocol.to_string());
    if *key == ServiceKey::wildcard(key.address) {
        format!("{} any port", key.address.to_ip())
    } else if key.address == A::default() {
        format!("nodePort {}/{protocol}", key.port)
    } else {
        format!("{}/{protocol}", SocketAddr::new(key.address.to_ip(), key.port))
    }
}

fn text(endpoints: &[SocketAddr]) -> String {
    let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
    format!("[{}]", endpoints.join(", "))
}
