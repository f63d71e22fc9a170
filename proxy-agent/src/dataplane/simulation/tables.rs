//! The tables as a simulation shows them to the datapath: what is in them, with what its packets changed.

use proxy_common::{
    datapath::{self, InsertError, InsertMode, PacketCopy, Reason, Scratch},
    layout::{
        ANYBODY, AffinityKey, AffinityValue, Backend, EndpointKey, Event, FlowKey, FlowValue, FragmentKey,
        FragmentValue, HeldFragment, HeldKey, Member, MemberKey, Opening, OpeningEnds, Range, RefusalKey, ServiceKey,
        ServiceValue, SlotKey, SourceKey, Watcher, usable_slots,
    },
    packet::Family,
};

use super::{Lookup, SimulatedFlow, Simulation};

impl<F: Family> datapath::Tables<F::Address> for Simulation<'_, F> {
    type Flow = SimulatedFlow<F::Address>;

    fn may_be_frontend(&self, address: &F::Address) -> bool {
        let may_be = self.may_be_in(&self.tables.frontend_filter, address);
        self.note(Lookup::FrontendFilter(*address, may_be));
        may_be
    }

    fn may_be_backend(&self, address: &F::Address) -> bool {
        let may_be = self.may_be_in(&self.tables.backend_filter, address);
        self.note(Lookup::BackendFilter(*address, may_be));
        may_be
    }

    fn is_service_address(&self, address: &F::Address) -> bool {
        let ranges = self.get(&self.tables.service_ranges, &0);
        let is_in = ranges.is_some_and(|ranges| Range::any_contains(F::service_ranges(&ranges), address));
        self.note(Lookup::ServiceRange(*address, is_in));
        is_in
    }

    fn address_flags(&self, address: &F::Address) -> u32 {
        let flags = self.get(&self.family.addresses, address).unwrap_or(0);
        self.note(Lookup::OwnAddress(*address, flags));
        flags
    }

    fn is_source(&self, service: u32, address: &F::Address) -> bool {
        let range = self.get(&self.family.sources, &SourceKey::exactly(service, *address));
        self.note(Lookup::Source(service, *address, range.is_some()));
        range.is_some()
    }

    fn service(&self, key: &ServiceKey<F::Address>, value: &mut ServiceValue) -> bool {
        let found = self.get(&self.family.services, key);
        self.note(Lookup::Frontend(*key, found));
        found.inspect(|found| *value = *found).is_some()
    }

    fn affinity(&self, key: &AffinityKey<F::Address>) -> Option<AffinityValue<F::Address>> {
        let changed = self.affinities.borrow().get(key).copied();
        let found = changed.or_else(|| self.get(&self.family.affinity, key));
        self.note(Lookup::Remembered(key.client, found));
        found
    }

    fn set_affinity(&self, key: &AffinityKey<F::Address>, value: &AffinityValue<F::Address>) {
        self.affinities.borrow_mut().insert(*key, *value);
    }

    fn member(&self, key: &MemberKey<F::Address>) -> Option<Member> {
        self.get(&self.family.members, key)
    }

    fn slot(&self, key: &SlotKey) -> Option<Backend<F::Address>> {
        let found = self.get(&self.family.slots, key);
        self.note(Lookup::Endpoint(key.index, found));
        found
    }

    fn flow(&self, key: &FlowKey<F::Address>) -> Option<Self::Flow> {
        let value = self.flow_value(key);
        self.note(Lookup::Flow(*key, value.is_some()));
        value.map(|value| SimulatedFlow {
            changes: std::rc::Rc::clone(&self.changes),
            key: *key,
            value,
        })
    }

    fn insert_flow(
        &self,
        key: &FlowKey<F::Address>,
        value: &FlowValue<F::Address>,
        mode: InsertMode,
    ) -> Result<(), InsertError> {
        let inserted = match (self.flow_value(key).is_some(), mode) {
            (true, InsertMode::New) => Err(InsertError::Exists),
            (false, _) if self.is_full() => Err(InsertError::Full),
            _ => Ok(()),
        };
        if inserted.is_ok() {
            self.changes.borrow_mut().insert(*key, Some(*value));
        }
        self.note(Lookup::Opened(*key, inserted));
        inserted
    }

    fn remove_flow(&self, key: &FlowKey<F::Address>) {
        self.changes.borrow_mut().insert(*key, None);
    }

    fn push_opening(&self, opening: &Opening<F::Address>) {
        self.opened.borrow_mut().push(*opening);
    }

    fn pop_opening(&self, opening: &mut Opening<F::Address>) -> bool {
        let opened = self.opened.borrow();
        let slots = u64::from(usable_slots(self.family.openings.max_entries()));
        let mut ends = self.opening_ends();
        let number = ends.take(slots);
        self.looked.set(ends);
        let Some(number) = number else {
            return false;
        };
        let first = ends.head - opened.len() as u64;
        let found = match number.checked_sub(first) {
            Some(index) => usize::try_from(index).ok().and_then(|index| opened.get(index).copied()),
            None => u32::try_from(number % slots)
                .ok()
                .and_then(|slot| self.get(&self.family.openings, &slot)),
        };
        found.inspect(|found| *opening = *found).is_some()
    }

    fn note_eviction(&self) {
        let ends = self.opening_ends();
        self.looked.set(OpeningEnds {
            begun: ends.tail,
            ..ends
        });
    }

    fn is_in_vain(&self) -> bool {
        let slots = usable_slots(self.family.openings.max_entries());
        self.opening_ends().is_in_vain(slots.into())
    }

    fn fragment(&self, key: &FragmentKey<F::Address>, value: &mut FragmentValue<F::Address>) -> bool {
        let changed = self.fragments.borrow().get(key).copied();
        let found = changed.unwrap_or_else(|| self.get(&self.family.fragments, key));
        found.inspect(|found| *value = *found).is_some()
    }

    fn insert_fragment(
        &self,
        key: &FragmentKey<F::Address>,
        value: &FragmentValue<F::Address>,
        mode: InsertMode,
    ) -> Result<(), InsertError> {
        if mode == InsertMode::New && self.fragment(key, &mut FragmentValue::default()) {
            return Err(InsertError::Exists);
        }
        self.fragments.borrow_mut().insert(*key, Some(*value));
        Ok(())
    }

    fn remove_fragment(&self, key: &FragmentKey<F::Address>) {
        self.fragments.borrow_mut().insert(*key, None);
    }

    fn with_held(&self, key: &HeldKey, with: impl FnOnce(&HeldFragment)) {
        if let Some(held) = self.held(*key) {
            with(&held);
        }
    }

    fn hold(&self, key: &HeldKey, fragment: &HeldFragment) -> Result<(), InsertError> {
        if self.held(*key).is_some() {
            return Err(InsertError::Exists);
        }
        self.held.borrow_mut().insert(*key, Some(Box::new(*fragment)));
        Ok(())
    }

    fn remove_held(&self, key: &HeldKey) -> bool {
        let present = self.held(*key).is_some();
        self.held.borrow_mut().insert(*key, None);
        present
    }

    fn with_copy(&self, _copy: PacketCopy, with: impl FnOnce(&mut HeldFragment) -> bool) -> bool {
        with(&mut HeldFragment::default())
    }

    fn with_scratch<R>(&self, with: impl FnOnce(&mut Scratch<F::Address>) -> R) -> Option<R> {
        Some(with(&mut self.scratch.borrow_mut()))
    }

    fn masquerade_address(&self, device: u32) -> Option<F::Address> {
        F::masquerade_address(&self.get(&self.tables.devices, &device)?)
    }

    fn device_flags(&self, device: u32) -> u32 {
        self.get(&self.tables.devices, &device).map_or(0, |device| device.flags)
    }

    fn answers_full(&self) -> u64 {
        self.answers_full.get()
    }

    fn set_answers_full(&self, nanoseconds: u64) {
        self.answers_full.set(nanoseconds);
    }

    fn count(&self, reason: Reason, bytes: u32) {
        let mut reasons = self.reasons.borrow_mut();
        let counter = reasons.entry(reason).or_default();
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }

    /// A simulation is watched by whoever runs it, from one place.
    fn watcher(&self, place: u32) -> Option<Watcher> {
        (place <= ANYBODY + 1).then_some(Watcher {
            reasons: u64::MAX,
            until: u32::MAX,
            ..Watcher::default()
        })
    }

    fn send_event(&self, _place: u32, event: &Event) -> bool {
        self.events.borrow_mut().push(*event);
        true
    }

    fn count_lost(&self, _place: u32) {}

    fn count_service(&self, service: u32, connections: u32, bytes: u32) {
        let mut services = self.services.borrow_mut();
        let counter = services.entry(service).or_default();
        counter.connections += u64::from(connections);
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }

    fn count_refusal(&self, service: u32, reason: Reason, bytes: u32) {
        let reason = reason as u32;
        let mut refusals = self.refusals.borrow_mut();
        let counter = refusals.entry(RefusalKey { service, reason }).or_default();
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }

    fn counts_endpoints(&self) -> bool {
        true
    }

    fn count_endpoint(&self, key: &EndpointKey, connections: u32, packets: u32, bytes: u32) {
        let mut endpoints = self.endpoints.borrow_mut();
        let counter = endpoints.entry(*key).or_default();
        counter.connections += u64::from(connections);
        counter.packets += u64::from(packets);
        counter.bytes += u64::from(bytes);
    }
}
