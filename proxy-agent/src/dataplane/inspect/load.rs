//! What each service port has to do: what two looks tell rates by.

use std::{collections::BTreeMap, net::SocketAddr};

use proxy_common::layout::ServiceCounter;

use super::{census::flow_census, names, refusals, services};
use crate::{
    dataplane::table::{TableError, Tables},
    plan::ServicePort,
};

/// A service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceLoad {
    /// Its id
    pub id: u32,
    /// What it is reached by, as `address:port`; `*:port` for a nodePort
    pub frontends: Vec<String>,
    /// What was counted of it
    pub counter: ServiceCounter,
    /// Packets that it refused: rejected or dropped
    pub refused: u64,
    /// Flows by backend, as the [`Census`](super::Census) counts them; endpoints without any stand at 0. Sockets of the node's own
    /// processes have none
    pub endpoints: BTreeMap<SocketAddr, u64>,
}

/// What all service ports that have a name have to do.
///
/// # Errors
/// If a table can't be read.
pub fn service_loads(tables: &Tables) -> Result<BTreeMap<ServicePort, ServiceLoad>, TableError> {
    let names = names(tables)?;
    let mut loads = BTreeMap::new();
    for (id, port) in &names {
        let counter = tables.service_counts.get(id)?.unwrap_or_default();
        let load = ServiceLoad {
            id: *id,
            counter,
            ..ServiceLoad::default()
        };
        loads.insert(port.clone(), load);
    }
    for row in services(tables)? {
        let Some(protocol) = row.protocol else { continue };
        let port = ServicePort {
            namespace: row.namespace,
            service: row.service,
            port_name: row.port_name,
            protocol,
        };
        let Some(load) = loads.get_mut(&port) else { continue };
        load.frontends.push(row.address.map_or_else(
            || format!("*:{}", row.port),
            |address| SocketAddr::new(address, row.port).to_string(),
        ));
        for endpoint in row.cluster.into_iter().chain(row.local) {
            load.endpoints.entry(endpoint).or_default();
        }
    }
    for (id, _, counted) in refusals(tables)? {
        if let Some(load) = names.get(&id).and_then(|name| loads.get_mut(name)) {
            load.refused += counted.packets;
        }
    }
    for ((service, endpoint), flows) in flow_census(tables, true)?.endpoints {
        if let Some(load) = names.get(&service).and_then(|name| loads.get_mut(name)) {
            *load.endpoints.entry(endpoint).or_default() += flows;
        }
    }
    Ok(loads)
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{Counter, FlowKey, FlowValue, INGRESS, RefusalKey, flow_flags, history};

    use super::*;
    use crate::dataplane::{
        inspect::{fixture::publish_web, service_flows},
        memory::Memory,
        table::Table as _,
    };

    #[test]
    fn flows_and_refused_packets_are_counted_by_service_port() {
        let memory = Memory::default();
        let port = publish_web(&memory, 3);
        let counted = ServiceCounter {
            connections: 5,
            ..ServiceCounter::default()
        };
        memory.service_counts.clone().insert(&3, &counted).expect("room");
        for (service, reason, packets) in [(3, 8, 5), (3, 9, 1), (4, 8, 7)] {
            let refused = Counter { packets, bytes: 60 };
            let key = RefusalKey { service, reason };
            memory.refusals.clone().insert(&key, &refused).expect("room");
        }
        let mut table = memory.v4.flows.clone();
        for (client, flags, history, service) in [
            (1, 0, history::SEEN, 3),
            (2, flow_flags::MASQUERADED, history::SEEN, 3),
            (3, flow_flags::MASQUERADE, history::SEEN, 3),
            (4, flow_flags::REPLY, history::SEEN, 3),
            (5, 0, history::SEEN, 4),
            (6, 0, history::SEEN | history::FIN, 3),
            (7, flow_flags::CONNTRACK, history::SEEN, 3),
        ] {
            let key = FlowKey::new(INGRESS, 6, ([10, 0, 0, 1], client), ([10, 96, 0, 1], 80));
            let value = FlowValue {
                address: [10, 0, 1, 1],
                port: 8080,
                service,
                history,
                flags,
                ..FlowValue::default()
            };
            table.insert(&key, &value).expect("room");
        }
        let loads = service_loads(&memory.tables()).expect("readable");
        let expected = ServiceLoad {
            id: 3,
            frontends: Vec::new(),
            counter: counted,
            refused: 6,
            endpoints: [(([10, 0, 1, 1], 8080).into(), 2)].into(),
        };
        assert_eq!(loads, [(port.clone(), expected)].into());
        let flows = service_flows(&memory.tables()).expect("readable");
        assert_eq!(flows, [(port, 2)].into(), "`services` agrees with `top`");
    }
}
