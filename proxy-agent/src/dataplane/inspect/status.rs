//! What is pinned and attached, and how full it is.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::{Context as _, Result};
use proxy_common::{
    datapath::Reason,
    layout::{
        self, AddressBytes, Counter, FlowKey, FlowValue, HOST_DEVICE, TableKind, TableSpec, device_flags, flow_flags,
        role, tables,
    },
};
use serde::Serialize;

use crate::dataplane::{
    attach,
    cgroup::{self, Mode, SocketHook},
    edge::{self, Role, Why},
    generation::{self, PreviousStatus},
    hook::Hook,
    kube_proxy::{self, Leftover},
    pin::PinDirectory,
    table::{BoxedTable, FamilyTables, TableError, Tables},
    xdp::{self, Express},
};

/// All there is to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Where it is pinned
    pub pin_directory: PathBuf,
    /// Version of the tables' layout
    pub layout_version: u32,
    /// What is left of the tables before these; absent if nothing is
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<PreviousStatus>,
    /// The agent
    pub agent: AgentStatus,
    /// What is attached for processes
    pub sockets: SocketStatus,
    /// Edges and what is attached there
    pub devices: Vec<DeviceStatus>,
    /// How full the tables are
    pub tables: Vec<TableFill>,
    /// Packets by what happened to them
    pub reasons: Vec<ReasonCount>,
    /// What kube-proxy left in this network namespace
    pub kube_proxy: Vec<Leftover>,
    /// Connections that the kernel's conntrack translates, as it did before this node was taken over
    pub left_to_conntrack: u64,
}

/// Whether an agent keeps the tables up to date.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentStatus {
    /// Whether one has the pin directory locked
    pub running: bool,
    /// Its process id, where this process namespace can see it
    pub process: Option<u32>,
}

/// The hooks of sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SocketStatus {
    /// Whose sockets are served
    pub mode: Mode,
    /// Those that a program is attached to
    pub attached: Vec<SocketHook>,
    /// Those that none is attached to
    pub missing: Vec<SocketHook>,
    /// The cgroup that they are attached to, where it can be seen; else its id
    pub cgroup: Option<String>,
    /// The addresses that packets of the host's processes to other machines have
    pub host_addresses: Vec<IpAddr>,
}

/// An edge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceStatus {
    /// Interface index
    pub index: u32,
    /// Interface name
    pub name: String,
    /// What it leads to; `None` for a number that is no role
    pub role: Option<Role>,
    /// Why it has that role
    pub why: Option<String>,
    /// What its packets begin with: `ethernet` or `none`
    pub link_header: &'static str,
    /// Whether what arrives there counts as sent by pods of this node
    pub local_traffic: bool,
    /// How the ingress program is attached: `tcx`, `clsact`, or not at all
    pub ingress: Option<&'static str>,
    /// How the egress program is attached
    pub egress: Option<&'static str>,
    /// How XDP is attached: `native`, `generic`, or not at all
    pub xdp: Option<Express>,
    /// That, or why it isn't attached; `None` where it has no place: at pods and overlays
    pub xdp_why: Option<String>,
    /// Address of masqueraded IPv4 packets that leave there
    pub masquerade_v4: Option<Ipv4Addr>,
    /// Address of masqueraded IPv6 packets that leave there
    pub masquerade_v6: Option<Ipv6Addr>,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableFill {
    /// Name of the table
    pub name: &'static str,
    /// Entries in it
    pub entries: u64,
    /// Entries it has room for
    pub max_entries: u32,
    /// Whether it gives up its oldest entry when it is full
    pub evicts: bool,
}

impl TableFill {
    /// How much of the room is taken, in percent.
    pub fn percent(&self) -> u64 {
        self.entries * 100 / u64::from(self.max_entries.max(1))
    }
}

/// Packets that met one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReasonCount {
    /// The reason's number, key of `reason_counts`
    pub number: u32,
    /// The reason
    pub reason: String,
    /// Packets
    pub packets: u64,
    /// Bytes from the network header on
    pub bytes: u64,
}

