//! Which endpoint a new flow gets, and whether its client is hidden from it (behaviour.md 2.11, 3.10, 4, 5, 6).

use super::{Environment, Reason, Tables, affinity};
use crate::layout::{
    AFFINITY_NONE, AddressBytes, CLUSTER_LIST, FlowKey, FlowValue, LOCAL_LIST, LOCAL_PODS, ServiceValue, SlotKey,
    address_flags, device_flags, service_flags,
};

/// Maps a uniform `random` to `0..count`, uniformly to within `count / 2^32` and without a division.
#[inline(always)]
pub const fn scale(random: u32, count: u32) -> u32 {
    ((random as u64 * count as u64) >> 32) as u32
}

/// What a frontend has for a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// [`CLUSTER_LIST`] or [`LOCAL_LIST`]
    pub list: u32,
    /// The endpoint set
    pub set: u32,
    /// Number of endpoints in it, at least one
    pub count: u32,
    /// The client is to be hidden from the backend, whichever that is
    pub masquerade: bool,
}

/// Decides what `service` has for `key` at ingress.
///
/// # Errors
/// Why it has nothing.
#[inline(never)]
pub fn decide<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
    service: &ServiceValue,
    choice: &mut Choice,
) -> Result<(), Reason> {
    // Before it matters whether there are endpoints (behaviour.md 3.10).
    if service.flags & service_flags::RESTRICTED != 0 && !tables.is_source(service.service, &key.source) {
        return Err(Reason::SourceRefused);
    }
    let client = client_of(tables, environment, key, service.flags);
    let local = service.flags & service_flags::LOCAL != 0
        && (service.flags & service_flags::SHORT_CIRCUIT == 0 || client == Client::Outsider);
    (choice.list, choice.set, choice.count) = if local {
        (LOCAL_LIST, service.local_set, service.local_count)
    } else {
        (CLUSTER_LIST, service.cluster_set, service.cluster_count)
    };
    if choice.count == 0 {
        let anywhere = service.flags & service_flags::HAS_ENDPOINTS != 0;
        return Err(if anywhere {
            Reason::NoLocalEndpoints
        } else {
            Reason::NoEndpoints
        });
    }
    let hidden = match client {
        Client::LocalPod => service_flags::MASQUERADE,
        Client::Host => {
            service_flags::MASQUERADE | service_flags::MASQUERADE_OUTSIDERS | service_flags::MASQUERADE_HOST
        }
        Client::Outsider => service_flags::MASQUERADE | service_flags::MASQUERADE_OUTSIDERS,
    };
    choice.masquerade = service.flags & hidden != 0;
    Ok(())
}

/// Puts an endpoint of a choice into `value`: the one that the client had last, where clients keep theirs, else any
/// (behaviour.md 2.11, 6.3).
#[inline(always)]
pub(super) fn draw<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
    service: &ServiceValue,
    choice: &Choice,
    value: &mut FlowValue<A>,
) -> Result<(), Reason> {
    let keeps = service.affinity_timeout != AFFINITY_NONE;
    if !keeps || !affinity::recall(tables, environment, &key.source, service, choice, value) {
        let index = scale(environment.random(), choice.count);
        let backend = tables
            .slot(&SlotKey { set: choice.set, index })
            .ok_or(Reason::EndpointMissing)?;
        value.address = backend.address;
        value.port = backend.port;
    }
    if keeps {
        affinity::remember(tables, environment, &key.source, service.service, choice.list, value);
    }
    Ok(())
}

/// Who opens a flow (behaviour.md 5.6), in the order in which it is decided.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Client {
    LocalPod,
    Host,
    Outsider,
}

/// Who sent a packet, as far as the frontend's flags make it matter.
#[inline(always)]
fn client_of<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    key: &FlowKey<A>,
    flags: u32,
) -> Client {
    if flags & (service_flags::SHORT_CIRCUIT | service_flags::MASQUERADE_OUTSIDERS) == 0 {
        return Client::Outsider;
    }
    if tables.device_flags(environment.device()) & device_flags::LOCAL_TRAFFIC != 0
        || tables.is_source(LOCAL_PODS, &key.source)
    {
        return Client::LocalPod;
    }
    if flags & service_flags::SHORT_CIRCUIT != 0 && tables.address_flags(&key.source) & address_flags::LOCAL != 0 {
        return Client::Host;
    }
    Client::Outsider
}
