//! Telling a client that its packet was refused: ICMP port unreachable, which ends a `connect` at once (behaviour.md 4.1).
//! And telling those who watch.

use super::{Environment, NO_PORTS, Reason, Tables, Verdict, tell};
use crate::{
    layout::{AddressBytes, FlowKey},
    packet::{Addresses, Family, MAX_QUOTE, Packet, Skip, View as _, checksum},
};

/// One answer in this many nanoseconds, on each CPU: 1000 a second, as `net.ipv4.icmp_msgs_per_sec`. Whoever sends to
/// nobody must not buy an answer with every packet (RFC 1812, 4.3.2.8; RFC 4443, 2.4 f).
const INTERVAL: u64 = 1_000_000;
/// As many answers may come at once, as `net.ipv4.icmp_msgs_burst`.
const BURST: u64 = 50;

/// What is done about a packet that is refused for `reason`, be it dropped or rejected: the answer to it, and telling those who
/// watch. Gives the reason that it is counted by.
#[inline(never)]
pub fn refuse<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    direction: u8,
    reason: Reason,
) -> Reason {
    if !tell::is_watched(tables, environment) {
        return answer::<F, P, T, E>(packet, tables, environment, reason);
    }
    // Both before the packet becomes its answer.
    let length = packet.length();
    let Some(key) = key::<F, P>(packet, direction) else {
        return answer::<F, P, T, E>(packet, tables, environment, reason);
    };
    let refusal = tell::Refusal {
        reason,
        outcome: answer::<F, P, T, E>(packet, tables, environment, reason),
        length,
        service: tell::service_of(tables, &key),
    };
    tell::refused(tables, environment, &key, &refusal);
    refusal.outcome
}

/// Answers a packet that is to be rejected.
#[inline(always)]
fn answer<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    reason: Reason,
) -> Reason {
    if reason.verdict() == Verdict::Reject {
        reject::<F, P, T, E>(packet, tables, environment, reason)
    } else {
        reason
    }
}

/// The key of a packet, without ports if it has none at hand.
#[inline(always)]
fn key<F: Family, P: Packet>(packet: &P, direction: u8) -> Option<FlowKey<F::Address>> {
    let addresses = F::addresses(packet)?;
    Some(match F::transport(packet) {
        Ok(transport) => transport.key(direction, addresses),
        Err(_) => FlowKey::new(direction, NO_PORTS, (addresses.source, 0), (addresses.destination, 0)),
    })
}

/// Turns a packet that was refused for `reason` into the answer to it, and gives that reason; or another one, if there is
/// no answer.
#[inline(never)]
pub fn reject<F: Family, P: Packet, T: Tables<F::Address>, E: Environment>(
    packet: &mut P,
    tables: &T,
    environment: &E,
    reason: Reason,
) -> Reason {
    let Some(Addresses { source, destination }) = answerable::<F, P>(packet) else {
        return Reason::Unanswerable;
    };
    if !allowed(tables, environment.nanoseconds()) {
        return Reason::AnswerLimited;
    }
    let answer = Addresses {
        source: destination,
        destination: source,
    };
    compose::<F, P>(packet, &answer).map_or(Reason::RewriteFailed, |()| reason)
}

/// The addresses of a packet that may be answered with an ICMP error (RFC 1122, 3.2.2; RFC 4443, 2.4 e).
#[inline(always)]
fn answerable<F: Family, P: Packet>(packet: &P) -> Option<Addresses<F::Address>> {
    // Of fragments only a first one is rejected, and it may be answered.
    if F::transport(packet) == Err(Skip::Malformed) || F::icmp_error(packet).is_some() {
        return None;
    }
    let addresses = F::addresses(packet)?;
    (F::is_unicast(&addresses.source) && F::is_unicast(&addresses.destination)).then_some(addresses)
}

/// Takes an answer from this CPU's token bucket, whose state is the time at which it is full again.
#[inline(always)]
fn allowed<A: AddressBytes, T: Tables<A>>(tables: &T, now: u64) -> bool {
    let full = tables.answers_full().max(now);
    if full - now > (BURST - 1) * INTERVAL {
        return false;
    }
    tables.set_answers_full(full.wrapping_add(INTERVAL));
    true
}

/// Writes the answer over the packet.
#[inline(always)]
fn compose<F: Family, P: Packet>(packet: &mut P, addresses: &Addresses<F::Address>) -> Option<()> {
    // Whole words, which are summed up easily; an error may quote as much as it likes.
    let quote = F::length(packet)?.min(MAX_QUOTE) & !3;
    packet.become_answer(quote, F::ERROR_HEADERS)?;
    let mut sum = 0;
    for at in (0..MAX_QUOTE).step_by(4) {
        if at >= quote {
            break;
        }
        sum += u64::from(u32::from_ne_bytes(packet.view::<4>(F::ERROR_HEADERS + at)?.load(0)));
    }
    F::write_port_unreachable(packet, addresses, quote, checksum::fold_words(sum))
}
