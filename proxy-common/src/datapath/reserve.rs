//! Inserting the second half of a flow, which is the reservation of its 5-tuple towards the backend.

use super::{Environment, FlowHandle as _, InsertError, InsertMode, Reason, Tables, flow, scale};
use crate::layout::{AddressBytes, FlowKey, FlowValue, INGRESS};

/// How many other ports are tried. With half of all ports to a backend in use, one colliding flow in 256 fails.
const ATTEMPTS: u32 = 8;
/// Ports to try are taken from here up to 65535: not from the system ports (RFC 6335, 6).
const FIRST_PORT: u32 = 1024;

/// Inserts the twin of `key` and `value`. If another flow holds that place, changes in `value` the client's port as the
/// backend will see it.
#[inline(never)]
pub(super) fn reserve_twin<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
    value: &mut FlowValue<A>,
) -> Result<(), Reason> {
    let mut twin_key = flow::twin_key(key, value);
    let twin = flow::twin_value(key, value);
    match tables.insert_flow(&twin_key, &twin, InsertMode::New) {
        Ok(()) => return Ok(()),
        Err(InsertError::Full) => return Err(Reason::FlowTableFull),
        Err(InsertError::Exists) => {}
    }
    if is_free(tables, environment, &twin_key, &twin) {
        return tables
            .insert_flow(&twin_key, &twin, InsertMode::Any)
            .map_err(|_| Reason::FlowTableFull);
    }
    for _ in 0..ATTEMPTS {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "FIRST_PORT + (65536 - FIRST_PORT) - 1 at most"
        )]
        let port = (FIRST_PORT + scale(environment.random(), 65_536 - FIRST_PORT)) as u16;
        // Both kinds of twin carry packets from the backend to the client as the backend sees it.
        twin_key.destination_port = port;
        match tables.insert_flow(&twin_key, &twin, InsertMode::New) {
            Ok(()) => {
                if key.direction == INGRESS {
                    value.other_port = port;
                } else {
                    value.port = port;
                }
                return Ok(());
            }
            Err(InsertError::Full) => return Err(Reason::FlowTableFull),
            Err(InsertError::Exists) => {}
        }
    }
    Err(Reason::PortsExhausted)
}

/// Whether what stands under `twin_key` is left over: of an earlier flow of the very key that `twin` belongs to, or of
/// one that is over. Removes the other half of the latter.
#[inline(never)]
fn is_free<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    twin_key: &FlowKey<A>,
    twin: &FlowValue<A>,
) -> bool {
    let Some(present) = tables.flow(twin_key) else {
        return true;
    };
    let present = present.value();
    if flow::same_rewrite(&present, twin) {
        return true;
    }
    let owner = flow::twin_key(twin_key, &present);
    let Some(other) = tables.flow(&owner) else {
        return flow::is_over(environment, twin_key.protocol, &present, None, true);
    };
    let over = flow::is_over(environment, twin_key.protocol, &present, Some(&other.value()), true);
    if over {
        tables.remove_flow(&owner);
    }
    over
}
