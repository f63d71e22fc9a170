//! What the datapath needs of the world: tables, clock, chance.

use super::{
    Claim, Eviction, Look, Reason, Rival, Victim, choose, claim, evict_one, icmp_error, judge_host_packet,
    look_at_oldest, make_room, refuse, send_held, tell,
};
use crate::layout::{
    AddressBytes, AffinityKey, AffinityValue, Backend, EndpointKey, Event, FlowKey, FlowValue, FragmentKey,
    FragmentValue, HeldFragment, HeldKey, INGRESS, Member, MemberKey, Opening, ServiceKey, ServiceValue, SlotKey,
    TICK_SHIFT, Timeouts, Watcher,
};
use crate::packet::{Family, Packet, Transport};

/// Whether an insert may replace an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertMode {
    /// Only if there is none: the insert is a reservation
    New,
    /// In any case
    Any,
}

/// Why an entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is one, and [`InsertMode::New`] was asked for
    Exists,
    /// The table is full, or the kernel has no memory for the entry
    Full,
}

/// What a packet is copied for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PacketCopy {
    /// To be held
    Hold = 0,
    /// To be restored when held ones have been sent on. That can't share memory with the other: those may meet their hook, and
    /// be held there, before this ends
    Restore = 1,
}

/// An entry of the flow table, shared with other CPUs: reads may be a moment old, writes race harmlessly.
pub trait FlowHandle<A> {
    /// The entry as it is now.
    fn value(&self) -> FlowValue<A>;
    /// Sets [`FlowValue::last_seen`] and [`FlowValue::history`].
    fn touch(&self, last_seen: u32, history: u8);
    /// Sets [`FlowValue::flags`].
    fn set_flags(&self, flags: u8);
}

/// What the slow path works on: there is too little stack for it in the kernel. The verifier, too, is helped by memory
/// whose content it doesn't follow: it goes through the slow path once instead of once for each kind of packet.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Scratch<A> {
    /// The packet's key at the hook
    pub key: FlowKey<A>,
    /// The value of its half
    pub value: FlowValue<A>,
    /// The other half's key
    pub twin_key: FlowKey<A>,
    /// The other half's value
    pub twin: FlowValue<A>,
    /// The packet's transport header
    pub transport: Transport,
    /// Who has the place of the other half
    pub rival: Rival<A>,
    /// 1 for a fragment, whose headers are not read yet, else 0
    pub is_fragment: u32,
    /// 0 for a packet that is certainly of no flow, else 1
    pub is_known: u32,
    /// Of a first fragment: why it goes on, or not
    pub reason: Reason,
    /// Of a fragment: its packet's key
    pub fragment_key: FragmentKey<A>,
    /// Of a fragment: what becomes of its packet
    pub fragment: FragmentValue<A>,
}

impl<A: AddressBytes> Scratch<A> {
    /// Memory that nobody has used.
    pub fn new() -> Self {
        let key = FlowKey::new(INGRESS, 0, (A::default(), 0), (A::default(), 0));
        Self {
            key,
            value: FlowValue::default(),
            twin_key: key,
            twin: FlowValue::default(),
            transport: Transport::default(),
            rival: Rival::default(),
            is_fragment: 0,
            is_known: 0,
            reason: Reason::Unrelated,
            fragment_key: FragmentKey::new(INGRESS, 0, A::default(), A::default(), 0),
            fragment: FragmentValue::default(),
        }
    }

    /// Begins with a packet: its key and transport header, none of a fragment, which may have none; whether it may be of a flow.
    #[inline(always)]
    pub(super) fn set_packet(&mut self, whole: Option<(FlowKey<A>, Transport)>, known: bool) {
        self.is_fragment = whole.is_none().into();
        self.is_known = known.into();
        if let Some((key, transport)) = whole {
            (self.key, self.transport) = (key, transport);
        }
    }
}

impl<A: AddressBytes> Default for Scratch<A> {
    fn default() -> Self {
        Self::new()
    }
}

/// The tables of one address family.
pub trait Tables<A: AddressBytes> {
    /// An entry of the flow table
    type Flow: FlowHandle<A>;

