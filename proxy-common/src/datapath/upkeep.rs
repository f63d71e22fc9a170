//! What a known flow needs now and then: its history, its time, its twin, its masquerade. Off the established path.

use super::{Environment, FlowHandle as _, InsertError, InsertMode, Reason, Scratch, Tables, flow, masquerade};
use crate::{
    layout::{AddressBytes, FlowValue, flow_flags, history},
    packet::{Family, UDP, opens_connection, tcp_flags},
};

/// Whether a packet of a known flow must pass through [`keep`] before it is rewritten.
#[inline(always)]
pub(super) const fn is_due<A>(value: &FlowValue<A>, flags: u8, now: u32) -> bool {
    value.last_seen != now
        || flags & (tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST) != 0
        || value.history & history::CONFIRMED == 0
        || value.flags & (flow_flags::UNRESOLVED | flow_flags::TWIN_REMOVED) != 0
}

/// Keeps the flow of the packet in `scratch` and puts into its value how to rewrite the packet; `Ok(false)` if there is
/// none, or if it is over and this packet opens another.
#[inline(never)]
pub(super) fn keep<F: Family, T: Tables<F::Address>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<F::Address>,
) -> Result<bool, Reason> {
    let packet_flags = scratch.transport.tcp_flags;
    let Some(handle) = tables.flow(&scratch.key) else {
        return Ok(false);
    };
    scratch.value = handle.value();
    if scratch.value.flags & flow_flags::UNRESOLVED != 0 {
        masquerade::resolve::<F, T, E>(tables, environment, scratch)?;
    } else if !keep_twin(tables, environment, scratch) {
        tables.remove_flow(&scratch.key);
        return Ok(false);
    }
    let (key, value) = (&scratch.key, &scratch.value);
    if value.flags & flow_flags::MASQUERADED != 0 && masquerade::request(tables, key, value, InsertMode::New).is_err() {
        return Err(Reason::FlowTableFull);
    }
    let mut seen = value.history | flow::seen(packet_flags);
    if value.history & history::SEEN != 0 && value.last_seen != environment.now() {
        seen |= history::LASTING;
    }
    // Looked up anew: resolving replaced the entry.
    if let Some(handle) = tables.flow(key) {
        handle.touch(environment.now(), seen);
        if value.flags & flow_flags::TWIN_REMOVED != 0 {
            handle.set_flags(value.flags & !flow_flags::TWIN_REMOVED);
        }
    }
    Ok(true)
}

/// Restores a lost twin. `false` if the flow is over, or another has taken its twin's place.
///
/// UDP answers are translated without the client's half: it is removed first when an endpoint serves no more (behaviour.md 7.3), so
/// that the client's next datagram goes elsewhere, while answers to the last are on their way. They must not bring it back.
#[inline(never)]
fn keep_twin<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
) -> bool {
    scratch.twin_key = flow::twin_key(&scratch.key, &scratch.value);
    scratch.twin = flow::twin_value(&scratch.key, &scratch.value);
    let Scratch {
        key,
        value,
        twin_key,
        twin: expected,
        transport,
        ..
    } = scratch;
    let reopened = opens_connection(transport.tcp_flags);
    let outlives = key.protocol == UDP
        && value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE | flow_flags::CONNTRACK) == flow_flags::REPLY;
    // Who is answered has asked. (No branch: the verifier would go two ways from here.)
    expected.history = (history::SEEN | history::CONFIRMED) * u8::from(value.flags & flow_flags::REPLY != 0);
    let Some(twin) = tables.flow(twin_key) else {
        return !flow::is_over(environment, key.protocol, value, None, reopened)
            // A full table is no reason to give up the half that lives.
            && (outlives || tables.insert_flow(twin_key, expected, InsertMode::New) != Err(InsertError::Exists));
    };
    let twin = twin.value();
    if !flow::same_rewrite(&twin, expected) {
        return outlives && !flow::is_over(environment, key.protocol, value, None, reopened);
    }
    let over = flow::is_over(environment, key.protocol, value, Some(&twin), reopened);
    if over {
        tables.remove_flow(twin_key);
    }
    !over
}
