//! The tables of the node's own addresses, of its pods' ranges, and of the ranges that cluster addresses are from.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use proxy_common::layout::{LOCAL_PODS, MAX_SERVICE_RANGES, ServiceRanges, address_flags};

use super::{filter::Filter, sources::Sources};
use crate::{
    dataplane::{
        address::{self, Address},
        table::{BoxedTable, TableError},
    },
    plan::{LocalSources, NodePlan},
};

/// The node's own addresses of one family.
pub(super) struct Addresses<A> {
    table: BoxedTable<A, u32>,
    installed: HashMap<A, u32>,
}

impl<A: Address> Addresses<A> {
    /// Reads what is pinned.
    pub(super) fn load(table: BoxedTable<A, u32>, frontend_filter: &mut Filter) -> Result<Self, TableError> {
        let installed: HashMap<A, u32> = table.entries()?.into_iter().collect();
        for address in installed.iter().filter(|(_, flags)| has_node_ports(**flags)) {
            frontend_filter.hold(address.0);
        }
        Ok(Self { table, installed })
    }

    /// Makes the table hold the node's addresses.
    pub(super) fn set(
        &mut self,
        plan: &NodePlan,
        frontend_filter: &mut Filter,
        now: Duration,
    ) -> Result<(), TableError> {
        let of_family = |addresses: &BTreeSet<IpAddr>| -> BTreeSet<A> {
            addresses.iter().filter_map(|address| A::from_ip(*address)).collect()
        };
        let (local, node_ports) = (of_family(&plan.local_addresses), of_family(&plan.node_port_addresses));
        let loopback = of_family(&plan.loopback_node_port_addresses);
        let own: BTreeSet<A> = local.iter().chain(&node_ports).chain(&loopback).copied().collect();
        for address in &own {
            let flag = |set: &BTreeSet<A>, flag: u32| if set.contains(address) { flag } else { 0 };
            let flags = address_flags::LOCAL
                | flag(&node_ports, address_flags::NODE_PORTS)
                | flag(&loopback, address_flags::LOOPBACK_NODE_PORTS);
            self.write(*address, flags, frontend_filter, now)?;
        }
        let gone = |address: &&A| !own.contains(*address);
        for address in self.installed.keys().filter(gone).copied().collect::<Vec<_>>() {
            self.table.remove(&address)?;
            if self.installed.remove(&address).is_some_and(has_node_ports) {
                frontend_filter.release(&address, now);
            }
        }
        Ok(())
    }

    fn write(&mut self, address: A, flags: u32, filter: &mut Filter, now: Duration) -> Result<(), TableError> {
        if has_node_ports(flags) {
            filter.admit(&address, now)?;
        }
        let old = self.installed.get(&address).copied();
        if old == Some(flags) {
            return Ok(());
        }
        self.table.insert(&address, &flags)?;
        self.installed.insert(address, flags);
        match (old.is_some_and(has_node_ports), has_node_ports(flags)) {
            (false, true) => filter.hold(&address),
            (true, false) => filter.release(&address, now),
            _ => {}
        }
        Ok(())
    }
}

const fn has_node_ports(flags: u32) -> bool {
    flags & (address_flags::NODE_PORTS | address_flags::LOOPBACK_NODE_PORTS) != 0
}

/// Makes `sources` hold the ranges of the cluster's pods.
pub(super) fn set_local_pods<A: Address>(sources: &mut Sources<A>, plan: &LocalSources) -> Result<(), TableError> {
    let ranges: &[IpNet] = match plan {
        LocalSources::Ranges(ranges) => ranges,
        LocalSources::Interface(_) | LocalSources::InterfacePrefix(_) => &[],
    };
    sources.add(LOCAL_PODS, ranges)?;
    sources.keep(LOCAL_PODS, ranges)
}

/// Makes the table hold the ranges; gives those that it has no room for.
pub(super) fn set_service_ranges(
    table: &mut BoxedTable<u32, ServiceRanges>,
    ranges: &[IpNet],
) -> Result<Vec<IpNet>, TableError> {
    let (wanted, left) = service_ranges(ranges);
    if table.get(&0)? != Some(wanted) {
        table.insert(&0, &wanted)?;
    }
    Ok(left)
}

/// The entry for these ranges, and those that it has no room for.
pub(in crate::dataplane) fn service_ranges(ranges: &[IpNet]) -> (ServiceRanges, Vec<IpNet>) {
    let mut wanted = ServiceRanges::default();
    let mut left = fill::<[u8; 4]>(&mut wanted, ranges);
    left.extend(fill::<[u8; 16]>(&mut wanted, ranges));
    (wanted, left)
}

fn fill<A: Address>(wanted: &mut ServiceRanges, ranges: &[IpNet]) -> Vec<IpNet> {
    let of_family = || {
        let keyed = ranges.iter().map(|range| (*range, address::range::<A>(*range)));
        keyed.filter_map(|(range, written)| Some((range, written?)))
    };
    for (place, (_, range)) in A::service_ranges(wanted).iter_mut().zip(of_family()) {
        *place = range;
    }
    of_family().skip(MAX_SERVICE_RANGES).map(|(range, _)| range).collect()
}