    /// `false` if the address is certainly no frontend's and none of the node's own.
    fn may_be_frontend(&self, address: &A) -> bool;
    /// `false` if the address is certainly no backend's.
    fn may_be_backend(&self, address: &A) -> bool;
    /// Whether the address is in a range of cluster addresses (behaviour.md 4.7).
    fn is_service_address(&self, address: &A) -> bool;
    /// Bits of [`crate::layout::address_flags`]; 0 for an address that isn't the node's.
    fn address_flags(&self, address: &A) -> u32;
    /// Whether a range of this service id (or [`crate::layout::LOCAL_PODS`]) holds the address.
    fn is_source(&self, service: u32, address: &A) -> bool;
    /// Looks a frontend up; `false` if there is none.
    fn service(&self, key: &ServiceKey<A>, value: &mut ServiceValue) -> bool;
    /// Looks an endpoint up.
    fn slot(&self, key: &SlotKey) -> Option<Backend<A>>;
    /// Looks up which endpoint a client used last.
    fn affinity(&self, key: &AffinityKey<A>) -> Option<AffinityValue<A>>;
    /// Sets which endpoint a client used last; without memory for it nothing is remembered.
    fn set_affinity(&self, key: &AffinityKey<A>, value: &AffinityValue<A>);
    /// Looks up an endpoint that affinity may lead to.
    fn member(&self, key: &MemberKey<A>) -> Option<Member>;
    /// Looks half a flow up.
    fn flow(&self, key: &FlowKey<A>) -> Option<Self::Flow>;
    /// Whether the previous generation of programs has half a flow with this key, which is left to it. Without one there is
    /// none.
    #[inline(always)]
    fn is_previous(&self, _key: &FlowKey<A>) -> bool {
        false
    }
    /// Inserts half a flow.
    fn insert_flow(&self, key: &FlowKey<A>, value: &FlowValue<A>, mode: InsertMode) -> Result<(), InsertError>;
    /// Removes half a flow, if it is there.
    fn remove_flow(&self, key: &FlowKey<A>);
    /// Notes that a flow was opened.
    fn push_opening(&self, opening: &Opening<A>);
    /// Takes the oldest opening that nobody has looked at yet, if it is still known; whether there was one.
    fn pop_opening(&self, opening: &mut Opening<A>) -> bool;
    /// Notes that one of those taken was of a flow that is given up.
    fn note_eviction(&self);
    /// Whether as many as the ring has were taken since then.
    fn is_in_vain(&self) -> bool;
    /// [`super::look_at_oldest`]. The kernel has this, [`Self::evict_one`] and [`Self::make_room`] behind calls of functions of their own, so that the
    /// verifier goes through them once and not with every insert.
    #[inline(always)]
    fn look_at_oldest(&self, now: u32) -> Look
    where
        Self: Sized,
    {
        look_at_oldest(self, &mut Victim::default(), now)
    }
    /// [`super::make_room`].
    #[inline(always)]
    fn make_room(&self, now: u32) -> bool
    where
        Self: Sized,
    {
        make_room(self, now)
    }
    /// [`super::evict_one`].
    #[inline(always)]
    fn evict_one(&self, now: u32) -> Look
    where
        Self: Sized,
    {
        evict_one(self, now)
    }
    /// Lends memory, with whatever was left in it. Must not be nested.
    fn with_scratch<R>(&self, with: impl FnOnce(&mut Scratch<A>) -> R) -> Option<R>;
    /// Looks up what becomes of a packet's fragments.
    fn fragment(&self, key: &FragmentKey<A>, value: &mut FragmentValue<A>) -> bool;
    /// Sets what becomes of a packet's fragments.
    fn insert_fragment(
        &self,
        key: &FragmentKey<A>,
        value: &FragmentValue<A>,
        mode: InsertMode,
    ) -> Result<(), InsertError>;
    /// Forgets a packet's fragments.
    fn remove_fragment(&self, key: &FragmentKey<A>);
    /// Shows a held fragment, if it is there. Another CPU may remove it, or write another over it, meanwhile.
    fn with_held(&self, key: &HeldKey, with: impl FnOnce(&HeldFragment));
    /// Holds a fragment, if its place is free.
    fn hold(&self, key: &HeldKey, fragment: &HeldFragment) -> Result<(), InsertError>;
    /// Removes a held fragment; whether this call did.
    fn remove_held(&self, key: &HeldKey) -> bool;
    /// Lends memory for a copy of a packet, for one of two uses at a time.
    fn with_copy(&self, copy: PacketCopy, with: impl FnOnce(&mut HeldFragment) -> bool) -> bool;
    /// The masquerade address of a device, by interface index.
    fn masquerade_address(&self, device: u32) -> Option<A>;
    /// Bits of [`crate::layout::device_flags`] of a device, by interface index.
    fn device_flags(&self, device: u32) -> u32;
    /// This CPU's state of the limit of answers to refused packets: when, in [`Environment::nanoseconds`], it is as before
    /// the first.
    fn answers_full(&self) -> u64;
    /// Sets [`Tables::answers_full`].
    fn set_answers_full(&self, nanoseconds: u64);
    /// Counts a packet by reason; bytes from the network header on.
    fn count(&self, reason: Reason, bytes: u32);
    /// Counts a rewritten packet, and with it new flows, by service id; bytes from the network header on.
    fn count_service(&self, service: u32, connections: u32, bytes: u32);
    /// Counts a packet that a service port has refused, by its id; bytes from the network header on.
    fn count_refusal(&self, service: u32, reason: Reason, bytes: u32);
    /// Whether traffic is counted by endpoint, too.
    fn counts_endpoints(&self) -> bool;
    /// Counts traffic of an endpoint, if there is room for it; bytes from the network header on.
    fn count_endpoint(&self, key: &EndpointKey, connections: u32, packets: u32, bytes: u32);
    /// Who watches from a place, or until when anybody does ([`crate::layout::ANYBODY`]).
    fn watcher(&self, place: u32) -> Option<Watcher>;
    /// Puts an event into the ring at a place, if there is one; `false` if that has no room.
    fn send_event(&self, place: u32, event: &Event) -> bool;
    /// Counts an event for which the ring at a place had no room.
    fn count_lost(&self, place: u32);
}

