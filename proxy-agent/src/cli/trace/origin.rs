//! Where a traced packet comes from, and what that makes of the tables.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use clap::ValueEnum;
use proxy_common::layout::{Device, device_flags, role};

use crate::{
    cli::input::Input,
    dataplane::{self, memory::Memory, programmer::Programmer, table::Tables},
    plan::LocalSources,
};

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Origin {
    /// A pod of this node
    Pod,
    /// Another machine
    Uplink,
    /// A process in the host's network
    Host,
}

impl fmt::Display for Origin {
    /// What comes from there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pod => "packets of pods",
            Self::Uplink => "packets of other machines",
            Self::Host => "packets of the host",
        })
    }
}

impl Origin {
    /// The role of the device that such packets arrive at; the host's own arrive at none.
    const fn role(self) -> Option<u32> {
        match self {
            Self::Pod => Some(role::POD),
            Self::Uplink => Some(role::UPLINK),
            Self::Host => None,
        }
    }

    /// Interface index of a device that such packets arrive at; 0 if there is none.
    ///
    /// # Errors
    /// If the table can't be read.
    pub(super) fn device(self, tables: &Tables) -> Result<u32> {
        let devices = tables.devices.entries()?;
        let mut of_role = devices.iter().filter(|(_, device)| Some(device.role) == self.role());
        Ok(of_role.next().map_or(0, |(index, _)| *index))
    }
}

/// The tables of a node that serves what was read, with one device of each role. A packet from the host has an address of
/// the node.
///
/// # Errors
/// If a table can't be read.
pub(super) fn planned(input: &Input, from: Origin, source: IpAddr) -> Result<Tables> {
    let memory = Memory::default();
    let mut programmer = Programmer::load(memory.tables(), dataplane::now())?;
    programmer.replace(input.frontends.clone(), dataplane::now());
    let mut node = input.node.clone();
    if from == Origin::Host {
        node.local_addresses.insert(source);
    }
    programmer.set_devices(&devices(&node.local_sources, &node.local_addresses), dataplane::now());
    programmer.set_node(node, dataplane::now());
    for problem in programmer.problems() {
        eprintln!("{problem}");
    }
    Ok(memory.tables())
}

/// A device to pods and one to other machines. Where it is the device that tells pods' packets (behaviour.md 5.8), that is
/// one that does.
fn devices<'a>(pods: &LocalSources, addresses: impl IntoIterator<Item = &'a IpAddr>) -> BTreeMap<u32, Device> {
    let (mut v4, mut v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    for address in addresses.into_iter().filter(|address| !address.is_loopback()) {
        match address {
            IpAddr::V4(address) => v4 = *address,
            IpAddr::V6(address) => v6 = *address,
        }
    }
    let device = |role, flags| Device {
        masquerade_v4: v4.octets(),
        masquerade_v6: v6.octets(),
        role,
        flags,
        ..Device::default()
    };
    let told_by_device = match pods {
        LocalSources::Ranges(_) => 0,
        LocalSources::Interface(_) | LocalSources::InterfacePrefix(_) => device_flags::LOCAL_TRAFFIC,
    };
    BTreeMap::from([(1, device(role::POD, told_by_device)), (2, device(role::UPLINK, 0))])
}
