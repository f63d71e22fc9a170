//! What the tables hold of the node itself: its addresses, the ranges of cluster addresses, its devices.

use std::collections::BTreeMap;

use proxy_common::layout::{Device, TableSpec, address_flags, device_flags, tables};

use super::{NOTHING, Report, Severity, Wanted, needs::Needs};
use crate::{
    dataplane::{
        address::Address,
        edge,
        programmer::node::service_ranges,
        table::{BoxedTable, TableError, Tables},
    },
    plan::NodePlan,
};

const NODE: &str = "this node";

pub(super) fn compare_node(
    tables: &Tables,
    wanted: &Wanted<'_>,
    needs: &mut Needs,
    report: &mut Report,
) -> Result<(), TableError> {
    compare_addresses(tables::ADDRESSES_V4, &tables.v4.addresses, wanted.node, needs, report)?;
    compare_addresses(tables::ADDRESSES_V6, &tables.v6.addresses, wanted.node, needs, report)?;
    let found = tables.service_ranges.get(&0)?.unwrap_or_default();
    let (planned, _) = service_ranges(&wanted.node.service_ranges);
    if found != planned {
        let texts = (format!("{found:?}"), format!("{planned:?}"));
        report.add(Severity::Wrong, (tables::SERVICE_RANGES.name, "all"), NODE, texts);
    }
    let devices: BTreeMap<u32, Device> = tables.devices.entries()?.into_iter().collect();
    for device in devices.values() {
        needs.add_some(&device.masquerade_v4);
        needs.add_some(&device.masquerade_v6);
    }
    if let Some(planned) = wanted.devices {
        compare_devices(&devices, planned, report);
    }
    Ok(())
}

fn compare_addresses<A: Address>(
    spec: TableSpec,
    table: &BoxedTable<A, u32>,
    plan: &NodePlan,
    needs: &mut Needs,
    report: &mut Report,
) -> Result<(), TableError> {
    let mut planned: BTreeMap<A, u32> = BTreeMap::new();
    for (addresses, flags) in [
        (&plan.local_addresses, 0),
        (&plan.node_port_addresses, address_flags::NODE_PORTS),
        (&plan.loopback_node_port_addresses, address_flags::LOOPBACK_NODE_PORTS),
    ] {
        for address in addresses.iter().filter_map(|address| A::from_ip(*address)) {
            *planned.entry(address).or_insert(address_flags::LOCAL) |= flags;
            if flags != 0 {
                needs.add(&address);
            }
        }
    }
    let mut found: BTreeMap<A, u32> = table.entries()?.into_iter().collect();
    let text = |flags: Option<u32>| flags.map_or_else(|| NOTHING.to_owned(), |flags| format!("flags {flags:#x}"));
    for (address, flags) in planned {
        let found = found.remove(&address);
        if found != Some(flags) {
            let texts = (text(found), text(Some(flags)));
            report.add(Severity::Wrong, (spec.name, address.to_ip()), NODE, texts);
        }
    }
    for (address, flags) in found {
        report.add(
            Severity::Wrong,
            (spec.name, address.to_ip()),
            NODE,
            (text(Some(flags)), NOTHING),
        );
    }
    Ok(())
}

/// Whether XDP is attached is known where it is done: its bits are left out.
fn compare_devices(found: &BTreeMap<u32, Device>, planned: &BTreeMap<u32, Device>, report: &mut Report) {
    let plain = |device: &Device| Device {
        flags: device.flags & !device_flags::EXPRESS_MASK,
        ..*device
    };
    let text = |device: Option<&Device>| device.map_or_else(|| NOTHING.to_owned(), |device| format!("{device:?}"));
    let mut found = found.clone();
    for (index, device) in planned {
        let there = found.remove(index);
        if there.as_ref().map(plain) != Some(plain(device)) {
            let object = format!("device {}", edge::name_of(device));
            let texts = (text(there.as_ref()), text(Some(device)));
            report.add(Severity::Wrong, (tables::DEVICES.name, index), &object, texts);
        }
    }
    for (index, device) in &found {
        let object = format!("device {}", edge::name_of(device));
        report.add(
            Severity::Wrong,
            (tables::DEVICES.name, index),
            &object,
            (text(Some(device)), NOTHING),
        );
    }
}
