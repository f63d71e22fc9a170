//! The flows in the tables, one row for both halves.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use proxy_common::{
    datapath::flow::{State, masquerade_key, twin_key, twin_value},
    layout::{FlowKey, FlowValue, TICK_SHIFT, flow_flags, history},
};
use serde::Serialize;

use super::names;
use crate::{
    dataplane::{
        address::Address,
        collect,
        table::{FamilyTables, TableError, Tables},
    },
    plan::{Protocol, ServicePort},
};

/// A flow: a client's packets to a frontend, sent to a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FlowRow {
    /// Protocol; `None` for one that Services don't have
    pub protocol: Option<Protocol>,
    /// The client
    pub client: SocketAddr,
    /// What it talks to
    pub frontend: SocketAddr,
    /// What answers; the frontend where `conntrack` is set
    pub backend: SocketAddr,
    /// What the backend sees in place of the client, if that is another
    pub masquerade: Option<SocketAddr>,
    /// The kernel's conntrack translates it, as it did before this node was taken over
    pub conntrack: bool,
    /// `opening`, `answered`, `established`, `half-closed` or `closing`
    pub state: &'static str,
    /// Seconds since the last packet
    pub idle_seconds: u64,
    /// Service port as `namespace/name:port_name`; `None` if the table has lost its name
    pub service: Option<String>,
}

/// What makes a flow another one: protocol, client, frontend and backend.
pub type FlowIdentity = (Option<Protocol>, SocketAddr, SocketAddr, SocketAddr);

impl FlowRow {
    /// What it is known by from one look to the next.
    pub const fn identity(&self) -> FlowIdentity {
        (self.protocol, self.client, self.frontend, self.backend)
    }
}

/// All flows, sorted; `now` is the time since boot.
///
/// # Errors
/// If a table can't be read.
pub fn flows(tables: &Tables, now: Duration) -> Result<Vec<FlowRow>, TableError> {
    let names = names(tables)?;
    let mut rows = Vec::new();
    family(&tables.v4, &names, now, &mut rows)?;
    family(&tables.v6, &names, now, &mut rows)?;
    rows.sort_unstable();
    Ok(rows)
}

fn family<A: Address>(
    family: &FamilyTables<A>,
    names: &HashMap<u32, ServicePort>,
    now: Duration,
    rows: &mut Vec<FlowRow>,
) -> Result<(), TableError> {
    let halves: HashMap<FlowKey<A>, FlowValue<A>> = family.flows.entries()?.into_iter().collect();
    for (key, value) in &halves {
        if value.flags & flow_flags::MASQUERADE != 0 {
            continue;
        }
        if value.flags & flow_flags::REPLY == 0 {
            rows.push(row(key, value, &halves, names, now));
        } else if !halves.contains_key(&twin_key(key, value)) {
            // The client's half was lost; the reply's knows it, too.
            let lost = FlowValue {
                history: history::SEEN | history::CONFIRMED,
                ..twin_value(key, value)
            };
            rows.push(row(&twin_key(key, value), &lost, &halves, names, now));
        }
    }
    Ok(())
}

/// The row of a client's half.
fn row<A: Address>(
    key: &FlowKey<A>,
    value: &FlowValue<A>,
    halves: &HashMap<FlowKey<A>, FlowValue<A>>,
    names: &HashMap<u32, ServicePort>,
    now: Duration,
) -> FlowRow {
    let twin = halves.get(&twin_key(key, value));
    let last_seen = twin.map_or(value.last_seen, |twin| twin.last_seen.max(value.last_seen));
    let idle_ticks = u64::from(collect::tick(now).saturating_sub(last_seen));
    let masquerade = halves.get(&masquerade_key(key, value)).filter(|masquerade| {
        masquerade.flags & (flow_flags::MASQUERADE | flow_flags::UNRESOLVED) == flow_flags::MASQUERADE
    });
    FlowRow {
        protocol: Protocol::from_number(key.protocol),
        client: SocketAddr::new(key.source.to_ip(), key.source_port),
        frontend: SocketAddr::new(key.destination.to_ip(), key.destination_port),
        backend: SocketAddr::new(value.address.to_ip(), value.port),
        conntrack: value.flags & flow_flags::CONNTRACK != 0,
        masquerade: masquerade.map(|masquerade| SocketAddr::new(masquerade.address.to_ip(), masquerade.port)),
        state: match State::of(key.protocol, value, twin) {
            State::Opening => "opening",
            State::Answered => "answered",
            State::Established => "established",
            State::HalfClosed => "half-closed",
            State::Closing => "closing",
        },
        idle_seconds: (idle_ticks << TICK_SHIFT) / 1_000_000_000,
        service: names.get(&value.service).map(ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::{EGRESS, INGRESS};

    use super::*;
    use crate::dataplane::{inspect::fixture::publish_web, memory::Memory, table::Table as _};

    const CLIENT: ([u8; 4], u16) = ([10, 244, 0, 5], 40000);
    const FRONTEND: ([u8; 4], u16) = ([10, 96, 0, 1], 80);
    const BACKEND: ([u8; 4], u16) = ([10, 244, 1, 7], 8080);

    fn listed(memory: &Memory) -> Vec<FlowRow> {
        flows(&memory.tables(), Duration::from_nanos(1010 << TICK_SHIFT)).expect("readable")
    }

    #[test]
    fn both_halves_and_the_masquerade_are_one_row() {
        let memory = Memory::default();
        publish_web(&memory, 3);
        let mut table = memory.v4.flows.clone();
        let key = FlowKey::new(INGRESS, 6, CLIENT, FRONTEND);
        let value = FlowValue {
            address: BACKEND.0,
            port: BACKEND.1,
            other_port: CLIENT.1,
            service: 3,
            last_seen: 1000,
            history: history::SEEN | history::CONFIRMED,
            flags: flow_flags::MASQUERADED,
            ..FlowValue::default()
        };
        let reply = FlowValue {
            history: history::SEEN | history::CONFIRMED,
            ..twin_value(&key, &value)
        };
        table.insert(&twin_key(&key, &value), &reply).expect("room");
        let lost = listed(&memory);
        table.insert(&key, &value).expect("room");
        let hidden = FlowValue {
            address: [192, 0, 2, 1],
            port: 50000,
            other_port: BACKEND.1,
            flags: flow_flags::MASQUERADE,
            ..value
        };
        let middle = FlowKey::new(EGRESS, 6, CLIENT, BACKEND);
        table.insert(&middle, &hidden).expect("room");
        table
            .insert(&twin_key(&middle, &hidden), &twin_value(&middle, &hidden))
            .expect("room");
        let row = FlowRow {
            protocol: Some(Protocol::Tcp),
            client: CLIENT.into(),
            frontend: FRONTEND.into(),
            backend: BACKEND.into(),
            conntrack: false,
            masquerade: Some(([192, 0, 2, 1], 50000).into()),
            state: "established",
            idle_seconds: 10,
            service: Some("default/web:http".to_owned()),
        };
        assert_eq!(listed(&memory), std::slice::from_ref(&row));
        // Before, only the half of the replies was there.
        let row = FlowRow {
            masquerade: None,
            ..row
        };
        assert_eq!(lost, [row]);
    }
}