/// Looks at everything.
///
/// # Errors
/// If something can't be read.
pub fn status(pin: &PinDirectory, tables: &Tables) -> Result<Status> {
    let holder = pin.holder()?;
    Ok(Status {
        pin_directory: pin.root().to_owned(),
        layout_version: layout::VERSION,
        previous: generation::previous_status(pin)?,
        agent: AgentStatus {
            running: holder.is_some(),
            process: holder.and_then(|holder| holder.process),
        },
        sockets: sockets(pin, tables)?,
        devices: devices(pin, tables)?,
        tables: table_fills(tables)?,
        reasons: reasons(tables)?,
        kube_proxy: kube_proxy::leftovers().context("cannot look for what kube-proxy left")?,
        left_to_conntrack: left_to_conntrack(&tables.v4)? + left_to_conntrack(&tables.v6)?,
    })
}

/// What is attached for processes.
///
/// # Errors
/// If something can't be read.
pub fn sockets(pin: &PinDirectory, tables: &Tables) -> Result<SocketStatus> {
    let (mut attached, mut missing, mut cgroup) = (Vec::new(), Vec::new(), None);
    for hook in SocketHook::ALL {
        match cgroup::attached(pin, hook)? {
            Some(id) => {
                attached.push(hook);
                cgroup = Some(id);
            }
            None => missing.push(hook),
        }
    }
    let host = tables.devices.get(&HOST_DEVICE)?;
    let pods = host.is_some_and(|host| host.flags & device_flags::POD_SOCKETS != 0);
    Ok(SocketStatus {
        mode: match (attached.is_empty(), pods) {
            (true, _) => Mode::Off,
            (false, true) => Mode::All,
            (false, false) => Mode::Host,
        },
        attached,
        missing,
        cgroup: cgroup.map(cgroup::describe),
        host_addresses: host.iter().flat_map(masquerade_addresses).collect(),
    })
}

/// The addresses in a device's entry.
fn masquerade_addresses(device: &layout::Device) -> impl Iterator<Item = IpAddr> + use<> {
    let v4 = (device.masquerade_v4 != [0; 4]).then(|| IpAddr::from(device.masquerade_v4));
    let v6 = (device.masquerade_v6 != [0; 16]).then(|| IpAddr::from(device.masquerade_v6));
    v4.into_iter().chain(v6)
}

fn devices(pin: &PinDirectory, tables: &Tables) -> Result<Vec<DeviceStatus>> {
    let devices: BTreeMap<_, _> = tables.devices.entries()?.into_iter().collect();
    let status = |(index, device): (u32, layout::Device)| {
        let xdp = xdp::attached(pin, index)?;
        let xdp_state = xdp.or_else(|| Express::of(&device).filter(|state| state.is_none()));
        Ok(DeviceStatus {
            index,
            name: edge::name_of(&device),
            role: Role::from_number(device.role),
            why: Why::from_number(device.reason).map(|why| why.to_string()),
            link_header: if device.flags & device_flags::BARE == 0 {
                "ethernet"
            } else {
                "none"
            },
            local_traffic: device.flags & device_flags::LOCAL_TRAFFIC != 0,
            ingress: attach::attached(pin, index, Hook::Ingress)?,
            egress: attach::attached(pin, index, Hook::Egress)?,
            xdp,
            xdp_why: xdp_state
                .filter(|_| device.role == role::UPLINK)
                .map(|state| state.to_string()),
            masquerade_v4: (device.masquerade_v4 != [0; 4]).then(|| device.masquerade_v4.into()),
            masquerade_v6: (device.masquerade_v6 != [0; 16]).then(|| device.masquerade_v6.into()),
        })
    };
    let edges = devices.into_iter().filter(|(index, _)| *index != HOST_DEVICE);
    edges.map(status).collect()
}

fn left_to_conntrack<A: AddressBytes>(family: &FamilyTables<A>) -> Result<u64, TableError> {
    const BITS: u8 = flow_flags::CONNTRACK | flow_flags::REPLY | flow_flags::MASQUERADE;
    let mut connections = 0;
    family
        .flows
        .scan(&mut |_, value| connections += u64::from(value.flags & BITS == flow_flags::CONNTRACK))?;
    Ok(connections)
}

