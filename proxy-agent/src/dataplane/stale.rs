//! Flows to endpoints that serve no more: UDP has no end of its own, and a client that goes on sending would never be given
//! another endpoint (behaviour.md 7).

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
};

use proxy_common::{
    datapath::flow,
    layout::{FlowKey, FlowValue, SocketKey, SocketValue, TO_BACKEND, flow_flags, socket_flags},
    packet::UDP,
};

use super::{
    address::Address,
    table::{Table, TableError},
};

/// The endpoints that serve, by id of the service port: flows to others are stale. Ports that aren't in it are left alone.
pub type Serving = BTreeMap<u32, HashSet<SocketAddr>>;

/// How much of a stale flow is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What takes the client's datagrams to the endpoint: the next one goes elsewhere, and answers that are on their way arrive
    Requests,
    /// All of it
    All,
}

/// How often the table is gone through: a packet that comes while it is may restore one half from the other.
const ROUNDS: usize = 3;

/// Removes the stale flows of a table, or a part of each; gives how many entries these were.
///
/// # Errors
/// If the table can't be read or written.
pub fn remove<A: Address>(
    flows: &mut dyn Table<FlowKey<A>, FlowValue<A>>,
    serving: &Serving,
    part: Part,
) -> Result<u64, TableError> {
    let mut removed = 0;
    for _ in 0..ROUNDS {
        let mut stale = Vec::new();
        let is_removed = |key: &FlowKey<A>, value: &FlowValue<A>| {
            // Where conntrack sends the others is for `takeover` to know.
            key.protocol == UDP
                && value.flags & flow_flags::CONNTRACK == 0
                && (part == Part::All || value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) == 0)
                && serving
                    .get(&value.service)
                    .is_some_and(|serving| is_stale(key, value, serving))
        };
        flows.scan(&mut |key, value| {
            if is_removed(&key, &value) {
                stale.push(key);
            }
        })?;
        if stale.is_empty() {
            break;
        }
        for key in stale {
            // Under the same key there may be another by now, to an endpoint that serves.
            removed += u64::from(flows.remove_if(&key, &|value| is_removed(&key, value))?);
        }
    }
    Ok(removed)
}

/// Removes what unconnected sockets remember of stale backends, or a part of it, so that their next datagram is resolved anew; gives
/// how many entries these were. Connected ones have to be told.
///
/// # Errors
/// If the table can't be read or written.
pub fn remove_unconnected<A: Address>(
    sockets: &mut dyn Table<SocketKey<A>, SocketValue<A>>,
    serving: &Serving,
    part: Part,
) -> Result<u64, TableError> {
    let mut stale = Vec::new();
    sockets.scan(&mut |key, value| {
        let (address, port) = if key.direction == TO_BACKEND {
            (value.address, value.port)
        } else {
            (key.address, key.port)
        };
        let backend = SocketAddr::new(address.to_ip(), port);
        if key.protocol == UDP
            && value.flags & socket_flags::CONNECTED == 0
            && (part == Part::All || key.direction == TO_BACKEND)
            && serving
                .get(&value.service)
                .is_some_and(|serving| !serving.contains(&backend))
        {
            stale.push(key);
        }
    })?;
    let mut removed = 0;
    for key in stale {
        removed += u64::from(sockets.remove(&key)?);
    }
    Ok(removed)
}

