//! Sockets that were connected to a frontend before it was one: no hook has translated them, and none will. (behaviour.md 7.3 names
//! the flows of such, "created while the Service was unknown".)

use std::{collections::HashSet, mem, net::SocketAddr};

use proxy_common::{
    layout::{ServiceKey, ServiceValue, address_flags},
    packet::UDP,
};

use crate::dataplane::{
    address::Address,
    stale::Serving,
    table::{BoxedTable, TableError},
};

/// Which service ports have come to be served since the agent began. Those that it found then say nothing: what is connected to one
/// of their frontends may be a socket that conntrack has translated, from kube-proxy's time.
#[derive(Debug, Default)]
pub(super) struct Known {
    served: HashSet<u32>,
    has_begun: bool,
}

impl Known {
    /// The service ports among these that are served and were not before.
    pub(super) fn take_new(&mut self, serving: &Serving) -> HashSet<u32> {
        let mut new = HashSet::new();
        for (&id, endpoints) in serving {
            if endpoints.is_empty() {
                self.served.remove(&id);
            } else if self.served.insert(id) {
                new.insert(id);
            }
        }
        if mem::replace(&mut self.has_begun, true) {
            new
        } else {
            HashSet::new()
        }
    }
}

/// The tables of a family that tell where service ports are served.
pub(super) struct Directory<A> {
    services: BoxedTable<ServiceKey<A>, ServiceValue>,
    addresses: BoxedTable<A, u32>,
}

/// Where UDP service ports are served.
#[derive(Debug, Default)]
pub(super) struct Frontends(HashSet<SocketAddr>);

impl Frontends {
    /// Whether a socket that is connected there is connected to one of them.
    pub(super) fn hold(&self, remote: &SocketAddr) -> bool {
        self.0.contains(remote)
    }
}

impl<A: Address> Directory<A> {
    /// Of these tables; the sockets are not looked at here.
    pub(super) fn new(services: BoxedTable<ServiceKey<A>, ServiceValue>, addresses: BoxedTable<A, u32>) -> Self {
        Self { services, addresses }
    }

    /// Adds the frontends that these service ports have for processes of the host.
    ///
    /// # Errors
    /// If a table can't be read.
    pub(super) fn add(&self, services: &HashSet<u32>, frontends: &mut Frontends) -> Result<(), TableError> {
        const NODE_PORTS: u32 = address_flags::NODE_PORTS | address_flags::LOOPBACK_NODE_PORTS;
        let mut node_ports = Vec::new();
        self.services.scan(&mut |key, value| {
            if key.protocol != UDP || !services.contains(&value.service) {
                return;
            }
            let frontend = SocketAddr::new(key.address.to_ip(), key.port);
            if frontend.ip().is_unspecified() {
                node_ports.push(key.port);
            } else {
                frontends.0.insert(frontend);
            }
        })?;
        if node_ports.is_empty() {
            return Ok(());
        }
        self.addresses.scan(&mut |address, flags| {
            if flags & NODE_PORTS != 0 {
                let at = |port: &u16| SocketAddr::new(address.to_ip(), *port);
                frontends.0.extend(node_ports.iter().map(at));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::{memory::Memory, table::Table as _};

    fn serving(ports: &[(u32, bool)]) -> Serving {
        let endpoint = SocketAddr::from(([10, 244, 1, 7], 53));
        let endpoints = |serves: bool| serves.then_some(endpoint).into_iter().collect();
        ports.iter().map(|&(id, serves)| (id, endpoints(serves))).collect()
    }

    /// behaviour.md 7.3, and 7.8: also where endpoints come back.
    #[test]
    fn rule_7_3_service_ports_are_new_once() {
        let mut known = Known::default();
        let mut new = |ports| known.take_new(&serving(ports)).into_iter().collect::<Vec<_>>();
        assert_eq!(
            new(&[(1, true), (2, false)]),
            [] as [u32; 0],
            "what there was when the agent began"
        );
        assert_eq!(new(&[(1, true)]), [] as [u32; 0]);
        assert_eq!(new(&[(2, true)]), [2]);
        assert_eq!(new(&[(2, true)]), [] as [u32; 0]);
        assert_eq!(new(&[(1, false)]), [] as [u32; 0]);
        assert_eq!(new(&[(1, true)]), [1]);
    }

    #[test]
    fn frontends_are_found_by_service_port() {
        let memory = Memory::default();
        for (address, port, protocol, service) in [
            ([10, 96, 0, 1], 53, UDP, 3),
            ([10, 96, 0, 1], 53, 6, 3),
            ([10, 96, 0, 2], 53, UDP, 4),
            ([0; 4], 30_053, UDP, 3),
        ] {
            let value = ServiceValue {
                service,
                ..ServiceValue::default()
            };
            let key = ServiceKey::new(address, port, protocol);
            memory.v4.services.clone().insert(&key, &value).expect("room");
        }
        for (address, flags) in [
            ([192, 0, 2, 1], address_flags::LOCAL | address_flags::NODE_PORTS),
            ([192, 0, 2, 2], address_flags::LOCAL),
            ([127, 0, 0, 1], address_flags::LOOPBACK_NODE_PORTS),
        ] {
            memory.v4.addresses.clone().insert(&address, &flags).expect("room");
        }
        let tables = memory.tables().v4;
        let mut frontends = Frontends::default();
        Directory::new(tables.services, tables.addresses)
            .add(&HashSet::from([3]), &mut frontends)
            .expect("readable");
        let expected = [([10, 96, 0, 1], 53), ([192, 0, 2, 1], 30_053), ([127, 0, 0, 1], 30_053)];
        assert_eq!(frontends.0, expected.map(SocketAddr::from).into());
        assert!(frontends.hold(&SocketAddr::from(expected[0])));
    }
}