/// How full every table is that can be: arrays are always full, and left out.
///
/// # Errors
/// If a table can't be read.
pub fn table_fills(all: &Tables) -> Result<Vec<TableFill>, TableError> {
    fills(all, &mut |_, _| {}, &mut |_, _| {})
}

/// [`table_fills`], showing the flows that are counted.
///
/// # Errors
/// As there.
pub(super) fn fills(
    all: &Tables,
    each_v4: &mut dyn FnMut(FlowKey<[u8; 4]>, FlowValue<[u8; 4]>),
    each_v6: &mut dyn FnMut(FlowKey<[u8; 16]>, FlowValue<[u8; 16]>),
) -> Result<Vec<TableFill>, TableError> {
    let (v4, v6) = (&all.v4, &all.v6);
    Ok(vec![
        fill(tables::SERVICES_V4, &v4.services)?,
        fill(tables::SERVICES_V6, &v6.services)?,
        fill(tables::SLOTS_V4, &v4.slots)?,
        fill(tables::SLOTS_V6, &v6.slots)?,
        fill_with(tables::FLOWS_V4, &v4.flows, each_v4)?,
        fill_with(tables::FLOWS_V6, &v6.flows, each_v6)?,
        fill(tables::AFFINITY_V4, &v4.affinity)?,
        fill(tables::AFFINITY_V6, &v6.affinity)?,
        fill(tables::MEMBERS_V4, &v4.members)?,
        fill(tables::MEMBERS_V6, &v6.members)?,
        fill(tables::SOCKETS_V4, &v4.sockets)?,
        fill(tables::SOCKETS_V6, &v6.sockets)?,
        fill(tables::FRAGMENTS_V4, &v4.fragments)?,
        fill(tables::FRAGMENTS_V6, &v6.fragments)?,
        fill(tables::HELD_FRAGMENTS, &all.held_fragments)?,
        fill(tables::SOURCES_V4, &v4.sources)?,
        fill(tables::SOURCES_V6, &v6.sources)?,
        fill(tables::ADDRESSES_V4, &v4.addresses)?,
        fill(tables::ADDRESSES_V6, &v6.addresses)?,
        fill(tables::SERVICE_NAMES, &all.service_names)?,
        fill(tables::DEVICES, &all.devices)?,
        fill(tables::REFUSALS, &all.refusals)?,
        fill(tables::ENDPOINT_COUNTS, &all.endpoint_counts)?,
    ])
}

fn fill<K, V>(spec: TableSpec, table: &BoxedTable<K, V>) -> Result<TableFill, TableError> {
    fill_with(spec, table, &mut |_, _| {})
}

fn fill_with<K, V>(
    spec: TableSpec,
    table: &BoxedTable<K, V>,
    each: &mut dyn FnMut(K, V),
) -> Result<TableFill, TableError> {
    let mut entries = 0;
    table.scan(&mut |key, value| {
        entries += 1;
        each(key, value);
    })?;
    Ok(TableFill {
        name: spec.name,
        entries,
        max_entries: table.max_entries(),
        evicts: spec.kind == TableKind::LruHash,
    })
}

/// What was counted of every reason.
///
/// # Errors
/// If the table can't be read.
pub fn reason_counters(tables: &Tables) -> Result<Vec<(Reason, Counter)>, TableError> {
    let counter = |&reason: &Reason| {
        let counter = tables.reason_counts.get(&(reason as u32))?;
        Ok((reason, counter.unwrap_or_default()))
    };
    Reason::ALL.iter().map(counter).collect()
}

/// Every reason that was met.
fn reasons(tables: &Tables) -> Result<Vec<ReasonCount>, TableError> {
    let mut reasons = reason_counters(tables)?;
    reasons.retain(|(_, counter)| counter.packets > 0);
    let count = |(reason, counter): (Reason, Counter)| ReasonCount {
        number: reason as u32,
        reason: reason.to_string(),
        packets: counter.packets,
        bytes: counter.bytes,
    };
    Ok(reasons.into_iter().map(count).collect())
}
