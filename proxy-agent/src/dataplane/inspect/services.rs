//! The frontends in the tables.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use proxy_common::layout::{AFFINITY_NONE, Backend, SlotKey, service_flags};
use serde::Serialize;

use super::{names, refusals};
use crate::{
    dataplane::{
        address::{self, Address},
        features,
        table::{FamilyTables, TableError, Tables},
    },
    plan::{Kind, Masquerade, Protocol, ServicePort, TrafficPolicy},
};

/// A frontend. The counters are those of its service port, which all its frontends share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ServiceRow {
    /// Namespace of the Service; empty if the table has lost its name
    pub namespace: String,
    /// Name of the Service
    pub service: String,
    /// Name of the port
    pub port_name: String,
    /// Protocol; `None` for one that Services don't have
    pub protocol: Option<Protocol>,
    /// What kind of address it is
    pub kind: Kind,
    /// Virtual address; `None` for a nodePort
    pub address: Option<IpAddr>,
    /// Port
    pub port: u16,
    /// Endpoints for traffic policy Cluster
    pub cluster: Vec<SocketAddr>,
    /// Endpoints for traffic policy Local
    pub local: Vec<SocketAddr>,
    /// Whether an endpoint exists anywhere (behaviour.md 2.9)
    pub has_endpoints: bool,
    /// Which of the lists is used for whom
    pub policy: TrafficPolicy,
    /// Whose address the endpoint doesn't see
    pub masquerade: Masquerade,
    /// How long a client stays with its endpoint, in seconds; `None` without affinity
    pub affinity: Option<u32>,
    /// The only sources that are let in; empty lets in all
    pub sources: Vec<IpNet>,
    /// Flows begun
    pub connections: u64,
    /// Packets rewritten, both directions
    pub packets: u64,
    /// Bytes rewritten, both directions
    pub bytes: u64,
    /// Packets refused: rejected or dropped
    pub refused: u64,
}

impl ServiceRow {
    /// The service port; `None` if the table has lost its name.
    pub fn service_port(&self) -> Option<ServicePort> {
        let protocol = self.protocol.filter(|_| !self.service.is_empty())?;
        Some(ServicePort {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            port_name: self.port_name.clone(),
            protocol,
        })
    }
}

/// All frontends, sorted.
///
/// # Errors
/// If a table can't be read.
pub fn services(tables: &Tables) -> Result<Vec<ServiceRow>, TableError> {
    let names = names(tables)?;
    let mut refused = HashMap::new();
    for (service, _, counted) in refusals(tables)? {
        *refused.entry(service).or_default() += counted.packets;
    }
    let mut rows = Vec::new();
    family(tables, &tables.v4, &names, &refused, &mut rows)?;
    family(tables, &tables.v6, &names, &refused, &mut rows)?;
    rows.sort_unstable();
    Ok(rows)
}

fn family<A: Address>(
    tables: &Tables,
    family: &FamilyTables<A>,
    names: &HashMap<u32, ServicePort>,
    refused: &HashMap<u32, u64>,
    rows: &mut Vec<ServiceRow>,
) -> Result<(), TableError> {
    let slots: HashMap<SlotKey, Backend<A>> = family.slots.entries()?.into_iter().collect();
    // A slot that is missing was freed since its entry was read.
    let endpoints = |set: u32, count: u32| {
        let slots = (0..count).filter_map(|index| slots.get(&SlotKey { set, index }));
        slots
            .map(|backend| SocketAddr::new(backend.address.to_ip(), backend.port))
            .collect()
    };
    let mut sources: HashMap<u32, Vec<IpNet>> = HashMap::new();
    family.sources.scan(&mut |key, _| {
        sources
            .entry(key.source.service)
            .or_default()
            .extend(address::ip_range(&key));
    })?;
    for (key, value) in family.services.entries()? {
        if value.flags & service_flags::WILDCARD != 0 {
            continue;
        }
        let features = features::decode(value.flags);
        let mut let_in = sources
            .get(&value.service)
            .filter(|_| features.is_restricted)
            .cloned()
            .unwrap_or_default();
        let_in.sort_unstable();
        let name = names.get(&value.service);
        let counted = tables.service_counts.get(&value.service)?.unwrap_or_default();
        rows.push(ServiceRow {
            namespace: name.map(|name| name.namespace.clone()).unwrap_or_default(),
            service: name.map(|name| name.service.clone()).unwrap_or_default(),
            port_name: name.map(|name| name.port_name.clone()).unwrap_or_default(),
            protocol: Protocol::from_number(key.protocol),
            kind: features.kind,
            address: (key.address != A::default()).then(|| key.address.to_ip()),
            port: key.port,
            cluster: endpoints(value.cluster_set, value.cluster_count),
            local: endpoints(value.local_set, value.local_count),
            has_endpoints: features.has_endpoints,
            policy: features.policy,
            masquerade: features.masquerade,
            affinity: (value.affinity_timeout != AFFINITY_NONE).then_some(value.affinity_timeout),
            sources: let_in,
            connections: counted.connections,
            packets: counted.packets,
            bytes: counted.bytes,
            refused: refused.get(&value.service).copied().unwrap_or_default(),
        });
    }
    Ok(())
}
