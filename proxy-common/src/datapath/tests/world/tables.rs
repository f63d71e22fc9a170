//! What the datapath asks of a [`World`].

use std::rc::Rc;

use super::{Flows, Moment, TIMEOUTS, TestFamily, World};
use crate::{
    datapath::{
        Environment, FlowHandle, InsertError, InsertMode, PacketCopy, Reason, Scratch, Tables, socket::SocketTables,
    },
    layout::{
        AddressBytes, AffinityKey, AffinityValue, Backend, EndpointKey, Event, FlowKey, FlowValue, FragmentKey,
        FragmentValue, HeldFragment, HeldKey, Member, MemberKey, Opening, ServiceKey, ServiceValue, SlotKey, SocketKey,
        SocketValue, TICK_SHIFT, Timeouts, Watcher,
    },
};

/// A flow of [`World`]: reads are as live as in the kernel.
pub(in crate::datapath::tests) struct Handle<A> {
    flows: Flows<A>,
    key: FlowKey<A>,
}

impl<A: AddressBytes> FlowHandle<A> for Handle<A> {
    fn value(&self) -> FlowValue<A> {
        self.flows.borrow()[&self.key]
    }

    fn touch(&self, last_seen: u32, history: u8) {
        if let Some(value) = self.flows.borrow_mut().get_mut(&self.key) {
            (value.last_seen, value.history) = (last_seen, history);
        }
    }

    fn set_flags(&self, flags: u8) {
        if let Some(value) = self.flows.borrow_mut().get_mut(&self.key) {
            value.flags = flags;
        }
    }
}

impl<F: TestFamily> Tables<F::Address> for World<F> {
    type Flow = Handle<F::Address>;

    fn may_be_frontend(&self, address: &F::Address) -> bool {
        self.frontends.contains(address)
    }

    fn may_be_backend(&self, address: &F::Address) -> bool {
        self.backends.contains(address)
    }

    fn is_service_address(&self, address: &F::Address) -> bool {
        self.service_addresses.contains(address)
    }

    fn address_flags(&self, address: &F::Address) -> u32 {
        self.addresses.get(address).copied().unwrap_or(0)
    }

    fn is_source(&self, service: u32, address: &F::Address) -> bool {
        self.sources.contains(&(service, *address))
    }

    fn service(&self, key: &ServiceKey<F::Address>, value: &mut ServiceValue) -> bool {
        let Some(found) = self.services.get(key) else {
            return false;
        };
        *value = *found;
        if let Some(left) = self.torn.get().checked_sub(1) {
            self.torn.set(left);
            value.cluster_count = u32::MAX;
        }
        true
    }

    fn affinity(&self, key: &AffinityKey<F::Address>) -> Option<AffinityValue<F::Address>> {
        self.affinities.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey<F::Address>, value: &AffinityValue<F::Address>) {
        self.affinities.borrow_mut().insert(*key, *value);
    }

    fn member(&self, key: &MemberKey<F::Address>) -> Option<Member> {
        self.members.get(key).copied()
    }

    fn slot(&self, key: &SlotKey) -> Option<Backend<F::Address>> {
        self.slots.get(key).copied()
    }

    fn is_previous(&self, key: &FlowKey<F::Address>) -> bool {
        self.previous.borrow().contains(key)
    }

    fn flow(&self, key: &FlowKey<F::Address>) -> Option<Self::Flow> {
        self.flows.borrow().contains_key(key).then(|| Handle {
            flows: Rc::clone(&self.flows),
            key: *key,
        })
    }

    fn insert_flow(
        &self,
        key: &FlowKey<F::Address>,
        value: &FlowValue<F::Address>,
        mode: InsertMode,
    ) -> Result<(), InsertError> {
        let mut flows = self.flows.borrow_mut();
        match (flows.contains_key(key), mode) {
            (true, InsertMode::New) => return Err(InsertError::Exists),
            (false, _) if flows.len() >= self.capacity.get() => return Err(InsertError::Full),
            _ => flows.insert(*key, *value),
        };
        Ok(())
    }

    fn remove_flow(&self, key: &FlowKey<F::Address>) {
        self.flows.borrow_mut().remove(key);
    }

    fn push_opening(&self, opening: &Opening<F::Address>) {
        self.openings.borrow_mut().push_back(*opening);
    }

    fn pop_opening(&self, opening: &mut Opening<F::Address>) -> bool {
        let oldest = self.openings.borrow_mut().pop_front();
        self.looks.set(self.looks.get() + 1);
        oldest.inspect(|oldest| *opening = *oldest).is_some()
    }

    fn note_eviction(&self) {
        self.looks.set(0);
    }

    fn is_in_vain(&self) -> bool {
        self.looks.get() >= self.opening_slots.get()
    }

    fn fragment(&self, key: &FragmentKey<F::Address>, value: &mut FragmentValue<F::Address>) -> bool {
        let fragments = self.fragments.borrow();
        let found = fragments.get(key);
        found.inspect(|found| *value = **found).is_some()
    }

