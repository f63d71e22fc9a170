//! What was counted of each service port and endpoint, and refused, and the flows of service ports.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{Ipv6Addr, SocketAddr},
};

use proxy_common::{
    datapath::Reason,
    layout::{Backend, Counter, ServiceCounter},
};

use super::{census::flow_census, names};
use crate::{
    dataplane::{
        address::Address,
        table::{TableError, Tables},
    },
    plan::ServicePort,
};

/// Every service port that has a name, with its traffic: all of them are looked up, so this takes as long as there are many.
///
/// # Errors
/// If a table can't be read.
pub fn service_traffic(tables: &Tables) -> Result<Vec<ServiceTraffic>, TableError> {
    let traffic = |(id, port)| {
        let counted = tables.service_counts.get(&id)?.unwrap_or_default();
        Ok(ServiceTraffic { id, port, counted })
    };
    names(tables)?.into_iter().map(traffic).collect()
}

/// What each service port refused, by its id and the reason.
///
/// # Errors
/// If the table can't be read.
pub fn refusals(tables: &Tables) -> Result<Vec<(u32, Reason, Counter)>, TableError> {
    let mut refusals = Vec::new();
    tables.refusals.scan(&mut |key, counted| {
        let reason = Reason::ALL.get(key.reason as usize);
        refusals.extend(reason.map(|&reason| (key.service, reason, counted)));
    })?;
    Ok(refusals)
}

/// Traffic of the endpoints that there are, by id of their service port and address, where it is counted.
///
/// # Errors
/// If a table can't be read.
pub fn endpoint_traffic(tables: &Tables) -> Result<BTreeMap<(u32, SocketAddr), ServiceCounter>, TableError> {
    let mut endpoints = HashSet::new();
    tables
        .v4
        .slots
        .scan(&mut |_, backend| _ = endpoints.insert(address(&backend)))?;
    tables
        .v6
        .slots
        .scan(&mut |_, backend| _ = endpoints.insert(address(&backend)))?;
    let mut traffic = BTreeMap::new();
    tables.endpoint_counts.scan(&mut |key, counted| {
        let endpoint = SocketAddr::new(Ipv6Addr::from(key.address).to_canonical(), key.port);
        if endpoints.contains(&endpoint) {
            traffic.insert((key.service, endpoint), counted);
        }
    })?;
    Ok(traffic)
}

fn address<A: Address>(backend: &Backend<A>) -> SocketAddr {
    SocketAddr::new(backend.address.to_ip(), backend.port)
}

/// How many flows each service port has now, as the [`Census`](super::Census) counts them; none where it is absent. Looks at every
/// flow.
///
/// # Errors
/// If a table can't be read.
pub fn service_flows(tables: &Tables) -> Result<HashMap<ServicePort, u64>, TableError> {
    let by_id = flow_census(tables, false)?.services;
    let names = names(tables)?.into_iter();
    Ok(names.filter_map(|(id, port)| Some((port, *by_id.get(&id)?))).collect())
}

/// A service port and its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceTraffic {
    /// Its id
    pub id: u32,
    /// Its name
    pub port: ServicePort,
    /// Its traffic
    pub counted: ServiceCounter,
}
