//! The objects there are, and which Services changed since the last look (behaviour.md 1.7, 1.11, 1.18, 9.1).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::{
    Metadata,
    api::{core::v1 as core, discovery::v1::EndpointSlice, networking::v1::ServiceCIDR},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};

use super::{
    Family, Node, ObjectName, Problem, Service, Slice, object::Complaints, service_range, slice::OwnedSlice,
    trigger::TriggerTimes,
};
use crate::source::{Change, Event};

/// What a source said so far.
///
/// One changed object costs O(its Service), whatever the number of Services.
#[derive(Debug)]
pub struct Model {
    node_name: String,
    node: Node,
    /// By name of the ServiceCIDR
    service_ranges: BTreeMap<ObjectName, Vec<IpNet>>,
    /// By name of the Service; holds slices without a Service as well (behaviour.md 1.11)
    entries: HashMap<ObjectName, Entry>,
    /// By name of the slice: name of its Service, which is in the same namespace
    owners: HashMap<ObjectName, String>,
    services_listed: bool,
    slices_listed: bool,
    pending: Pending,
    object_problems: HashMap<(&'static str, ObjectName), Vec<Problem>>,
    source_problems: BTreeMap<String, Vec<Problem>>,
    /// Origins that may hold objects which were never told
    unread: BTreeSet<String>,
    /// All that there was to list has been told
    complete: bool,
    trigger_times: TriggerTimes,
}

/// A Service and its slices by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    service: Option<Arc<Service>>,
    slices: BTreeMap<String, Arc<Slice>>,
}

/// What changed since the last look.
#[derive(Debug)]
enum Pending {
    Everything,
    /// The entries that were touched, as they were at the last look
    Touched(HashMap<ObjectName, Entry>),
}

/// Services that may have to be planned anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// All of them, and all others are gone
    Everything,
    /// All that are known. There may be others, which could not be read since this process began: they stay as they are
    Known,
    /// Only these; some may be gone
    Services(BTreeSet<ObjectName>),
}

/// A Service with its slices.
#[derive(Clone, Copy, Debug)]
pub struct ServiceView<'a> {
    /// Its name
    pub name: &'a ObjectName,
    /// The Service
    pub service: &'a Service,
    slices: &'a BTreeMap<String, Arc<Slice>>,
}

impl<'a> ServiceView<'a> {
    /// Its slices, in order of their names.
    pub fn slices(self) -> impl Iterator<Item = &'a Slice> {
        self.slices.values().map(Arc::as_ref)
    }
}

impl ServiceView<'_> {
    /// How many addresses on this node are ready, whatever their ports; one that terminates never is (behaviour.md 8.1).
    pub fn ready_here(self) -> usize {
        let endpoints = self.slices().flat_map(|slice| &slice.endpoints);
        let counted = endpoints
            .filter(|endpoint| endpoint.local && endpoint.conditions.ready && !endpoint.conditions.terminating);
        counted.map(|endpoint| endpoint.address).collect::<BTreeSet<_>>().len()
    }
}

