//! The entries of connections that are left to conntrack.
//!
//! Four of each: two for the packets at the client's edge, and two that only keep the 5-tuple which the server answers to, at
//! the client's edge and at the server's, from flows and masquerades of ours.

use std::{collections::HashSet, net::SocketAddr};

use proxy_common::{
    datapath::flow::{left_to_conntrack, twin_key},
    layout::{EGRESS, FlowKey, FlowValue, INGRESS, ServiceKey, flow_flags},
};

use super::Way;
use crate::dataplane::{
    address::Address,
    table::{BoxedTable, FamilyTables, TableError, Tables},
};

/// How old the time in an entry may grow, in ticks, that no packet keeps: well below any flow's timeout.
const STALE: u32 = 15;

/// What becomes of a flow of ours for a connection that conntrack translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Conntrack's is an old one
    OursStays,
    /// Ours was opened while the connection was conntrack's already
    OursGivesWay,
}

/// The tables that these entries are in, and those of the frontends they are for.
pub(super) struct Entries {
    v4: FamilyTables<[u8; 4]>,
    v6: FamilyTables<[u8; 16]>,
}

impl Entries {
    pub(super) fn new(tables: Tables) -> Self {
        Self {
            v4: tables.v4,
            v6: tables.v6,
        }
    }

    /// Id of the service port whose frontend a client's packets are for.
    pub(super) fn service(&self, original: &Way) -> Result<Option<u32>, TableError> {
        match original.destination {
            SocketAddr::V4(_) => service(&self.v4, original),
            SocketAddr::V6(_) => service(&self.v6, original),
        }
    }

    /// Leaves a connection to conntrack, or sees to it that it still is; `false` if it is a flow of ours.
    pub(super) fn leave(
        &mut self,
        original: &Way,
        reply: &Way,
        service: u32,
        standing: Standing,
        tick: u32,
    ) -> Result<bool, TableError> {
        match original.source {
            SocketAddr::V4(_) => leave(&mut self.v4.flows, (original, reply), service, standing, tick),
            SocketAddr::V6(_) => leave(&mut self.v6.flows, (original, reply), service, standing, tick),
        }
    }

    /// Removes the entries of a connection.
    pub(super) fn forget(&mut self, original: &Way, reply: &Way) -> Result<(), TableError> {
        match original.source {
            SocketAddr::V4(_) => forget(&mut self.v4.flows, (original, reply)),
            SocketAddr::V6(_) => forget(&mut self.v6.flows, (original, reply)),
        }
    }

    /// Removes the entries of all but these connections: those that ended while no agent ran.
    pub(super) fn forget_others<'a>(
        &mut self,
        left: impl Iterator<Item = (&'a Way, &'a Way)> + Clone,
    ) -> Result<(), TableError> {
        forget_others(&mut self.v4.flows, left.clone())?;
        forget_others(&mut self.v6.flows, left)
    }
}

type Flows<A> = BoxedTable<FlowKey<A>, FlowValue<A>>;

fn service<A: Address>(family: &FamilyTables<A>, original: &Way) -> Result<Option<u32>, TableError> {
    let Some(address) = A::from_ip(original.destination.ip()) else {
        return Ok(None);
    };
    for address in [address, A::default()] {
        let key = ServiceKey::new(address, original.destination.port(), original.protocol);
        if let Some(frontend) = family.services.get(&key)? {
            return Ok(Some(frontend.service));
        }
    }
    Ok(None)
}

fn leave<A: Address>(
    flows: &mut Flows<A>,
    ways: (&Way, &Way),
    service: u32,
    standing: Standing,
    tick: u32,
) -> Result<bool, TableError> {
    let Some(keys) = Keys::new(ways) else {
        return Ok(false);
    };
    match flows.get(&keys.client)? {
        Some(value) if is_left(&value) && value.service == service => {}
        Some(ours) if !is_left(&ours) && standing == Standing::OursStays => return Ok(false),
        there => {
            if let Some(ours) = there.filter(|value| !is_left(value)) {
                flows.remove(&twin_key(&keys.client, &ours))?;
            }
            let reply = left_to_conntrack(&keys.server, service, tick, flow_flags::REPLY);
            flows.insert(&keys.server, &reply)?;
            flows.insert(&keys.client, &left_to_conntrack(&keys.client, service, tick, 0))?;
        }
    }
    for key in keys.kept {
        // A flow of ours that has the place has had it from before.
        let is_missing = flows
            .get(&key)?
            .is_none_or(|value| is_left(&value) && tick.saturating_sub(value.last_seen) > STALE);
        if is_missing {
            let flags = flow_flags::REPLY | flow_flags::MASQUERADE;
            flows.insert(&key, &left_to_conntrack(&key, 0, tick, flags))?;
        }
    }
    Ok(true)
}

