//! What was counted of each service port, and its flows.

use std::collections::HashMap;

use proxy_common::layout::{ServiceCounter, flow_flags};

use super::names;
use crate::{
    dataplane::table::{FamilyTables, TableError, Tables},
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

/// How many flows each service port has now, open or about to end; none where it is absent. Looks at every flow.
///
/// # Errors
/// If a table can't be read.
pub fn service_flows(tables: &Tables) -> Result<HashMap<ServicePort, u64>, TableError> {
    let mut by_id = HashMap::new();
    count(&tables.v4, &mut by_id)?;
    count(&tables.v6, &mut by_id)?;
    let names = names(tables)?.into_iter();
    Ok(names.filter_map(|(id, port)| Some((port, *by_id.get(&id)?))).collect())
}

fn count<A>(family: &FamilyTables<A>, by_id: &mut HashMap<u32, u64>) -> Result<(), TableError> {
    family.flows.scan(&mut |_, value| {
        // One half of each flow is the client's.
        if value.flags & (flow_flags::REPLY | flow_flags::MASQUERADE) == 0 {
            *by_id.entry(value.service).or_default() += 1;
        }
    })
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
