//! The datapath run in user space on one packet: what the kernel programs would do, by the very same code.
//!
//! It reads the tables through the narrow door, pinned or in memory, and never writes there: what the packet changes
//! stays in the simulation.

mod lookup;
mod tables;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use proxy_common::{
    datapath::{
        self, Environment, FlowHandle, Outcome, Reason, Scratch, flow,
        socket::{self, Socket, SocketTables},
    },
    layout::{
        AddressBytes, AffinityKey, AffinityValue, Counter, EndpointKey, Event, FlowKey, FlowValue, FragmentKey,
        FragmentValue, HeldFragment, HeldKey, Opening, OpeningEnds, RefusalKey, ServiceCounter, SocketKey, SocketValue,
        Timeouts, filter_bit,
    },
    packet::{BufferPacket, Family},
};

pub use lookup::Lookup;

use super::table::{BoxedTable, FamilyTables, TableError, Tables};

/// Flows by key; `None` is one that was removed.
type Changes<A> = Rc<RefCell<HashMap<FlowKey<A>, Option<FlowValue<A>>>>>;

/// Endpoints that clients used last, as packets changed them.
type Affinities<A> = HashMap<AffinityKey<A>, AffinityValue<A>>;

/// What sockets are connected to or send to, as they changed it; `None` is what was removed.
type SocketChanges<A> = HashMap<SocketKey<A>, Option<SocketValue<A>>>;

/// What becomes of fragments, as packets changed it; `None` is what was removed.
type FragmentChanges<A> = HashMap<FragmentKey<A>, Option<FragmentValue<A>>>;

/// Fragments that wait, as packets changed them; `None` is one that was removed.
type HeldChanges = HashMap<HeldKey, Option<Box<HeldFragment>>>;

/// What becomes of fragments.
pub type Fragments<A> = BTreeMap<FragmentKey<A>, FragmentValue<A>>;

/// Fragments that wait: their bytes.
pub type HeldFragments = BTreeMap<HeldKey, Vec<u8>>;

/// Flows by key.
pub type Flows<A> = BTreeMap<FlowKey<A>, FlowValue<A>>;

/// A run of the datapath for one address family.
pub struct Simulation<'a, F: Family> {
    family: &'a FamilyTables<F::Address>,
    tables: &'a Tables,
    changes: Changes<F::Address>,
    /// Flows that packets opened, the oldest first
    opened: RefCell<Vec<Opening<F::Address>>>,
    /// Where packets have left the ring of openings
    looked: Cell<OpeningEnds>,
    affinities: RefCell<Affinities<F::Address>>,
    sockets: RefCell<SocketChanges<F::Address>>,
    fragments: RefCell<FragmentChanges<F::Address>>,
    held: RefCell<HeldChanges>,
    resent: RefCell<Vec<Vec<u8>>>,
    scratch: RefCell<Scratch<F::Address>>,
    reasons: RefCell<BTreeMap<Reason, Counter>>,
    services: RefCell<BTreeMap<u32, ServiceCounter>>,
    refusals: RefCell<BTreeMap<RefusalKey, Counter>>,
    endpoints: RefCell<BTreeMap<EndpointKey, ServiceCounter>>,
    events: RefCell<Vec<Event>>,
    answers_full: Cell<u64>,
    answer: RefCell<Option<Vec<u8>>>,
    lookups: RefCell<Vec<Lookup<F::Address>>>,
    error: RefCell<Option<TableError>>,
}

/// Clock, chance and place of a simulation.
pub struct Surroundings<'a> {
    /// Now, in ticks
    pub now: u32,
    /// Interface index of the edge
    pub device: u32,
    /// Flow timeouts
    pub timeouts: Timeouts,
    /// Random numbers
    pub random: &'a dyn Fn() -> u32,
}

impl Environment for Surroundings<'_> {
    fn now(&self) -> u32 {
        self.now
    }

    fn random(&self) -> u32 {
        (self.random)()
    }

    fn device(&self) -> u32 {
        self.device
    }

    fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// A simulation has no sockets.
    fn has_socket<A: AddressBytes>(&self, _key: &FlowKey<A>) -> bool {
        false
    }
}

/// The hook that a packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// It enters the node's stack
    Ingress,
    /// It leaves the node's stack
    Egress,
}

impl<'a, F: Family> Simulation<'a, F> {
    /// A simulation on these tables; `family` must be those of `F` in `tables`.
    pub fn new(tables: &'a Tables, family: &'a FamilyTables<F::Address>) -> Self {
        Self {
            family,
            tables,
            changes: Rc::default(),
            opened: RefCell::default(),
            looked: Cell::default(),
            affinities: RefCell::default(),
            sockets: RefCell::default(),
            fragments: RefCell::default(),
            held: RefCell::default(),
            resent: RefCell::default(),
            scratch: RefCell::default(),
            reasons: RefCell::default(),
            services: RefCell::default(),
            refusals: RefCell::default(),
            endpoints: RefCell::default(),
            events: RefCell::default(),
            answers_full: Cell::default(),
            answer: RefCell::default(),
            lookups: RefCell::default(),
            error: RefCell::default(),
        }
    }

