//! Inserting the second half of a flow, which is the reservation of its 5-tuple towards the backend.

use super::{Environment, FlowHandle as _, InsertError, InsertMode, Reason, Scratch, Tables, flow, scale};
use crate::layout::{AddressBytes, FlowKey, FlowValue, INGRESS};

/// How many other ports are tried. With half of all ports to a backend in use, one colliding flow in 256 fails.
const ATTEMPTS: u32 = 8;
/// Ports to try are taken from here up to 65535: not from the system ports (RFC 6335, 6).
const FIRST_PORT: u32 = 1024;

/// Inserts the twin of the key and value in `scratch`. If another flow holds that place, or a socket of the node, changes
/// in the value the client's port as the backend will see it.
#[inline(never)]
pub(super) fn reserve_twin<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
) -> Result<(), Reason> {
    scratch.twin_key = flow::twin_key(&scratch.key, &scratch.value);
    scratch.twin = flow::twin_value(&scratch.key, &scratch.value);
    match environment.claim(tables, scratch, true) {
        Claim::Ours => return Ok(()),
        Claim::Full => return Err(Reason::FlowTableFull),
        Claim::Taken => {}
    }
    for _ in 0..ATTEMPTS {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "FIRST_PORT + (65536 - FIRST_PORT) - 1 at most"
        )]
        let port = (FIRST_PORT + scale(environment.random(), 65_536 - FIRST_PORT)) as u16;
        // Both kinds of twin carry packets from the backend to the client as the backend sees it.
        scratch.twin_key.destination_port = port;
        match environment.claim(tables, scratch, false) {
            Claim::Ours => {
                if scratch.key.direction == INGRESS {
                    scratch.value.other_port = port;
                } else {
                    scratch.value.port = port;
                }
                return Ok(());
            }
            Claim::Full => return Err(Reason::FlowTableFull),
            Claim::Taken => {}
        }
    }
    Err(Reason::PortsExhausted)
}

/// What came of an attempt to insert a half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Claim {
    /// It is inserted
    Ours,
    /// Its place is another's
    Taken,
    /// There is no room in the table
    Full,
}

/// Inserts the twin in `scratch` unless its place is taken; `evict` has another look at who is there.
#[inline(never)]
pub fn claim<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &Scratch<A>,
    evict: bool,
) -> Claim {
    let (key, value) = (&scratch.twin_key, &scratch.twin);
    // The reply half of a masquerade must not take packets that are for a connection of the node itself.
    if key.direction == INGRESS && environment.has_socket(key) {
        return Claim::Taken;
    }
    if tables.is_previous(key) {
        return Claim::Taken;
    }
    let inserted = match tables.insert_flow(key, value, InsertMode::New) {
        Err(InsertError::Exists) if evict && is_free(tables, environment, key, value) => {
            tables.insert_flow(key, value, InsertMode::Any)
        }
        inserted => inserted,
    };
    match inserted {
        Ok(()) => Claim::Ours,
        Err(InsertError::Exists) => Claim::Taken,
        Err(InsertError::Full) => Claim::Full,
    }
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
