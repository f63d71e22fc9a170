//! What was counted of each service port.

use proxy_common::layout::ServiceCounter;

use super::names;
use crate::{
    dataplane::table::{TableError, Tables},
    plan::ServicePort,
};

/// Every service port that has a name, with its traffic: all of them are looked up, so this takes as long as there are many.
///
/// # Errors
/// If a table can't be read.
pub fn service_traffic(tables: &Tables) -> Result<Vec<(ServicePort, ServiceCounter)>, TableError> {
    let traffic = |(id, port)| Ok((port, tables.service_counts.get(&id)?.unwrap_or_default()));
    names(tables)?.into_iter().map(traffic).collect()
}