/// Clock, chance and place.
pub trait Environment {
    /// Now, in ticks ([`crate::layout::TICK_SHIFT`]).
    fn now(&self) -> u32;
    /// Now, in nanoseconds, for what a tick is too coarse for.
    fn nanoseconds(&self) -> u64 {
        u64::from(self.now()) << TICK_SHIFT
    }
    /// The same by an exact clock, which takes longer to read.
    fn exact_nanoseconds(&self) -> u64 {
        self.nanoseconds()
    }
    /// [`super::icmp_error`](fn@super::icmp_error). The kernel's has it behind a call of a function of its own, so that the
    /// verifier goes through it once and not with every state in which it is called.
    #[inline(always)]
    fn icmp_error<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        packet: &mut P,
        tables: &T,
        direction: u8,
    ) -> Option<Reason> {
        icmp_error::<F, P, T>(packet, tables, direction)
    }
    /// [`super::refuse`](fn@super::refuse), likewise.
    #[inline(always)]
    fn refuse<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        packet: &mut P,
        tables: &T,
        direction: u8,
        reason: Reason,
    ) -> Reason
    where
        Self: Sized,
    {
        refuse::<F, P, T, Self>(packet, tables, self, direction, reason)
    }
    /// [`super::tell`](fn@super::tell), likewise.
    #[inline(always)]
    fn tell<A: AddressBytes, T: Tables<A>>(&self, tables: &T, event: &Event) {
        tell(tables, self.now(), event);
    }
    /// [`super::choose`](fn@super::choose), likewise.
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    fn choose<A: AddressBytes, T: Tables<A>>(&self, tables: &T, scratch: &mut Scratch<A>) -> Result<(), Reason>
    where
        Self: Sized,
    {
        choose(tables, self, scratch)
    }
    /// [`super::claim`](fn@super::claim), likewise.
    #[inline(always)]
    fn claim<A: AddressBytes, T: Tables<A>>(&self, tables: &T, scratch: &mut Scratch<A>, eviction: Eviction) -> Claim
    where
        Self: Sized,
    {
        claim(tables, self, scratch, eviction)
    }
    /// [`super::send_held`](fn@super::send_held), likewise.
    #[inline(always)]
    fn send_held<F: Family, P: Packet, T: Tables<F::Address>>(
        &self,
        packet: &mut P,
        tables: &T,
        key: HeldKey,
        direction: u8,
    ) {
        send_held::<F, P, T>(packet, tables, key, direction);
    }
    /// [`super::judge_host_packet`], likewise.
    #[inline(always)]
    fn judge_host_packet<F: Family, P: Packet, T: Tables<F::Address>>(&self, packet: &P, tables: &T) -> Reason
    where
        Self: Sized,
    {
        judge_host_packet::<F, P, T, Self>(packet, tables, self)
    }
    /// A random number, uniform over all of `u32`.
    fn random(&self) -> u32;
    /// Interface index of the edge.
    fn device(&self) -> u32;
    /// Flow timeouts.
    fn timeouts(&self) -> &Timeouts;
    /// Whether a socket of the node itself gets packets with the addresses and ports of `key`, listening ones aside.
    fn has_socket<A: AddressBytes>(&self, key: &FlowKey<A>) -> bool;
}
