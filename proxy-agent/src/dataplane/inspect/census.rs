//! How many flows there are, and whose: counted in one look at the tables.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use proxy_common::layout::{FlowKey, FlowValue, flow_flags, history};

use super::{TableFill, status::fills};
use crate::dataplane::{
    address::Address,
    table::{TableError, Tables},
};

/// What the flow tables hold; whatever counts flows counts these. Flows that their client has closed are none any more, though their
/// entries stay for a while; neither are those of which the client's half is lost, until it is restored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Flows by id of the service port
    pub services: HashMap<u32, u64>,
    /// Flows by id of the service port and endpoint, where these are counted
    pub endpoints: HashMap<(u32, SocketAddr), u64>,
    /// Masquerades by the address that endpoints see
    pub masquerades: HashMap<IpAddr, Masquerades>,
    /// Connections left to the kernel's conntrack, which are not among the others
    pub conntrack: u64,
}

/// Flows whose endpoints see an address of the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Masquerades {
    /// All of them
    pub flows: u64,
    /// Those to the endpoint that most are to: each has a port of its own, and there are no more than ports
    pub to_one_endpoint: u64,
}

/// A count under way.
struct Counting {
    census: Census,
    counts_endpoints: bool,
    /// Masquerades by protocol, address of the node and endpoint
    ports: HashMap<(u8, IpAddr, SocketAddr), u64>,
}

impl Counting {
    fn count<A: Address>(&mut self, key: &FlowKey<A>, value: &FlowValue<A>) {
        const MASQUERADE: u8 = flow_flags::MASQUERADE;
        const UNRESOLVED: u8 = flow_flags::UNRESOLVED;
        const CONNTRACK: u8 = flow_flags::CONNTRACK;
        if value.flags & (flow_flags::REPLY | UNRESOLVED) != 0 {
            return;
        }
        match value.flags & (MASQUERADE | CONNTRACK) {
            0 if value.history & (history::FIN | history::RST) == 0 => {
                *self.census.services.entry(value.service).or_default() += 1;
                if self.counts_endpoints {
                    let endpoint = SocketAddr::new(value.address.to_ip(), value.port);
                    *self.census.endpoints.entry((value.service, endpoint)).or_default() += 1;
                }
            }
            MASQUERADE => {
                let endpoint = SocketAddr::new(key.destination.to_ip(), key.destination_port);
                *self
                    .ports
                    .entry((key.protocol, value.address.to_ip(), endpoint))
                    .or_default() += 1;
            }
            CONNTRACK => self.census.conntrack += 1,
            _ => {}
        }
    }

    fn of(counts_endpoints: bool) -> Self {
        Self {
            census: Census::default(),
            counts_endpoints,
            ports: HashMap::new(),
        }
    }

    fn finish(mut self) -> Census {
        for ((_, address, _), flows) in self.ports {
            let of_address = self.census.masquerades.entry(address).or_default();
            of_address.flows += flows;
            of_address.to_one_endpoint = of_address.to_one_endpoint.max(flows);
        }
        self.census
    }
}

/// How full every table is ([`super::table_fills`]), and whose the flows are, in the same look; by endpoint if that is asked for.
///
/// # Errors
/// If a table can't be read.
pub fn census(tables: &Tables, counts_endpoints: bool) -> Result<(Vec<TableFill>, Census), TableError> {
    let counting = RefCell::new(Counting::of(counts_endpoints));
    let fills = fills(
        tables,
        &mut |key, value| counting.borrow_mut().count(&key, &value),
        &mut |key, value| counting.borrow_mut().count(&key, &value),
    )?;
    Ok((fills, counting.into_inner().finish()))
}

/// Whose the flows are, by endpoint if that is asked for: [`census`] without a look at the other tables.
///
/// # Errors
/// If a table can't be read.
pub(super) fn flow_census(tables: &Tables, counts_endpoints: bool) -> Result<Census, TableError> {
    let mut counting = Counting::of(counts_endpoints);
    tables.v4.flows.scan(&mut |key, value| counting.count(&key, &value))?;
    tables.v6.flows.scan(&mut |key, value| counting.count(&key, &value))?;
    Ok(counting.finish())
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        datapath::flow::{masquerade_key, twin_key, twin_value},
        layout::INGRESS,
        packet::TCP,
    };

    use super::*;
    use crate::dataplane::{memory::Memory, table::Table as _};

    const FRONTEND: ([u8; 4], u16) = ([10, 96, 0, 1], 80);
    const NODE: [u8; 4] = [192, 0, 2, 1];

    /// Writes both halves.
    fn insert(memory: &Memory, key: FlowKey<[u8; 4]>, value: FlowValue<[u8; 4]>) {
        let mut flows = memory.v4.flows.clone();
        flows.insert(&key, &value).expect("room");
        flows
            .insert(&twin_key(&key, &value), &twin_value(&key, &value))
            .expect("room");
    }

    /// Writes a flow of a client's port to a backend, with a masquerade if it is to have one.
    fn open(memory: &Memory, port: u16, service: u32, backend: [u8; 4], flags: u8, history: u8) {
        let key = FlowKey::new(INGRESS, TCP, ([10, 244, 0, 5], port), FRONTEND);
        let value = FlowValue {
            address: backend,
            port: 8080,
            other_port: port,
            service,
            history,
            flags,
            ..FlowValue::default()
        };
        insert(memory, key, value);
        if flags & flow_flags::MASQUERADED != 0 {
            let masquerade = FlowValue {
                address: NODE,
                port,
                other_port: 8080,
                service,
                flags: flow_flags::MASQUERADE,
                ..FlowValue::default()
            };
            insert(memory, masquerade_key(&key, &value), masquerade);
        }
    }

    #[test]
    fn flows_are_counted_once_and_closed_ones_not_at_all() {
        let memory = Memory::default();
        let (here, there) = ([10, 244, 1, 7], [10, 244, 1, 8]);
        open(&memory, 1, 3, here, 0, history::SEEN);
        open(
            &memory,
            2,
            3,
            there,
            flow_flags::MASQUERADED,
            history::SEEN | history::CONFIRMED,
        );
        open(&memory, 3, 3, there, flow_flags::MASQUERADED, history::SEEN);
        open(
            &memory,
            4,
            3,
            here,
            flow_flags::MASQUERADED,
            history::SEEN | history::FIN,
        );
        open(&memory, 5, 4, here, 0, history::SEEN | history::RST);
        open(&memory, 6, 4, here, flow_flags::CONNTRACK, history::SEEN);
        let (fills, counted) = census(&memory.tables(), true).expect("readable");
        let of_flows = fills.iter().find(|fill| fill.name == "flows_v4").expect("the table");
        assert_eq!(of_flows.entries, 18);
        assert_eq!(counted.services, HashMap::from([(3, 3)]));
        let endpoint = |address| SocketAddr::from((address, 8080));
        let endpoints = HashMap::from([((3, endpoint(here)), 1), ((3, endpoint(there)), 2)]);
        assert_eq!(counted.endpoints, endpoints);
        // The port of one that is closed is in use until its entries are gone.
        let masquerades = Masquerades {
            flows: 3,
            to_one_endpoint: 2,
        };
        assert_eq!(counted.masquerades, HashMap::from([(NODE.into(), masquerades)]));
        assert_eq!(counted.conntrack, 1);
        let without = flow_census(&memory.tables(), false).expect("readable");
        assert!(without.endpoints.is_empty() && without.services == counted.services);
    }
}
