//! What stands in the tables, in the words of people: for the reading commands, which need no agent and no API server.

mod census;
mod event;
#[cfg(test)]
mod fixture;
mod flows;
mod load;
mod local;
mod programs;
mod services;
mod status;
mod traffic;

pub use census::{Census, Masquerades, census};
pub use event::{EventRow, EventWords, Happening, Place};
pub use flows::{FlowIdentity, FlowRow, flows};
pub use load::{ServiceLoad, service_loads};
pub use local::{UnservedLocal, unserved_local};
pub use programs::{ProgramRuns, program_runs};
pub use services::{ServiceRow, services};
pub use status::{
    AgentStatus, DeviceStatus, ReasonCount, SocketStatus, Status, TableFill, reason_counters, sockets, status,
    table_fills,
};
pub use traffic::{ServiceTraffic, endpoint_traffic, refusals, service_flows, service_traffic};

use std::collections::HashMap;

use super::{
    service_name,
    table::{TableError, Tables},
};
use crate::plan::ServicePort;

/// Names of service ports by id.
fn names(tables: &Tables) -> Result<HashMap<u32, ServicePort>, TableError> {
    let mut names = HashMap::new();
    tables.service_names.scan(&mut |id, name| {
        names.extend(service_name::decode(&name).map(|port| (id, port)));
    })?;
    Ok(names)
}