fn forget<A: Address>(flows: &mut Flows<A>, ways: (&Way, &Way)) -> Result<(), TableError> {
    let Some(keys) = Keys::new(ways) else { return Ok(()) };
    // A packet that comes meanwhile may restore one half from the other.
    for key in keys.all().into_iter().chain([keys.server]) {
        if flows.get(&key)?.is_some_and(|value| is_left(&value)) {
            flows.remove(&key)?;
        }
    }
    Ok(())
}

fn forget_others<'a, A: Address>(
    flows: &mut Flows<A>,
    left: impl Iterator<Item = (&'a Way, &'a Way)>,
) -> Result<(), TableError> {
    let wanted: HashSet<FlowKey<A>> = left.filter_map(Keys::new).flat_map(|keys| keys.all()).collect();
    let mut others = Vec::new();
    flows.scan(&mut |key, value| {
        if is_left(&value) && !wanted.contains(&key) {
            others.push(key);
        }
    })?;
    for key in others {
        flows.remove(&key)?;
    }
    Ok(())
}

fn is_left<A>(value: &FlowValue<A>) -> bool {
    value.flags & flow_flags::CONNTRACK != 0
}

/// The keys of a connection's entries.
struct Keys<A> {
    /// The client's packets, at its edge
    client: FlowKey<A>,
    /// What answers them there
    server: FlowKey<A>,
    /// What the server sends, at either edge
    kept: [FlowKey<A>; 2],
}

impl<A: Address> Keys<A> {
    /// Of the client's packets and the server's; `None` of another family.
    fn new((original, reply): (&Way, &Way)) -> Option<Self> {
        let end = |end: SocketAddr| Some((A::from_ip(end.ip())?, end.port()));
        let key = |direction, source, destination| {
            Some(FlowKey::new(
                direction,
                original.protocol,
                end(source)?,
                end(destination)?,
            ))
        };
        Some(Self {
            client: key(INGRESS, original.source, original.destination)?,
            server: key(EGRESS, original.destination, original.source)?,
            kept: [
                key(EGRESS, reply.source, reply.destination)?,
                key(INGRESS, reply.source, reply.destination)?,
            ],
        })
    }

