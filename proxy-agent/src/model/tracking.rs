//! The objects there are, and which Services changed since the last look (behaviour.md 1.7, 1.11, 1.18, 9.1).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    mem,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use super::{Family, Node, ObjectName, OwnedSlice, Problem, Reading, Service, Slice, trigger::TriggerTimes};
use crate::source::{Change, Event};

/// What a source said so far.
///
/// One changed object costs O(its Service), whatever the number of Services. A copy shares what was read of the objects.
#[derive(Clone, Debug)]
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
    slices: Slices,
}

/// The slices of a Service, in order of their names. Nearly all Services have one or two: a tree would take more than these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Slices(Vec<(Box<str>, Arc<Slice>)>);

impl Slices {
    fn place(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| (**known).cmp(name))
    }

    /// Sets a slice, and says whether it is another than before.
    fn set(&mut self, name: &str, slice: Slice) -> bool {
        match self.place(name) {
            Ok(index) if *self.0[index].1 == slice => return false,
            Ok(index) => self.0[index].1 = Arc::new(slice),
            Err(index) => {
                self.0.reserve_exact(1);
                self.0.insert(index, (name.into(), Arc::new(slice)));
            }
        }
        true
    }

    fn remove(&mut self, name: &str) {
        if let Ok(index) = self.place(name) {
            self.0.remove(index);
        }
    }
}

/// What changed since the last look.
#[derive(Clone, Debug)]
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
    slices: &'a Slices,
}

impl<'a> ServiceView<'a> {
    /// Its slices, in order of their names.
    pub fn slices(self) -> impl Iterator<Item = &'a Slice> {
        self.slices.0.iter().map(|(_, slice)| slice.as_ref())
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
    /// one that is gone or of no concern, which is the same (behaviour.md 1.1).
    fn change<T>(
        &mut self,
        change: Change<Reading<T>>,
        kind: &'static str,
        known: impl FnOnce(&Self) -> Vec<ObjectName>,
        apply: fn(&mut Self, &ObjectName, Option<T>),
    ) {
        let delete = |model: &mut Self, name: ObjectName| {
            apply(model, &name, None);
            model.object_problems.remove(&(kind, name));
        };
        let set = |model: &mut Self, object: Reading<T>| {
            apply(model, &object.name, object.content);
            if object.problems.is_empty() {
                model.object_problems.remove(&(kind, object.name));
            } else {
                model.object_problems.insert((kind, object.name), object.problems);
            }
        };
        match change {
            Change::Apply(object) => set(self, *object),
            Change::Delete(name) => delete(self, name),
            Change::Replace(objects) => {
                let listed: HashSet<&ObjectName> = objects.iter().map(|object| &object.name).collect();
                let with_problem = self
                    .object_problems
                    .keys()
                    .filter(|(of, _)| *of == kind)
                    .map(|(_, name)| name.clone());
                let mut gone: HashSet<ObjectName> = with_problem.collect();
                gone.extend(known(self));
                gone.retain(|name| !listed.contains(name));
                for name in gone {
                    delete(self, name);
                }
                for object in objects {
                    set(self, object);
                }
            }
        }
    }

    fn apply_service(&mut self, name: &ObjectName, service: Option<Service>) {
        self.edit(name, |entry| {
            if entry.service.as_deref() != service.as_ref() {
                entry.service = service.map(Arc::new);
            }
        });
    }

    fn apply_slice(&mut self, name: &ObjectName, object: Option<OwnedSlice>) {
        let owner_before = self.owners.get(name).cloned();
        if let (Some(service), None) = (&owner_before, &object) {
            self.trigger_times.gone(&sibling(name, service.clone()));
        }
        let owner_now = object.as_ref().map(|object| &object.service);
        if owner_before.as_ref() != owner_now {
            let owner_now = owner_now.cloned();
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
        let Some(OwnedSlice {
            service,
            triggered,
            slice,
        }) = object
        else {
            return;
        };
        let owner = sibling(name, service);
        let family = slice.family;
        let mut differs = false;
        self.edit(&owner, |entry| {
            differs = entry.slices.set(&name.name, slice);
        });
        if let Some(time) = triggered.filter(|_| differs) {
            self.trigger_times.changed(owner, family, time);
        }
    }

    fn apply_node(&mut self, name: &ObjectName, object: Option<Node>) {
        if name.name != self.node_name {
            return;
        }
        let node = object.unwrap_or_default();
        if node != self.node {
            self.node = node;
            self.pending = Pending::Everything;
        }
    }

    fn apply_service_range(&mut self, name: &ObjectName, ranges: Option<Vec<IpNet>>) {
        if let Some(ranges) = ranges {
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
        if entry.service.is_none() && entry.slices.0.is_empty() {
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
