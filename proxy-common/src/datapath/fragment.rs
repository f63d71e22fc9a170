//! Fragments: only the first one of a packet has ports, so the others fare as it did.
//!
//! The first fragment is treated like a whole packet, and what became of it is written down under what all fragments of
//! the packet share. One that comes before the first is held: its bytes go into a table, the fragment is dropped, and the
//! first one sends it to the hook again behind itself (at egress before itself: what is sent there leaves at once).
//!
//! No fragment is left lying by a race: the first writes the entry and then looks for held ones, another is held and then
//! looks for the entry, so at least one of the two sees the other; and who removes a held fragment has it.
//!
//! Whoever gets fragments gives up on a packet after some time (RFC 791, 3.2; RFC 8200, 4.5); so does an entry, for the
//! identification will be used again. Floods only push out what waits longest: all tables are LRU.

use super::{
    Environment, InsertError, InsertMode, PacketCopy, Reason, Scratch, Tables, Verdict, direct::direct, edge, frontend,
};
use crate::{
    layout::{EGRESS, FlowKey, FragmentKey, FragmentValue, HeldKey, INGRESS, fate, flow_flags},
    packet::{Addresses, Family, Fragment, Packet, SCTP, Side, Skip},
};

/// How long an entry counts, in ticks: about 30 s, as the kernel waits for fragments (`net.ipv4.ipfrag_time`).
const LIFETIME: u32 = 28;
/// How many fragments of one packet are held: one for each KiB of the longest. Packets in smaller parts than that, which
/// only links with an MTU below 1280 make, may have more, which are dropped.
const PLACES: u32 = 64;

/// A fragment comes to a hook: what [`Skip::Fragment`] stands for.
///
/// `Err` says what becomes of it, and that's all. `Ok` is a first fragment, which is to be given to [`depart`] in the end:
/// `true` if it is to be treated like a whole packet before, whose key and transport header `scratch` then has; `false` if
/// it has none, and why it goes on, or not, stands in `scratch`.
#[inline(never)]
pub(super) fn arrive<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
    direction: u8,
) -> Result<bool, Reason> {
    let fragment = identify::<F, P>(packet, scratch, direction).ok_or(Reason::Malformed)?;
    let FragmentKey {
        source, destination, ..
    } = scratch.fragment_key;
    // At ingress nothing else is rewritten.
    let ours = direction == EGRESS || tables.may_be_frontend(&destination);
    if fragment.place != 0 {
        return Err(if ours {
            follow::<F, P, T, E>(packet, tables, environment, scratch, fragment.place)
        } else {
            Reason::Fragment
        });
    }
    match F::first_transport(packet, &fragment) {
        // Its checksum is over the whole packet, and a part of that is not enough to correct it by.
        Ok(transport) if transport.protocol == SCTP => scratch.reason = Reason::Fragment,
        Ok(transport) => {
            scratch.key = transport.key(direction, Addresses { source, destination });
            scratch.transport = transport;
            if !ours {
                return Err(direct(tables, &scratch.key, scratch.transport.tcp_flags));
            }
            return Ok(true);
        }
        Err(Skip::OtherProtocol) if direction == INGRESS && ours => {
            scratch.key = FlowKey::new(INGRESS, frontend::NO_PORTS, (source, 0), (destination, 0));
            scratch.reason = edge::without_ports(tables, &scratch.key);
        }
        Err(skip) if !ours => return Err(skip.into()),
        // One that is too short for its ports is no traffic of a Service (RFC 1858, 2.1).
        Err(skip) => scratch.reason = skip.into(),
    }
    Ok(false)
}

/// A first fragment goes on, with its reason and its flow in `scratch`. Those that came before it follow.
#[inline(never)]
pub(super) fn depart<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Reason {
    let (reason, direction) = (scratch.reason, scratch.fragment_key.direction);
    match record::<F, T, E>(tables, environment, scratch) {
        Some(queue) if !release::<F, P, T, E>(packet, tables, environment, queue, direction) => Reason::RewriteFailed,
        _ => reason,
    }
}

/// Reads what fragment a packet is, and puts the key of its packet into `scratch`.
#[inline(always)]
fn identify<F: Family, P: Packet>(packet: &P, scratch: &mut Scratch<F::Address>, direction: u8) -> Option<Fragment> {
    let addresses = F::addresses(packet)?;
    let fragment = F::fragment(packet)?;
    // In IPv6 the next header may differ between fragments, and doesn't count (RFC 8200, 4.5).
    let protocol = if F::IPV6 { 0 } else { fragment.protocol };
    scratch.fragment_key = FragmentKey::new(
        direction,
        protocol,
        addresses.source,
        addresses.destination,
        fragment.identification,
    );
    Some(fragment)
}