    /// All, with those of the halves that the hooks add where packets pass.
    fn all(&self) -> [FlowKey<A>; 6] {
        let [at_client, at_server] = self.kept;
        let twin = |key: &FlowKey<A>| twin_key(key, &left_to_conntrack(key, 0, 0, 0));
        let twins = [twin(&at_client), twin(&at_server)];
        [self.server, self.client, at_client, at_server, twins[0], twins[1]]
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::{
        datapath::flow::twin_value,
        layout::{ServiceValue, history},
    };

    use super::*;
    use crate::dataplane::{memory::Memory, table::Table as _};

    const TICK: u32 = 1000;

    fn way(source: &str, destination: &str) -> Way {
        Way {
            protocol: 17,
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
        }
    }

    /// A masqueraded connection.
    fn ways() -> [(Way, Way); 2] {
        [
            (
                way("203.0.113.9:40000", "192.0.2.1:30053"),
                way("10.244.1.7:53", "192.0.2.1:50000"),
            ),
            (
                way("[2001:db8::9]:40000", "[2001:db8::1]:30053"),
                way("[fd00::7]:53", "[2001:db8::1]:50000"),
            ),
        ]
    }

    fn key((original, reply): &(Way, Way)) -> Keys<[u8; 4]> {
        Keys::new((original, reply)).expect("IPv4")
    }

    fn left(entries: &mut Entries, ways: &(Way, Way), service: u32, standing: Standing, tick: u32) -> bool {
        entries.leave(&ways.0, &ways.1, service, standing, tick).expect("room")
    }

    /// A flow of ours from the same client to the same frontend.
    fn open_ours(memory: &Memory) -> [FlowKey<[u8; 4]>; 2] {
        let client = key(&ways()[0]).client;
        let value = FlowValue {
            address: [10, 244, 1, 8],
            port: 53,
            other_port: client.source_port,
            service: 3,
            last_seen: TICK,
            history: history::SEEN,
            ..FlowValue::default()
        };
        let twin = twin_key(&client, &value);
        let mut flows = memory.v4.flows.clone();
        flows.insert(&client, &value).expect("room");
        flows.insert(&twin, &twin_value(&client, &value)).expect("room");
        [client, twin]
    }

    #[test]
    fn what_is_left_is_forgotten_again() {
        for ways in ways() {
            let memory = Memory::default();
            let count = || {
                memory.v4.flows.entries().expect("readable").len() + memory.v6.flows.entries().expect("readable").len()
            };
            let mut entries = Entries::new(memory.tables());
            assert!(left(&mut entries, &ways, 0, Standing::OursStays, TICK));
            assert_eq!(count(), 4);
            // Its service port is known later.
            assert!(left(&mut entries, &ways, 3, Standing::OursStays, TICK));
            assert_eq!(count(), 4);
            entries
                .forget_others([(&ways.0, &ways.1)].into_iter())
                .expect("readable");
            assert_eq!(count(), 4);
            entries.forget(&ways.0, &ways.1).expect("readable");
            assert_eq!(count(), 0);
            assert!(left(&mut entries, &ways, 3, Standing::OursStays, TICK));
            entries.forget_others(std::iter::empty()).expect("readable");
            assert_eq!(count(), 0);
        }
    }

    #[test]
    fn places_are_kept_for_as_long_as_conntrack_has_the_connection() {
        let memory = Memory::default();
        let mut entries = Entries::new(memory.tables());
        let ways = &ways()[0];
        left(&mut entries, ways, 3, Standing::OursStays, TICK);
        let [_, at_server] = key(ways).kept;
        let seen = || {
            memory
                .v4
                .flows
                .get(&at_server)
                .expect("readable")
                .map(|value| value.last_seen)
        };
        left(&mut entries, ways, 3, Standing::OursStays, TICK + STALE + 1);
        assert_eq!(seen(), Some(TICK + STALE + 1));
        memory.v4.flows.clone().remove(&at_server).expect("readable");
        left(&mut entries, ways, 3, Standing::OursStays, TICK + STALE + 2);
        assert_eq!(seen(), Some(TICK + STALE + 2));
    }

    /// A conntrack entry may be older than the flow that a client opened from the same port.
    #[test]
    fn a_flow_of_ours_stays_unless_it_came_too_early() {
        let memory = Memory::default();
        let [client, twin] = open_ours(&memory);
        let before = memory.v4.flows.entries().expect("readable");
        let mut entries = Entries::new(memory.tables());
        let ways = &ways()[0];
        assert!(!left(&mut entries, ways, 3, Standing::OursStays, TICK));
        assert_eq!(memory.v4.flows.entries().expect("readable").len(), before.len());
        entries.forget(&ways.0, &ways.1).expect("readable");
        entries.forget_others(std::iter::empty()).expect("readable");
        assert_eq!(memory.v4.flows.entries().expect("readable").len(), before.len());

        assert!(left(&mut entries, ways, 3, Standing::OursGivesWay, TICK));
        let flows = &memory.v4.flows;
        assert!(
            flows
                .get(&client)
                .expect("readable")
                .is_some_and(|value| is_left(&value))
        );
        assert_eq!(flows.get(&twin).expect("readable"), None);
    }

    #[test]
    fn frontends_are_addresses_or_ports_of_the_node() {
        let memory = Memory::default();
        let entries = Entries::new(memory.tables());
        let [(original, _), _] = ways();
        assert_eq!(entries.service(&original).expect("readable"), None);
        let frontend = |service| ServiceValue {
            service,
            ..ServiceValue::default()
        };
        let mut services = memory.v4.services.clone();
        services
            .insert(&ServiceKey::new([0; 4], 30_053, 17), &frontend(5))
            .expect("room");
        assert_eq!(entries.service(&original).expect("readable"), Some(5));
        services
            .insert(&ServiceKey::new([192, 0, 2, 1], 30_053, 17), &frontend(6))
            .expect("room");
        assert_eq!(entries.service(&original).expect("readable"), Some(6));
    }
}