    fn insert_fragment(
        &self,
        key: &FragmentKey<F::Address>,
        value: &FragmentValue<F::Address>,
        mode: InsertMode,
    ) -> Result<(), InsertError> {
        let mut fragments = self.fragments.borrow_mut();
        if mode == InsertMode::New && fragments.contains_key(key) {
            return Err(InsertError::Exists);
        }
        fragments.insert(*key, *value);
        Ok(())
    }

    fn remove_fragment(&self, key: &FragmentKey<F::Address>) {
        self.fragments.borrow_mut().remove(key);
    }

    fn with_held(&self, key: &HeldKey, with: impl FnOnce(&HeldFragment)) {
        let held = self.held.borrow().get(key).copied();
        if let Some(held) = held {
            with(&held);
        }
    }

    fn hold(&self, key: &HeldKey, fragment: &HeldFragment) -> Result<(), InsertError> {
        let held = self.held.borrow();
        if held.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if held.len() >= self.held_capacity.get() {
            return Err(InsertError::Full);
        }
        drop(held);
        self.happen(Moment::Before);
        self.held.borrow_mut().insert(*key, *fragment);
        self.happen(Moment::After);
        Ok(())
    }

    fn remove_held(&self, key: &HeldKey) -> bool {
        self.held.borrow_mut().remove(key).is_some()
    }

    fn with_copy(&self, _copy: PacketCopy, with: impl FnOnce(&mut HeldFragment) -> bool) -> bool {
        with(&mut HeldFragment::default())
    }

    fn with_scratch<R>(&self, with: impl FnOnce(&mut Scratch<F::Address>) -> R) -> Option<R> {
        // Another CPU, which has its own, may do something meanwhile.
        let mut scratch = self.scratch.get();
        let result = with(&mut scratch);
        self.scratch.set(scratch);
        Some(result)
    }

    fn masquerade_address(&self, _device: u32) -> Option<F::Address> {
        self.masquerade.map(F::address)
    }

    fn device_flags(&self, device: u32) -> u32 {
        let flags = self.flags_of.borrow().get(&device).copied();
        flags.unwrap_or_else(|| self.device_flags.get())
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

    fn watcher(&self, place: u32) -> Option<Watcher> {
        self.watchers.borrow().get(&place).copied()
    }

    fn send_event(&self, place: u32, event: &Event) -> bool {
        let mut events = self.events.borrow_mut();
        let room = events.len() < self.event_room.get();
        if room {
            events.push((place, *event));
        }
        room
    }

    fn count_lost(&self, place: u32) {
        *self.events_lost.borrow_mut().entry(place).or_default() += 1;
    }

    fn count_service(&self, service: u32, connections: u32, bytes: u32) {
        let mut counts = self.counts.borrow_mut();
        let counter = counts.entry(service).or_default();
        counter.connections += u64::from(connections);
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }

    fn count_refusal(&self, service: u32, reason: Reason, bytes: u32) {
        let mut refusals = self.refusals.borrow_mut();
        let counter = refusals.entry((service, reason)).or_default();
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

impl<F: TestFamily> SocketTables<F::Address> for World<F> {
    fn socket(&self, key: &SocketKey<F::Address>, value: &mut SocketValue<F::Address>) -> bool {
        let remembered = self.remembered.borrow();
        let found = remembered.get(key);
        found.inspect(|found| *value = **found).is_some()
    }

    fn set_socket(&self, key: &SocketKey<F::Address>, value: &SocketValue<F::Address>) {
        self.remembered.borrow_mut().insert(*key, *value);
    }

    fn remove_socket(&self, key: &SocketKey<F::Address>) {
        self.remembered.borrow_mut().remove(key);
    }

    fn count_refused(&self, reason: Reason) {
        self.reasons.borrow_mut().entry(reason).or_default().packets += 1;
    }

    fn count_connection(&self, service: u32) {
        self.counts.borrow_mut().entry(service).or_default().connections += 1;
    }
}

impl<F: TestFamily> Environment for World<F> {
    fn now(&self) -> u32 {
        self.now.get()
    }

    fn nanoseconds(&self) -> u64 {
        (u64::from(self.now.get()) << TICK_SHIFT) + self.nanoseconds.get()
    }

    fn random(&self) -> u32 {
        self.random.borrow_mut().pop_front().unwrap_or(0)
    }

    fn device(&self) -> u32 {
        1
    }

    fn timeouts(&self) -> &Timeouts {
        &TIMEOUTS
    }

    fn has_socket<A: AddressBytes>(&self, key: &FlowKey<A>) -> bool {
        let same = |socket: &FlowKey<F::Address>| {
            (socket.protocol, socket.source_port, socket.destination_port)
                == (key.protocol, key.source_port, key.destination_port)
                && socket.source.as_bytes() == key.source.as_bytes()
                && socket.destination.as_bytes() == key.destination.as_bytes()
        };
        self.sockets.iter().any(same)
    }
}
