//! Inserting the second half of a flow, which is the reservation of its 5-tuple towards the backend.

use super::{Environment, FlowHandle as _, InsertError, InsertMode, Reason, Scratch, Tables, flow, scale};
use crate::layout::{AddressBytes, FlowKey, FlowValue, INGRESS};

/// How many other ports are tried. With half of all ports to a backend in use, one colliding flow in 256 fails.
const ATTEMPTS: u32 = 8;
/// From which on flows that did not get anywhere make room: a flood through a masquerade must not keep all ports to a backend
/// until its flows expire, where the table has room for them.
const EVICTING: u32 = 4;
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
    match environment.claim(tables, scratch, Eviction::Over) {
        Claim::Ours => return Ok(()),
        Claim::Full => return Err(Reason::FlowTableFull),
        Claim::Taken => {}
    }
    for attempt in 0..ATTEMPTS {
        tables.count(Reason::PortTaken, 0);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "FIRST_PORT + (65536 - FIRST_PORT) - 1 at most"
        )]
        let port = (FIRST_PORT + scale(environment.random(), 65_536 - FIRST_PORT)) as u16;
        // Both kinds of twin carry packets from the backend to the client as the backend sees it.
        scratch.twin_key.destination_port = port;
        let eviction = if attempt < EVICTING {
            Eviction::None
        } else {
            Eviction::Expendable
        };
        match environment.claim(tables, scratch, eviction) {
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

/// Who has to leave a place that another flow wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Eviction {
    /// Nobody
    None = 0,
    /// A flow that is over
    Over = 1,
    /// Also one that is expendable ([`flow::State::is_expendable`]) and was not used lately
    Expendable = 2,
}

impl Eviction {
    /// By its number; the mildest of others.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Over,
            2 => Self::Expendable,
            _ => Self::None,
        }
    }
}

/// The flow that stands where another wants to be.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Rival<A> {
    /// The half that stands there
    half: FlowValue<A>,
    /// The other half's key
    twin_key: FlowKey<A>,
    /// The other half's value, as it has to be
    twin: FlowValue<A>,
    /// What stands in the other half's place
    present: FlowValue<A>,
}

/// Inserts the twin in `scratch` unless its place is taken; but for [`Eviction::None`] it has another look at who is there.
#[inline(always)]
pub fn claim<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
    eviction: Eviction,
) -> Claim {
    // The reply half of a masquerade must not take packets that are for a connection of the node itself.
    if scratch.twin_key.direction == INGRESS && environment.has_socket(&scratch.twin_key) {
        return Claim::Taken;
    }
    if tables.is_previous(&scratch.twin_key) {
        return Claim::Taken;
    }
    let inserted = match tables.insert_flow(&scratch.twin_key, &scratch.twin, InsertMode::New) {
        Err(InsertError::Exists) if eviction != Eviction::None && is_free(tables, environment, scratch, eviction) => {
            tables.insert_flow(&scratch.twin_key, &scratch.twin, InsertMode::Any)
        }
        inserted => inserted,
    };
    match inserted {
        Ok(()) => Claim::Ours,
        Err(InsertError::Exists) => Claim::Taken,
        Err(InsertError::Full) => Claim::Full,
    }
}

/// Whether what stands in the place of the twin in `scratch` is left over: of an earlier flow of the very key that the twin belongs
/// to, or of one that has to leave. Removes the other half of the latter.
#[inline(never)]
fn is_free<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    scratch: &mut Scratch<A>,
    eviction: Eviction,
) -> bool {
    let Scratch {
        twin_key, twin, rival, ..
    } = scratch;
    let Some(present) = tables.flow(twin_key) else {
        return true;
    };
    rival.half = present.value();
    if flow::same_rewrite(&rival.half, twin) {
        return true;
    }
    rival.twin_key = flow::twin_key(twin_key, &rival.half);
    rival.twin = flow::twin_value(twin_key, &rival.half);
    let other = match tables.flow(&rival.twin_key) {
        Some(other) => {
            rival.present = other.value();
            // Another flow may have its place.
            flow::same_rewrite(&rival.present, &rival.twin).then_some(&rival.present)
        }
        None => None,
    };
    let leaves = has_to_leave(environment, twin_key.protocol, &rival.half, other, eviction);
    if leaves && other.is_some() {
        tables.remove_flow(&rival.twin_key);
    }
    leaves
}

/// Whether a flow gives its place to another, by either of its halves and its twin.
#[inline(always)]
fn has_to_leave<A: AddressBytes, E: Environment>(
    environment: &E,
    protocol: u8,
    half: &FlowValue<A>,
    twin: Option<&FlowValue<A>>,
    eviction: Eviction,
) -> bool {
    let got_nowhere = eviction == Eviction::Expendable
        && !flow::is_young(half, twin, environment.now())
        && flow::State::of(protocol, half, twin).is_expendable();
    got_nowhere || flow::is_over(environment, protocol, half, twin, true)
}