/// Writes down what became of the first fragment. Gives the queue of fragments that came before it.
#[inline(never)]
fn record<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Option<u32> {
    let now = environment.now();
    let flow = &scratch.value;
    let mut known = FragmentValue {
        since: now,
        fate: match scratch.reason.verdict() {
            Verdict::Continue if scratch.reason == Reason::Previous => fate::PREVIOUS,
            Verdict::Continue | Verdict::Hold => fate::PASSED,
            Verdict::Rewrite if flow.flags & flow_flags::MASQUERADE != 0 => fate::MASQUERADED,
            Verdict::Rewrite => fate::REWRITTEN,
            Verdict::Reject | Verdict::Drop => fate::REFUSED,
        },
        ..FragmentValue::default()
    };
    if matches!(known.fate, fate::REWRITTEN | fate::MASQUERADED) {
        known.address = flow.address;
        known.service = flow.service;
        known.address_difference = flow.address_difference;
    }
    scratch.fragment = known;
    let (key, value) = (&scratch.fragment_key, &mut scratch.fragment);
    if tables.insert_fragment(key, value, InsertMode::New) != Err(InsertError::Exists) {
        return None;
    }
    let waiting = tables.fragment(key, value) && value.fate == fate::WAITING && is_live(value.since, now);
    let queue = value.queue;
    *value = known;
    // Without memory for it the others are held, and lost in the end.
    let written = tables.insert_fragment(key, value, InsertMode::Any).is_ok();
    (written && waiting && value.fate != fate::REFUSED).then_some(queue)
}

/// Sends the fragments of a queue to the hook again. `false` if the packet lost its content by that.
#[inline(never)]
fn release<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    queue: u32,
    direction: u8,
) -> bool {
    tables.with_copy(PacketCopy::Restore, |copy| {
        if packet.copy_to(copy).is_none() {
            return true;
        }
        for place in 0..PLACES {
            environment.send_held::<F, P, T>(packet, tables, HeldKey { queue, place }, direction);
        }
        packet.restore(copy).is_some()
    })
}

/// Sends a fragment to the hook again, if one is held at this place.
#[inline(always)]
pub fn send_held<F: Family, P: Packet, T: Tables<F::Address>>(packet: &mut P, tables: &T, key: HeldKey, direction: u8) {
    tables.with_held(&key, |held| {
        let length = held.length;
        if packet.resend(held, direction, || tables.remove_held(&key)).is_some() {
            tables.count(Reason::FragmentReleased, length);
        }
    });
}

/// A fragment that is not the first; `place` is where it stands, in units of 8 bytes.
#[inline(never)]
fn follow<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
    place: u16,
) -> Reason {
    if !look_up::<F, T, E>(tables, environment, scratch) && !open_queue::<F, T, E>(tables, environment, scratch) {
        return Reason::FragmentNotHeld;
    }
    if scratch.fragment.fate == fate::WAITING {
        let mut held = HeldKey {
            queue: scratch.fragment.queue,
            place: u32::from(place) >> 7,
        };
        if !hold::<F, P, T>(packet, tables, &mut held) {
            return Reason::FragmentNotHeld;
        }
        let first_came = look_up::<F, T, E>(tables, environment, scratch) && scratch.fragment.fate != fate::WAITING;
        if !first_came || !tables.remove_held(&held) {
            return Reason::FragmentHeld;
        }
    }
    let value = &scratch.fragment;
    match value.fate {
        fate::REWRITTEN => tables.count_service(value.service, 0, packet.length()),
        fate::MASQUERADED => {}
        fate::REFUSED => return Reason::FragmentRefused,
        fate::PREVIOUS => return Reason::Previous,
        _ => return Reason::Fragment,
    }
    let side = if scratch.fragment_key.direction == INGRESS {
        Side::Destination
    } else {
        Side::Source
    };
    if F::IPV6 {
        packet.note_difference(value.address_difference);
    }
    F::set_address(packet, side, &value.address, value.address_difference)
        .map_or(Reason::RewriteFailed, |()| Reason::FragmentRewritten)
}

/// Puts what becomes of the packet into `scratch`; `false` if that is unknown. Forgets what is too old.
#[inline(never)]
fn look_up<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> bool {
    let Scratch {
        fragment_key, fragment, ..
    } = scratch;
    if !tables.fragment(fragment_key, fragment) {
        return false;
    }
    let live = is_live(fragment.since, environment.now());
    if !live {
        tables.remove_fragment(fragment_key);
    }
    live
}

/// Opens a queue for the fragments of a packet, unless its first fragment, or another that waits, has come meanwhile: then
/// `scratch` tells of that. `false` without memory for it.
#[inline(never)]
fn open_queue<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> bool {
    scratch.fragment = FragmentValue {
        since: environment.now(),
        queue: environment.random(),
        fate: fate::WAITING,
        ..FragmentValue::default()
    };
    match tables.insert_fragment(&scratch.fragment_key, &scratch.fragment, InsertMode::New) {
        Ok(()) => true,
        Err(InsertError::Exists) => look_up::<F, T, E>(tables, environment, scratch),
        Err(InsertError::Full) => false,
    }
}

/// Holds the fragment at the place that `key` says, or at the next that is free, which `key` says then.
#[inline(never)]
fn hold<F: Family, P: Packet, T: Tables<F::Address>>(packet: &P, tables: &T, key: &mut HeldKey) -> bool {
    tables.with_copy(PacketCopy::Hold, |copy| {
        if packet.copy_to(copy).is_none() {
            return false;
        }
        for _ in 0..PLACES {
            // Cheaper than an insert that fails.
            let mut taken = false;
            tables.with_held(key, |_| taken = true);
            if !taken {
                match tables.hold(key, copy) {
                    Ok(()) => return true,
                    Err(InsertError::Full) => return false,
                    Err(InsertError::Exists) => {}
                }
            }
            key.place = (key.place + 1) % PLACES;
        }
        false
    })
}

/// Whether an entry of tick `since` still counts at tick `now`.
#[inline(always)]
const fn is_live(since: u32, now: u32) -> bool {
    now.saturating_sub(since) <= LIFETIME
}
