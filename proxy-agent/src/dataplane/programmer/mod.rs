//! Writes what the plan says into the tables, so that a packet sees the old or the new endpoint list of a frontend,
//! never a mixture and never a hole.
//!
//! The order of writes: filter bits, the slots of a new endpoint set, the service port's name, the service entry (one
//! update flips the frontend to the new set), the removal of entries that are gone. Old sets are freed when no lookup
//! under way can read them any more; ids and filter bits when no flow uses them.
//!
//! Pure but for the [`Table`](super::table::Table)s it writes to: time is a parameter, as the time since boot.

mod devices;
mod family;
pub(crate) mod filter;
mod names;
pub(super) mod node;
mod reconcile;
mod sets;
mod sources;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;
use proxy_common::layout::{Device, ServiceRanges};

use super::{
    collect::FlowUsage,
    stale::Serving,
    table::{BoxedTable, TableError, Tables},
};
use crate::{
    model::{ObjectName, Problem},
    plan::{Family as AddressFamily, Frontend, NodePlan, Protocol, ServicePort},
};
use {
    devices::Devices,
    family::Family,
    filter::Filter,
    names::{Counts, Names},
};

/// How long a lookup under way may still read an endpoint set that no frontend names any more. A program runs for
/// microseconds; a virtual machine may pause it for longer.
pub const GRACE: Duration = Duration::from_secs(2);

/// A Service that could not be written as the plan says, and why; tried again each time.
struct Waiting {
    frontends: Vec<Frontend>,
    problems: Vec<Problem>,
}

/// Keeps the tables as the plan says.
pub struct Programmer {
    names: Names,
    v4: Family<[u8; 4]>,
    v6: Family<[u8; 16]>,
    frontend_filter: Filter,
    backend_filter: Filter,
    devices: Devices,
    waiting: BTreeMap<ObjectName, Waiting>,
    device_problems: Vec<Problem>,
    /// The devices that were asked for last
    wanted_devices: BTreeMap<u32, Device>,
    service_ranges: BoxedTable<u32, ServiceRanges>,
    /// What was asked for last
    node: Option<NodePlan>,
    node_problems: Vec<Problem>,
    /// The endpoints that serve, as last programmed, by id of UDP service ports
    serving: Serving,
    /// Those of them that changed
    changed_serving: Serving,
    /// The only ranges that are to be let in, by id of service ports of which others may still be
    sources_to_keep: BTreeMap<u32, Vec<IpNet>>,
    /// Ids of service ports that are to go when the last of their frontends has
    unwanted: BTreeSet<u32>,
    /// What went wrong with no Service in particular
    table_problems: Vec<Problem>,
    /// Nothing but a lack of room went wrong with no Service in particular
    is_writable: bool,
    /// A whole plan has been seen: from now on what nobody wants may be freed
    complete: bool,
}

/// The Service of a service port.
fn object_of(port: &ServicePort) -> ObjectName {
    ObjectName {
        namespace: port.namespace.clone(),
        name: port.service.clone(),
    }
}

impl Programmer {
    /// Reads what the tables hold, so that only differences are written later. Writes nothing.
    ///
    /// # Errors
    /// If a table can't be read.
    pub fn load(tables: Tables, now: Duration) -> Result<Self, TableError> {
        let counts = Counts {
            services: tables.service_counts,
            refusals: tables.refusals,
            endpoints: tables.endpoint_counts,
        };
        let names = Names::load(tables.service_names, counts, now)?;
        let mut frontend_filter = Filter::load(tables.frontend_filter, now)?;
        let mut backend_filter = Filter::load(tables.backend_filter, now)?;
        Ok(Self {
            v4: Family::load(tables.v4, &names, &mut frontend_filter, &mut backend_filter)?,
            v6: Family::load(tables.v6, &names, &mut frontend_filter, &mut backend_filter)?,
            devices: Devices::load(tables.devices, &mut frontend_filter)?,
            names,
            frontend_filter,
            backend_filter,
            waiting: BTreeMap::new(),
            device_problems: Vec::new(),
            wanted_devices: BTreeMap::new(),
            service_ranges: tables.service_ranges,
            node: None,
            node_problems: Vec::new(),
            serving: Serving::new(),
            changed_serving: Serving::new(),
            sources_to_keep: BTreeMap::new(),
            unwanted: BTreeSet::new(),
            table_problems: Vec::new(),
            is_writable: true,
            complete: false,
        })
    }

