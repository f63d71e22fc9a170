//! Compares the tables with the plan, entry by entry: what every entry is, and what it should be.
//!
//! It reads through the narrow door and knows nothing of how the tables came to be, so that it can say of pinned tables and
//! of those in memory whether whoever wrote them was right. Invariant: it never writes.

mod endpoints;
mod frontends;
mod needs;
mod node;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use proxy_common::layout::{Device, tables};
use serde::Serialize;

use self::{frontends::compare_frontends, needs::Needs, node::compare_node};
use super::{
    service_name,
    table::{TableError, Tables},
};
use crate::{
    model::ObjectName,
    plan::{Family, Frontend, NodePlan, ServicePort},
};

/// What the tables should hold.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The frontends of every Service
    pub frontends: &'a BTreeMap<ObjectName, Vec<Frontend>>,
    /// What the node is
    pub node: &'a NodePlan,
    /// Edges by interface index, the bits of XDP aside; `None` where nobody knows which devices there should be
    pub devices: Option<&'a BTreeMap<u32, Device>>,
}

/// What a difference means for packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// A packet may meet with something else than what is planned
    Wrong,
    /// Nothing leads there: it goes after [`GRACE`](super::programmer::GRACE), and only one that stays is a mistake
    Leftover,
    /// A flow may still need it: it goes when a collection finds that none does
    Spare,
}

/// An entry that isn't as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Difference {
    /// What it means
    pub severity: Severity,
    /// Name of the table
    pub table: &'static str,
    /// Which entry, such as `10.96.0.1:80/TCP`
    pub entry: String,
    /// What it belongs to, such as `Service default/web`, in the words of [`Problem`](crate::model::Problem)s; empty if
    /// that isn't known
    pub object: String,
    /// What is there
    pub found: String,
    /// What should be there
    pub wanted: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            table,
            entry,
            object,
            found,
            wanted,
            ..
        } = self;
        let of = if object.is_empty() { "" } else { " of " };
        write!(f, "{table}: {entry}{of}{object}: is {found}, should be {wanted}")
    }
}

/// In place of an entry that isn't there, or shouldn't be.
const NOTHING: &str = "nothing";

/// All differences, sorted: the worst first.
///
/// A writer at work meanwhile looks like one that left things half done: look again before believing it.
///
/// # Errors
/// If a table can't be read.
pub fn differences(tables: &Tables, wanted: &Wanted<'_>) -> Result<Vec<Difference>, TableError> {
    let mut report = Report::default();
    let names = Names::read(tables)?;
    let mut used = HashSet::new();
    let (mut frontend_needs, mut backend_needs) = (Needs::default(), Needs::default());
    let mut needs = (&mut frontend_needs, &mut backend_needs);
    compare_frontends(
        &tables.v4,
        Family::V4,
        wanted,
        &names,
        &mut used,
        &mut needs,
        &mut report,
    )?;
    compare_frontends(
        &tables.v6,
        Family::V6,
        wanted,
        &names,
        &mut used,
        &mut needs,
        &mut report,
    )?;
    compare_node(tables, wanted, needs.0, &mut report)?;
    names.compare(&used, &mut report);
    let frontend_filter = tables::FRONTEND_FILTER.name;
    frontend_needs.compare(frontend_filter, &tables.frontend_filter, &mut report)?;
    backend_needs.compare(tables::BACKEND_FILTER.name, &tables.backend_filter, &mut report)?;
    report.0.sort_unstable();
    Ok(report.0)
}

/// The differences so far.
#[derive(Default)]
struct Report(Vec<Difference>);

impl Report {
    fn add(
        &mut self,
        severity: Severity,
        (table, entry): (&'static str, impl fmt::Display),
        object: &str,
        (found, wanted): (impl fmt::Display, impl fmt::Display),
    ) {
        self.0.push(Difference {
            severity,
            table,
            entry: entry.to_string(),
            object: object.to_owned(),
            found: found.to_string(),
            wanted: wanted.to_string(),
        });
    }
}

/// The table `service_names`; `None` for what is no name.
struct Names(HashMap<u32, Option<ServicePort>>);

impl Names {
    fn read(tables: &Tables) -> Result<Self, TableError> {
        let mut names = HashMap::new();
        tables.service_names.scan(&mut |id, name| {
            names.insert(id, service_name::decode(&name));
        })?;
        Ok(Self(names))
    }

    fn of(&self, id: u32) -> Option<&ServicePort> {
        self.0.get(&id)?.as_ref()
    }

    /// Names that no frontend uses. One that is used and wrong shows at its frontends.
    fn compare(&self, used: &HashSet<u32>, report: &mut Report) {
        for (id, name) in self.0.iter().filter(|(id, _)| !used.contains(*id)) {
            let object = name.as_ref().map_or_else(String::new, service_of);
            let found = name.as_ref().map_or_else(|| "no name".to_owned(), full_name);
            let place = (tables::SERVICE_NAMES.name, format_args!("id {id}"));
            report.add(Severity::Spare, place, &object, (found, NOTHING));
        }
    }
}

/// The Service of a service port, in the words of problems.
fn service_of(port: &ServicePort) -> String {
    format!("Service {}/{}", port.namespace, port.service)
}

/// A service port with its protocol.
fn full_name(port: &ServicePort) -> String {
    format!("{port}/{}", port.protocol)
}
