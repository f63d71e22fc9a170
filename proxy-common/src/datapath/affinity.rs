//! Clients that get the endpoint they had last (behaviour.md 6).

use super::{Environment, Tables, select::Choice};
use crate::layout::{
    AddressBytes, AffinityKey, AffinityValue, CLUSTER_LIST, FlowValue, LOCAL_LIST, MemberKey, ServiceValue, Timeouts,
};

/// Puts the endpoint that a client used last into `value`, if that is not too long ago and the endpoint is among those
/// that apply now (behaviour.md 6.3, 6.4).
#[inline(always)]
pub(super) fn recall<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    client: &A,
    service: &ServiceValue,
    choice: &Choice,
    value: &mut FlowValue<A>,
) -> bool {
    let other = if choice.list == CLUSTER_LIST {
        LOCAL_LIST
    } else {
        CLUSTER_LIST
    };
    // All frontends of a service port share it (6.1): what was chosen from the other list counts as well.
    recall_from(tables, environment, client, service, (choice.list, choice.set), value)
        || recall_from(tables, environment, client, service, (other, choice.set), value)
}

#[inline(never)]
fn recall_from<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    client: &A,
    service: &ServiceValue,
    (list, set): (u32, u32),
    value: &mut FlowValue<A>,
) -> bool {
    let key = AffinityKey {
        service: service.service,
        list,
        client: *client,
    };
    let Some(last) = tables.affinity(&key) else {
        return false;
    };
    let is_recent = environment.now().saturating_sub(last.last_used) <= Timeouts::ticks(service.affinity_timeout);
    let member = tables.member(&MemberKey::new(set, last.address, last.port));
    let recalled = is_recent && member.is_some_and(|member| member.since <= last.last_used);
    if recalled {
        value.address = last.address;
        value.port = last.port;
    }
    recalled
}

/// Remembers the endpoint in `value`, chosen from a list, for the next connection of a client to a service port.
#[inline(never)]
pub(super) fn remember<A: AddressBytes, T: Tables<A>, E: Environment>(
    tables: &T,
    environment: &E,
    client: &A,
    service: u32,
    list: u32,
    value: &FlowValue<A>,
) {
    let key = AffinityKey {
        service,
        list,
        client: *client,
    };
    let used = AffinityValue {
        address: value.address,
        port: value.port,
        reserved: 0,
        last_used: environment.now(),
    };
    tables.set_affinity(&key, &used);
}