    /// Makes the tables hold exactly this plan.
    pub fn replace(&mut self, plan: BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        let mut work: BTreeMap<_, _> = self.names.objects().map(|object| (object, Vec::new())).collect();
        work.extend(plan);
        self.waiting.clear();
        self.complete = true;
        self.program(&work, now);
    }

    /// Makes the tables hold exactly these frontends of the Services named; none for one that is gone. All others stay
    /// as they are.
    pub fn apply(&mut self, changes: BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        let waiting = std::mem::take(&mut self.waiting);
        let mut work: BTreeMap<_, _> = waiting
            .into_iter()
            .map(|(object, waiting)| (object, waiting.frontends))
            .collect();
        work.extend(changes);
        self.program(&work, now);
    }

    /// Frees what is due and tries again what failed.
    pub fn tick(&mut self, now: Duration) {
        if self.complete {
            let freed = self
                .v4
                .free(&mut self.backend_filter, now)
                .and_then(|()| self.v6.free(&mut self.backend_filter, now));
            if let Err(error) = freed {
                tracing::warn!(%error, "an old endpoint set could not be freed yet");
            }
        }
        if !self.waiting.is_empty() || !self.table_problems.is_empty() {
            self.apply(BTreeMap::new(), now);
        }
        if let Some(node) = self.node.take_if(|_| !self.node_problems.is_empty()) {
            self.set_node(node, now);
        }
        if !self.device_problems.is_empty() {
            let devices = std::mem::take(&mut self.wanted_devices);
            self.set_devices(&devices, now);
        }
    }

    /// Makes the tables hold what the node is.
    pub fn set_node(&mut self, node: NodePlan, now: Duration) {
        let filter = &mut self.frontend_filter;
        let written = [
            ("addresses", self.v4.addresses.set(&node, filter, now)),
            ("addresses", self.v6.addresses.set(&node, filter, now)),
            (
                "ranges of pods",
                node::set_local_pods(&mut self.v4.sources, &node.local_sources),
            ),
            (
                "ranges of pods",
                node::set_local_pods(&mut self.v6.sources, &node.local_sources),
            ),
        ];
        let failed = written
            .into_iter()
            .filter_map(|(what, written)| Some((what, written.err()?)));
        self.node_problems = failed
            .map(|(what, error)| problem("this node".to_owned(), what.to_owned(), &error))
            .collect();
        match node::set_service_ranges(&mut self.service_ranges, &node.service_ranges) {
            Ok(left) => self.node_problems.extend(left.iter().map(surplus)),
            Err(error) => self
                .node_problems
                .push(problem("this node".to_owned(), "ServiceCIDRs".to_owned(), &error)),
        }
        self.node = Some(node);
    }

    /// Makes the table of devices hold exactly these, by interface index.
    pub fn set_devices(&mut self, devices: &BTreeMap<u32, Device>, now: Duration) {
        self.wanted_devices.clone_from(devices);
        let failed = self.devices.set(devices, &mut self.frontend_filter, now);
        self.device_problems = failed
            .into_iter()
            .map(|(index, error)| problem(format!("device {index}"), String::new(), &error))
            .collect();
    }

    /// Has the hooks look at packets that leave from an address which is no backend's: a frontend's, where conntrack
    /// translates (see [`super::takeover`]). Its bit stays for as long as a flow needs it.
    ///
    /// # Errors
    /// If the filter can't be written.
    pub(super) fn admit_source(&mut self, address: IpAddr, now: Duration) -> Result<(), TableError> {
        match address {
            IpAddr::V4(address) => self.backend_filter.admit(&address.octets(), now),
            IpAddr::V6(address) => self.backend_filter.admit(&address.octets(), now),
        }
    }

    /// The UDP service ports whose serving endpoints have changed since the last call, now that new flows go elsewhere
    /// (behaviour.md 7.2, 7.8).
    pub fn take_changed_serving(&mut self) -> Serving {
        std::mem::take(&mut self.changed_serving)
    }