    /// Does as if the flow of this key, and its other half, were not in the table.
    pub fn forget_flow(&self, key: &FlowKey<F::Address>) {
        if let Some(value) = self.flow_value(key) {
            let mut changes = self.changes.borrow_mut();
            changes.insert(flow::twin_key(key, &value), None);
            changes.insert(*key, None);
        }
    }

    /// Runs a packet, from its network header on, through a hook.
    ///
    /// # Errors
    /// If a table could not be read.
    pub fn run(&self, hook: Hook, packet: &mut [u8], surroundings: &Surroundings<'_>) -> Result<Outcome, TableError> {
        let mut resent = |bytes: &[u8]| self.resent.borrow_mut().push(bytes.to_vec());
        let mut packet = BufferPacket::with_resent(packet, &mut resent);
        let outcome = match hook {
            Hook::Ingress => datapath::ingress::<F, _, _, _>(&mut packet, self, surroundings),
            Hook::Egress => datapath::egress::<F, _, _, _>(&mut packet, self, surroundings),
        };
        self.answer.replace(packet.answer().map(<[u8]>::to_vec));
        self.error.take().map_or(Ok(outcome), Err)
    }

    /// Connects a socket.
    ///
    /// # Errors
    /// If a table could not be read.
    pub fn connect<S: Socket<F::Address>>(
        &self,
        socket: &mut S,
        surroundings: &Surroundings<'_>,
    ) -> Result<Outcome, TableError> {
        let reason = socket::connect(socket, self, surroundings);
        self.error.take().map_or_else(|| Ok(reason.into()), Err)
    }

    /// What the last packet was answered with if it was rejected, from the network header on.
    pub fn answer(&self) -> Option<Vec<u8>> {
        self.answer.borrow().clone()
    }

    /// What the datapath has asked of the tables since the last call, in order.
    pub fn take_lookups(&self) -> Vec<Lookup<F::Address>> {
        self.lookups.take()
    }

    /// Held fragments that the last packets sent to their hook again, from the network header on. They are to be run next.
    pub fn take_resent(&self) -> Vec<Vec<u8>> {
        self.resent.take()
    }

    /// What becomes of fragments now: what the tables say, and what packets changed.
    ///
    /// # Errors
    /// If the table could not be read.
    pub fn fragments(&self) -> Result<Fragments<F::Address>, TableError>
    where
        F::Address: Ord,
    {
        let mut fragments: BTreeMap<_, _> = self.family.fragments.entries()?.into_iter().collect();
        merge(&mut fragments, self.fragments.borrow().iter(), |value| *value);
        Ok(fragments)
    }

    /// Every fragment that waits now.
    ///
    /// # Errors
    /// If the table could not be read.
    pub fn held_fragments(&self) -> Result<HeldFragments, TableError> {
        let mut held = held_fragments(self.tables)?;
        merge(&mut held, self.held.borrow().iter(), |fragment| bytes(fragment));
        Ok(held)
    }

    /// Every flow there is now: those of the tables, and what packets changed.
    ///
    /// # Errors
    /// If the table could not be read.
    pub fn flows(&self) -> Result<Flows<F::Address>, TableError>
    where
        F::Address: Ord,
    {
        let mut flows: BTreeMap<_, _> = self.family.flows.entries()?.into_iter().collect();
        merge(&mut flows, self.changes.borrow().iter(), |value| *value);
        Ok(flows)
    }

    /// What was counted by reason.
    pub fn reasons(&self) -> BTreeMap<Reason, Counter> {
        self.reasons.borrow().clone()
    }

    /// What was counted by service id.
    pub fn services(&self) -> BTreeMap<u32, ServiceCounter> {
        self.services.borrow().clone()
    }

    /// Refused packets so far, by service id and reason.
    pub fn refusals(&self) -> BTreeMap<RefusalKey, Counter> {
        self.refusals.borrow().clone()
    }

    /// Traffic so far, by endpoint.
    pub fn endpoints(&self) -> BTreeMap<EndpointKey, ServiceCounter> {
        self.endpoints.borrow().clone()
    }

    fn note(&self, lookup: Lookup<F::Address>) {
        self.lookups.borrow_mut().push(lookup);
    }

    /// What somebody who watches would have been told.
    pub fn events(&self) -> Vec<Event> {
        self.events.borrow().clone()
    }

    /// The value of a key; an error is kept for the end of the run.
    fn get<K, V>(&self, table: &BoxedTable<K, V>, key: &K) -> Option<V> {
        table.get(key).unwrap_or_else(|error| {
            self.error.borrow_mut().get_or_insert(error);
            None
        })
    }