impl Model {
    /// Knows nothing but the name of this node.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            node: Node::default(),
            service_ranges: BTreeMap::new(),
            entries: HashMap::new(),
            owners: HashMap::new(),
            services_listed: false,
            slices_listed: false,
            pending: Pending::Everything,
            object_problems: HashMap::new(),
            source_problems: BTreeMap::new(),
            unread: BTreeSet::new(),
            complete: false,
            trigger_times: TriggerTimes::default(),
        }
    }

    /// Takes in what a source says.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(change) => {
                self.services_listed |= matches!(change, Change::Replace(_));
                let known = |model: &Self| {
                    let served = model.entries.iter().filter(|(_, entry)| entry.service.is_some());
                    served.map(|(name, _)| name.clone()).collect()
                };
                self.change(change, "Service", known, Self::apply_service);
            }
            Event::EndpointSlice(change) => {
                self.slices_listed |= matches!(change, Change::Replace(_));
                let known = |model: &Self| model.owners.keys().cloned().collect();
                self.change(change, "EndpointSlice", known, Self::apply_slice);
            }
            Event::Node(change) => {
                let own = ObjectName {
                    namespace: String::new(),
                    name: self.node_name.clone(),
                };
                self.change(change, "Node", |_| vec![own], Self::apply_node);
            }
            Event::ServiceCIDR(change) => {
                let known = |model: &Self| model.service_ranges.keys().cloned().collect();
                self.change(change, "ServiceCIDR", known, Self::apply_service_range);
            }
            Event::Problems {
                origin,
                problems,
                has_unread,
            } => {
                if has_unread {
                    self.unread.insert(origin.clone());
                } else {
                    self.unread.remove(&origin);
                }
                if problems.is_empty() {
                    self.source_problems.remove(&origin);
                } else {
                    self.source_problems.insert(origin, problems);
                }
            }
        }
    }

    /// Whether Services and EndpointSlices have both been listed once (behaviour.md 9.1). The Node isn't waited for
    /// (9.2).
    pub const fn is_synced(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// The Services that differ from what they were at the last call; `None` if none does, or if not all are known yet
    /// (behaviour.md 1.7, 9.1).
    pub fn take_changes(&mut self) -> Option<Changes> {
        if !self.is_synced() {
            return None;
        }
        if !self.complete && self.unread.is_empty() {
            self.complete = true;
            self.pending = Pending::Everything;
        }
        match mem::replace(&mut self.pending, Pending::Touched(HashMap::new())) {
            Pending::Everything if self.complete => Some(Changes::Everything),
            Pending::Everything => Some(Changes::Known),
            Pending::Touched(before) => {
                let nothing = Entry::default();
                let differs = |(name, before): (ObjectName, Entry)| {
                    let now = self.entries.get(&name).unwrap_or(&nothing);
                    let served = before.service.is_some() || now.service.is_some();
                    (served && before != *now).then_some(name)
                };
                let changed: BTreeSet<ObjectName> = before.into_iter().filter_map(differs).collect();
                (!changed.is_empty()).then_some(Changes::Services(changed))
            }
        }
    }

    /// Notes when changes of endpoints were made in the cluster, if that is after this time.
    pub const fn note_trigger_times(&mut self, since: Timestamp) {
        self.trigger_times.since(since);
    }

    /// When the changes of endpoints were made that came since the last call (behaviour.md 9.8).
    pub fn take_trigger_times(&mut self) -> Vec<(Family, Timestamp)> {
        self.trigger_times.take()
    }

    /// A Service that this node serves.
    pub fn service<'a>(&'a self, name: &ObjectName) -> Option<ServiceView<'a>> {
        let (name, entry) = self.entries.get_key_value(name)?;
        view(name, entry)
    }

    /// All Services that this node serves, in no order.
    pub fn services(&self) -> impl Iterator<Item = ServiceView<'_>> {
        self.entries.iter().filter_map(|(name, entry)| view(name, entry))
    }

    /// Name of this node.
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// This node.
    pub const fn node(&self) -> &Node {
        &self.node
    }

    /// What addresses of Services are given out from, as far as ServiceCIDR objects say. No Service depends on it.
    pub fn service_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.service_ranges.values().flatten().copied()
    }

    /// All that is wrong with the input now, sorted.
    pub fn problems(&self) -> Vec<Problem> {
        let all = self.source_problems.values().chain(self.object_problems.values());
        let sorted: BTreeSet<&Problem> = all.flatten().collect();
        sorted.into_iter().cloned().collect()
    }

    /// Applies a change of one kind; `known` lists the objects of the kind, `apply` takes in one of them, or `None` for
    /// one that is gone.
    fn change<T: Metadata<Ty = ObjectMeta>>(
        &mut self,
        change: Change<T>,
        kind: &'static str,
        known: impl FnOnce(&Self) -> Vec<ObjectName>,
        apply: fn(&mut Self, &ObjectName, Option<&T>, &mut Complaints),
    ) {
        let set = |model: &mut Self, name: ObjectName, object: Option<&T>| {
            let mut complaints = Complaints::about(kind, &name);
            apply(model, &name, object, &mut complaints);
            let problems = complaints.into_problems();
            if problems.is_empty() {
                model.object_problems.remove(&(kind, name));
            } else {
                model.object_problems.insert((kind, name), problems);
            }
        };
        match change {
            Change::Apply(object) => set(self, ObjectName::of(object.metadata()), Some(&object)),
            Change::Delete(name) => set(self, name, None),
            Change::Replace(objects) => {
                let listed: HashSet<ObjectName> =
                    objects.iter().map(|object| ObjectName::of(object.metadata())).collect();
                let with_problem = self
                    .object_problems
                    .keys()
                    .filter(|(of, _)| *of == kind)
                    .map(|(_, name)| name.clone());
                let mut gone: HashSet<ObjectName> = with_problem.collect();
                gone.extend(known(self));
                for name in gone.into_iter().filter(|name| !listed.contains(name)) {
                    set(self, name, None);
                }
                for object in objects {
                    set(self, ObjectName::of(object.metadata()), Some(&object));
                }
            }
        }
    }

    fn apply_service(&mut self, name: &ObjectName, object: Option<&core::Service>, complaints: &mut Complaints) {
        let service = object.and_then(|object| Service::parse(object, complaints));
        self.edit(name, |entry| {
            if entry.service.as_deref() != service.as_ref() {
                entry.service = service.map(Arc::new);
            }
        });
    }

    fn apply_slice(&mut self, name: &ObjectName, object: Option<&EndpointSlice>, complaints: &mut Complaints) {
        let parsed = object.and_then(|object| Slice::parse(object, &self.node_name, complaints));
        let owner_before = self.owners.get(name).cloned();
        let owner_now = parsed.as_ref().map(|(service, _)| service.clone());
        if let (Some(service), None) = (&owner_before, object) {
            self.trigger_times.gone(&sibling(name, service.clone()));
        }
        if owner_before != owner_now {
            if let Some(service) = owner_before {
                self.owners.remove(name);
                self.edit(&sibling(name, service), |entry| {
                    entry.slices.remove(&name.name);
                });
            }
            if let Some(service) = owner_now {
                self.owners.insert(name.clone(), service);
            }
        }
        let Some((service, slice)): Option<OwnedSlice> = parsed else {
            return;
        };
        let owner = sibling(name, service);
        let family = slice.family;
        let mut differs = false;
        self.edit(&owner, |entry| {
            differs = entry.slices.get(&name.name).map(Arc::as_ref) != Some(&slice);
            if differs {
                entry.slices.insert(name.name.clone(), Arc::new(slice));
            }
        });
        if let Some(object) = object.filter(|_| differs) {
            self.trigger_times.changed(owner, family, object);
        }
    }

    fn apply_node(&mut self, name: &ObjectName, object: Option<&core::Node>, complaints: &mut Complaints) {
        if name.name != self.node_name {
            return;
        }
        let node = object.map(|object| Node::parse(object, complaints)).unwrap_or_default();
        if node != self.node {
            self.node = node;
            self.pending = Pending::Everything;
        }
    }

    fn apply_service_range(&mut self, name: &ObjectName, object: Option<&ServiceCIDR>, complaints: &mut Complaints) {
        if let Some(object) = object {
            let ranges = service_range::parse(object, complaints);
            self.service_ranges.insert(name.clone(), ranges);
        } else {
            self.service_ranges.remove(name);
        }
    }

    /// Edits an entry, remembering how it was at the last look.
    fn edit(&mut self, name: &ObjectName, edit: impl FnOnce(&mut Entry)) {
        let entry = self.entries.entry(name.clone()).or_default();
        if let Pending::Touched(before) = &mut self.pending
            && !before.contains_key(name)
        {
            before.insert(name.clone(), entry.clone());
        }
        edit(entry);
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(name);
        }
    }
}

fn view<'a>(name: &'a ObjectName, entry: &'a Entry) -> Option<ServiceView<'a>> {
    let service = entry.service.as_deref()?;
    let slices = &entry.slices;
    Some(ServiceView { name, service, slices })
}

/// The object of this name in the same namespace.
fn sibling(object: &ObjectName, name: String) -> ObjectName {
    ObjectName {
        namespace: object.namespace.clone(),
        name,
    }
}