    /// Frees ids and filter bits that a scan of the flows found unused.
    pub fn reclaim(&mut self, usage: &FlowUsage) {
        if !self.complete {
            return;
        }
        let reclaimed = self
            .names
            .reclaim(&usage.services, usage.began)
            .and_then(|()| self.frontend_filter.reclaim(&usage.frontend_bits, usage.began))
            .and_then(|()| self.backend_filter.reclaim(&usage.backend_bits, usage.began));
        if let Err(error) = reclaimed {
            tracing::warn!(%error, "ids and filter bits could not be freed yet");
        }
    }

    /// Sets the filters' bits of what the tables hold, and these, which flows in other tables need.
    ///
    /// # Errors
    /// If a table can't be written.
    pub fn admit(
        &mut self,
        frontends: &HashSet<u32>,
        backends: &HashSet<u32>,
        now: Duration,
    ) -> Result<(), TableError> {
        self.frontend_filter.admit_bits(frontends, now)?;
        self.backend_filter.admit_bits(backends, now)
    }

    /// Tells of all UDP service ports again with the next [`Programmer::take_changed_serving`]: there are flows that were not
    /// there before.
    pub fn tell_serving_again(&mut self) {
        self.changed_serving.extend(self.serving.clone());
    }

    /// Whether the kernel took what follows from all Services together when it was written last, as far as there was room.
    pub const fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// Whether all that was asked for of Services is in the tables.
    pub fn is_complete(&self) -> bool {
        self.waiting.is_empty() && self.table_problems.is_empty()
    }

    /// What could not be written and is being tried again.
    pub fn problems(&self) -> Vec<Problem> {
        let of_services = self.waiting.values().flat_map(|waiting| &waiting.problems);
        of_services
            .chain(&self.device_problems)
            .chain(&self.node_problems)
            .chain(&self.table_problems)
            .cloned()
            .collect()
    }

    fn program(&mut self, work: &BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        for (object, frontends) in work {
            for (port, id) in self.names.of_object(object) {
                let of_port = || frontends.iter().filter(|frontend| frontend.service_port == port);
                self.v4
                    .release(id, &keys(of_port(), AddressFamily::V4, Family::<[u8; 4]>::key));
                self.v6
                    .release(id, &keys(of_port(), AddressFamily::V6, Family::<[u8; 16]>::key));
            }
        }
        for (object, frontends) in work {
            let problems: Vec<_> = frontends
                .iter()
                .filter_map(|frontend| self.serve(object, frontend, now).err())
                .collect();
            if !problems.is_empty() {
                let frontends = frontends.clone();
                self.waiting.insert(object.clone(), Waiting { frontends, problems });
            }
        }
        // What one Service gives up and another has no room to take yet stays with the first until then.
        let awaited = || self.waiting.values().flat_map(|waiting| &waiting.frontends);
        let (awaited_v4, awaited_v6) = (
            keys(awaited(), AddressFamily::V4, Family::<[u8; 4]>::key),
            keys(awaited(), AddressFamily::V6, Family::<[u8; 16]>::key),
        );
        let filter = &mut self.frontend_filter;
        let settled = [
            self.v4.remove_released(&awaited_v4, filter, now),
            self.v6.remove_released(&awaited_v6, filter, now),
            self.v4.settle_wildcards(filter, now),
            self.v6.settle_wildcards(filter, now),
            self.v4.retire_idle(now),
            self.v6.retire_idle(now),
            self.keep_sources(work),
        ];
        self.compare_serving(work);
        let failed: Vec<TableError> = settled.into_iter().filter_map(Result::err).collect();
        self.is_writable = failed.iter().all(|error| matches!(error, TableError::Full { .. }));
        self.table_problems = failed
            .into_iter()
            .map(|error| problem("what follows from frontends".to_owned(), String::new(), &error))
            .collect();
        for (object, frontends) in work {
            for (port, id) in self.names.of_object(object) {
                if frontends.iter().any(|frontend| frontend.service_port == port) {
                    self.unwanted.remove(&id);
                } else {
                    self.unwanted.insert(id);
                }
            }
        }
        let (v4, v6) = (&self.v4, &self.v6);
        for id in self
            .unwanted
            .extract_if(.., |id| !v4.has_frontends(*id) && !v6.has_frontends(*id))
        {
            self.names.retire(id, now);
            self.serving.remove(&id);
        }
    }