fn is_stale<A: Address>(key: &FlowKey<A>, value: &FlowValue<A>, serving: &HashSet<SocketAddr>) -> bool {
    let (address, port) = flow::backend(key, value);
    !serving.contains(&SocketAddr::new(address.to_ip(), port))
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{EGRESS, INGRESS, TO_FRONTEND};

    use super::*;
    use crate::dataplane::memory::Memory;

    type End = ([u8; 4], u16);

    const CLIENT: End = ([192, 0, 2, 9], 40_000);
    const NODE: End = ([192, 0, 2, 1], 40_000);
    const FRONTEND: End = ([10, 96, 0, 1], 53);
    const GONE: End = ([10, 244, 1, 7], 53);
    const THERE: End = ([10, 244, 1, 8], 53);

    /// All entries of a masqueraded flow.
    fn insert(memory: &Memory, protocol: u8, service: u32, client: End, backend: End) {
        let mut flows = memory.v4.flows.clone();
        let forward = FlowKey::new(INGRESS, protocol, client, FRONTEND);
        let masquerade = FlowKey::new(EGRESS, protocol, client, backend);
        for (key, address, other_port, flags) in [
            (forward, backend, client.1, flow_flags::MASQUERADED),
            (masquerade, (NODE.0, client.1), backend.1, flow_flags::MASQUERADE),
        ] {
            let value = FlowValue {
                address: address.0,
                port: address.1,
                other_port,
                service,
                flags,
                ..FlowValue::default()
            };
            flows.insert(&key, &value).expect("room");
            let twin = (flow::twin_key(&key, &value), flow::twin_value(&key, &value));
            flows.insert(&twin.0, &twin.1).expect("room");
        }
    }

    fn removed(memory: &Memory, serving: &Serving) -> u64 {
        remove(&mut memory.v4.flows.clone(), serving, Part::All).expect("readable")
    }

    fn serving(endpoints: &[End]) -> Serving {
        let endpoints = endpoints.iter().copied().map(SocketAddr::from);
        Serving::from([(3, endpoints.collect())])
    }

    /// behaviour.md 7.3, 7.5: by address and port of the endpoint, every entry of the flow.
    #[test]
    fn rule_7_3_udp_flows_to_endpoints_that_serve_no_more_go() {
        let memory = Memory::default();
        insert(&memory, UDP, 3, CLIENT, GONE);
        insert(&memory, UDP, 3, (CLIENT.0, 1), THERE);
        insert(&memory, UDP, 3, (CLIENT.0, 2), (THERE.0, 54));
        assert_eq!(removed(&memory, &serving(&[THERE])), 8);
        assert_eq!(memory.v4.flows.entries().expect("readable").len(), 4);
        assert_eq!(removed(&memory, &serving(&[THERE])), 0);
    }

    /// Nothing that an answer needs on its way goes with the requests.
    #[test]
    fn rule_7_3_requests_go_before_the_rest() {
        let memory = Memory::default();
        insert(&memory, UDP, 3, CLIENT, GONE);
        let mut flows = memory.v4.flows.clone();
        let serving = serving(&[THERE]);
        assert_eq!(remove(&mut flows, &serving, Part::Requests).expect("readable"), 1);
        let forward = FlowKey::new(INGRESS, UDP, CLIENT, FRONTEND);
        assert_eq!(flows.get(&forward).expect("readable"), None);
        assert_eq!(removed(&memory, &serving), 3);
    }

    /// behaviour.md 7.1: TCP and SCTP end by themselves.
    #[test]
    fn rule_7_1_other_flows_stay() {
        let memory = Memory::default();
        for protocol in [6, 132] {
            insert(&memory, protocol, 3, CLIENT, GONE);
        }
        assert_eq!(removed(&memory, &serving(&[])), 0);
    }

    /// behaviour.md 7.3, for sockets: both entries of an unconnected one go; a connected one keeps its own, which says that it
    /// is to be told. 7.1: TCP stays.
    #[test]
    fn rule_7_3_unconnected_sockets_forget_endpoints_that_serve_no_more() {
        let memory = Memory::default();
        let mut sockets = memory.v4.sockets.clone();
        let mut remember = |cookie: u64, protocol: u8, backend: End, flags: u16| {
            for (direction, key, value) in [(TO_BACKEND, FRONTEND, backend), (TO_FRONTEND, backend, FRONTEND)] {
                let key = SocketKey::new(direction, cookie, protocol, key);
                let value = SocketValue {
                    address: value.0,
                    port: value.1,
                    flags,
                    service: 3,
                    last_seen: 0,
                };
                sockets.insert(&key, &value).expect("room");
            }
        };
        remember(1, UDP, GONE, 0);
        remember(2, UDP, THERE, 0);
        remember(3, UDP, GONE, socket_flags::CONNECTED);
        remember(4, 6, GONE, 0);
        let removed = |endpoints: &[End], part| {
            remove_unconnected(&mut memory.v4.sockets.clone(), &serving(endpoints), part).expect("readable")
        };
        assert_eq!(removed(&[THERE], Part::Requests), 1);
        assert_eq!(removed(&[THERE], Part::Requests), 0);
        assert_eq!(removed(&[THERE], Part::All), 1);
        assert_eq!(removed(&[THERE], Part::All), 0);
        assert_eq!(removed(&[], Part::All), 2);
        let left = memory.v4.sockets.entries().expect("readable");
        assert!(left.iter().all(|(key, _)| [3, 4].contains(&key.cookie[0])) && left.len() == 4);
    }

    /// behaviour.md 7.6, 7.7: without endpoints, and without the Service, all go; those of other Services stay.
    #[test]
    fn rule_7_6_no_endpoint_means_all_go() {
        let memory = Memory::default();
        insert(&memory, UDP, 3, CLIENT, GONE);
        insert(&memory, UDP, 4, (CLIENT.0, 1), GONE);
        assert_eq!(removed(&memory, &serving(&[])), 4);
        assert_eq!(memory.v4.flows.entries().expect("readable").len(), 4);
    }
}