    /// A held fragment.
    fn held(&self, key: HeldKey) -> Option<Box<HeldFragment>> {
        let changed = self.held.borrow().get(&key).cloned();
        changed.unwrap_or_else(|| self.get(&self.tables.held_fragments, &key).map(Box::new))
    }

    /// Half a flow as it is now.
    fn flow_value(&self, key: &FlowKey<F::Address>) -> Option<FlowValue<F::Address>> {
        let changed = self.changes.borrow().get(key).copied();
        changed.unwrap_or_else(|| self.get(&self.family.flows, key))
    }

    /// Where the ring of openings begins and ends now.
    fn opening_ends(&self) -> OpeningEnds {
        let (ends, looked) = (
            self.get(&self.family.opening_ends, &0).unwrap_or_default(),
            self.looked.get(),
        );
        OpeningEnds {
            head: ends.head + self.opened.borrow().len() as u64,
            tail: ends.tail.max(looked.tail),
            begun: ends.begun.max(looked.begun),
        }
    }

    /// Whether the flow table has no room for another entry.
    fn is_full(&self) -> bool {
        let changes = self.changes.borrow();
        let mut entries = 0;
        let counted = self.family.flows.scan(&mut |key, _| {
            entries += usize::from(!changes.contains_key(&key));
        });
        if let Err(error) = counted {
            self.error.borrow_mut().get_or_insert(error);
        }
        entries += changes.values().flatten().count();
        entries >= self.family.flows.max_entries() as usize
    }

    fn may_be_in(&self, filter: &BoxedTable<u32, u64>, address: &F::Address) -> bool {
        let (word, bit) = filter_bit(address);
        self.get(filter, &word).is_some_and(|bits| bits & bit != 0)
    }
}

/// The fragments that wait in a table.
///
/// # Errors
/// If it could not be read.
pub fn held_fragments(tables: &Tables) -> Result<HeldFragments, TableError> {
    let mut held = HeldFragments::new();
    tables.held_fragments.scan(&mut |key, fragment| {
        held.insert(key, bytes(&fragment));
    })?;
    Ok(held)
}

/// The bytes of a fragment.
fn bytes(fragment: &HeldFragment) -> Vec<u8> {
    let length = fragment.bytes.len().min(fragment.length as usize);
    fragment.bytes[..length].to_vec()
}

/// Writes changes over what was read of a table.
fn merge<'a, K: Copy + Ord + 'a, C: 'a, V>(
    entries: &mut BTreeMap<K, V>,
    changes: impl Iterator<Item = (&'a K, &'a Option<C>)>,
    value: impl Fn(&C) -> V,
) {
    for (key, change) in changes {
        match change {
            Some(changed) => entries.insert(*key, value(changed)),
            None => entries.remove(key),
        };
    }
}

/// A flow of a simulation.
pub struct SimulatedFlow<A> {
    changes: Changes<A>,
    key: FlowKey<A>,
    value: FlowValue<A>,
}

impl<A: AddressBytes> SimulatedFlow<A> {
    fn change(&self, change: impl FnOnce(&mut FlowValue<A>)) {
        let mut changes = self.changes.borrow_mut();
        // As in the kernel, a write to an entry that was removed meanwhile is lost.
        if let Some(value) = changes.entry(self.key).or_insert(Some(self.value)) {
            change(value);
        }
    }
}

impl<A: AddressBytes> FlowHandle<A> for SimulatedFlow<A> {
    fn value(&self) -> FlowValue<A> {
        self.value
    }

    fn touch(&self, last_seen: u32, history: u8) {
        self.change(|value| (value.last_seen, value.history) = (last_seen, history));
    }

    fn set_flags(&self, flags: u8) {
        self.change(|value| value.flags = flags);
    }
}

impl<F: Family> SocketTables<F::Address> for Simulation<'_, F> {
    fn socket(&self, key: &SocketKey<F::Address>, value: &mut SocketValue<F::Address>) -> bool {
        let changed = self.sockets.borrow().get(key).copied();
        let found = changed.unwrap_or_else(|| self.get(&self.family.sockets, key));
        found.inspect(|found| *value = *found).is_some()
    }

    fn set_socket(&self, key: &SocketKey<F::Address>, value: &SocketValue<F::Address>) {
        self.sockets.borrow_mut().insert(*key, Some(*value));
    }

    fn remove_socket(&self, key: &SocketKey<F::Address>) {
        self.sockets.borrow_mut().insert(*key, None);
    }

    fn count_refused(&self, reason: Reason) {
        self.reasons.borrow_mut().entry(reason).or_default().packets += 1;
    }

    fn count_connection(&self, service: u32) {
        self.services.borrow_mut().entry(service).or_default().connections += 1;
    }
}