    /// Lets in no other sources than the frontends say. One that could not be written may still be as it was: then those
    /// that it had stay as well.
    fn keep_sources(&mut self, work: &BTreeMap<ObjectName, Vec<Frontend>>) -> Result<(), TableError> {
        for (object, frontends) in work {
            for (port, id) in self.names.of_object(object) {
                let of_port = frontends.iter().filter(|frontend| frontend.service_port == port);
                let ranges = of_port.flat_map(|frontend| &frontend.sources).copied().collect();
                if self.waiting.contains_key(object) {
                    self.sources_to_keep.remove(&id);
                } else {
                    self.sources_to_keep.insert(id, ranges);
                }
            }
        }
        while let Some((id, ranges)) = self.sources_to_keep.first_key_value() {
            self.v4.sources.keep(*id, ranges)?;
            self.v6.sources.keep(*id, ranges)?;
            self.sources_to_keep.pop_first();
        }
        Ok(())
    }

    /// Notes whose serving endpoints are others now. An agent that has just started knows none from before.
    fn compare_serving(&mut self, work: &BTreeMap<ObjectName, Vec<Frontend>>) {
        for (object, frontends) in work.iter().filter(|(object, _)| !self.waiting.contains_key(object)) {
            for (port, id) in self.names.of_object(object) {
                if port.protocol != Protocol::Udp {
                    continue;
                }
                let of_port = frontends.iter().filter(|frontend| frontend.service_port == port);
                let serving: HashSet<SocketAddr> = of_port.flat_map(|frontend| &frontend.serving).copied().collect();
                if self.serving.get(&id) != Some(&serving) {
                    self.changed_serving.insert(id, serving.clone());
                    self.serving.insert(id, serving);
                }
            }
        }
    }

    fn serve(&mut self, object: &ObjectName, frontend: &Frontend, now: Duration) -> Result<(), Problem> {
        let filters = (&mut self.frontend_filter, &mut self.backend_filter);
        match frontend.family {
            AddressFamily::V4 => serve(&mut self.v4, &mut self.names, filters, frontend, now),
            AddressFamily::V6 => serve(&mut self.v6, &mut self.names, filters, frontend, now),
        }
        .map_err(|error| {
            let port = &frontend.service_port;
            let address = frontend
                .address
                .map_or_else(|| "nodePort".to_owned(), |address| address.to_string());
            let field = format!("{address} port {} {} {}", frontend.port, port.protocol, port.port_name);
            problem(format!("Service {object}"), field.trim_end().to_owned(), &error)
        })
    }
}

/// Why a frontend is not served as planned.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("its address is not of its family")]
    OtherFamily,
    #[error("{0} has the same address, port and protocol already")]
    Taken(String),
    #[error(transparent)]
    Name(#[from] names::PublishError),
    #[error(transparent)]
    Table(#[from] TableError),
}

fn serve<A: super::address::Address>(
    family: &mut Family<A>,
    names: &mut Names,
    (frontend_filter, backend_filter): (&mut Filter, &mut Filter),
    frontend: &Frontend,
    now: Duration,
) -> Result<(), ServeError> {
    let key = Family::<A>::key(frontend).ok_or(ServeError::OtherFamily)?;
    let id = names.id(&frontend.service_port)?;
    if let Some(port) = family
        .owner(&key)
        .filter(|owner| *owner != id)
        .and_then(|owner| names.port(owner))
    {
        return Err(ServeError::Taken(port.to_string()));
    }
    let prepared = family.prepare(id, key, frontend, (frontend_filter, backend_filter), now)?;
    names.publish(id)?;
    Ok(family.install(&prepared, frontend_filter)?)
}

fn keys<'a, K: Eq + std::hash::Hash>(
    frontends: impl Iterator<Item = &'a Frontend>,
    family: AddressFamily,
    key: impl Fn(&Frontend) -> Option<K>,
) -> HashSet<K> {
    frontends
        .filter(|frontend| frontend.family == family)
        .filter_map(key)
        .collect()
}

/// A range that the table has no room for.
fn surplus(range: &IpNet) -> Problem {
    Problem {
        object: format!("ServiceCIDR {range}"),
        field: String::new(),
        reason: "there are more ranges than the datapath looks at: its unused addresses are not refused".to_owned(),
    }
}

fn problem(object: String, field: String, reason: &impl Display) -> Problem {
    Problem {
        object,
        field,
        reason: reason.to_string(),
    }
}
