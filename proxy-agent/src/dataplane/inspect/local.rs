//! Service ports that this node turns traffic away from, because a traffic policy is Local and no endpoint is here.

use std::collections::BTreeSet;

use proxy_common::layout::service_flags;

use crate::{
    dataplane::{
        features,
        table::{FamilyTables, TableError, Tables},
    },
    plan::{Family, Kind, TrafficPolicy},
};

/// How many service ports have endpoints, but none for traffic that policy Local keeps on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnservedLocal {
    /// Family of the frontends
    pub family: Family,
    /// By `internalTrafficPolicy`
    pub internal: usize,
    /// By `externalTrafficPolicy`
    pub external: usize,
}

/// Counts them (behaviour.md 8.8: `no_local_endpoints`), by family.
///
/// # Errors
/// If a table can't be read.
pub fn unserved_local(tables: &Tables) -> Result<[UnservedLocal; 2], TableError> {
    Ok([of_family(Family::V4, &tables.v4)?, of_family(Family::V6, &tables.v6)?])
}

fn of_family<A>(family: Family, tables: &FamilyTables<A>) -> Result<UnservedLocal, TableError> {
    let (mut internal, mut external) = (BTreeSet::new(), BTreeSet::new());
    tables.services.scan(&mut |_, value| {
        let features = features::decode(value.flags);
        let is_unserved = value.flags & service_flags::WILDCARD == 0
            && features.policy != TrafficPolicy::Cluster
            && features.has_endpoints
            && value.local_count == 0;
        if is_unserved {
            let ports = if features.kind == Kind::ClusterIP {
                &mut internal
            } else {
                &mut external
            };
            ports.insert(value.service);
        }
    })?;
    Ok(UnservedLocal {
        family,
        internal: internal.len(),
        external: external.len(),
    })
}
