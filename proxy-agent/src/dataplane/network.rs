//! Looks at the node's devices over netlink, and waits for them to change.
//!
//! Level-triggered: an event only says "look again", so a lost one costs nothing but time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result, anyhow};
use futures::{StreamExt as _, TryStreamExt as _, channel::mpsc::UnboundedReceiver};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
    tc::{TcAttribute, TcHandle, TcMessage},
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, sys::SocketAddr};
use tokio::task::JoinHandle;

use super::edge::{Framing, Link, LinkAddress, LinkKind, Network};

/// Addresses that nothing is said about: of the ranges for documentation (RFC 5737, RFC 3849), which nobody has.
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, 1)),
];

/// A watch on the devices of the network namespace it was opened in.
pub struct NetworkWatch {
    handle: Handle,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    connection: JoinHandle<()>,
}

impl Drop for NetworkWatch {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl NetworkWatch {
    /// Opens the watch; needs a tokio runtime.
    ///
    /// # Errors
    /// If there is no netlink socket to be had.
    pub fn open() -> Result<Self> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])
        .context("cannot open a netlink socket")?;
        Ok(Self {
            handle,
            events,
            connection: tokio::spawn(connection),
        })
    }

    /// The devices, addresses and default routes of now.
    ///
    /// What changes while the kernel lists them may hide others from the list (`NLM_F_DUMP_INTR`), and a device that is
    /// missed would lose its programs: so it looks again until nothing changed meanwhile, a few times at most.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    pub async fn network(&mut self) -> Result<Network> {
        const LOOKS: usize = 5;
        for _ in 1..LOOKS {
            let network = self.look().await?;
            if !self.has_changed() {
                return Ok(network);
            }
        }
        self.look().await
    }

    /// Whether events have come that may matter; takes them.
    fn has_changed(&mut self) -> bool {
        let mut changed = false;
        while let Ok((event, _)) = self.events.try_recv() {
            changed |= matters(&event.payload);
        }
        changed
    }

    async fn look(&self) -> Result<Network> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let links = links.await.context("cannot list the devices")?;
        let addresses = self.handle.address().get().execute().try_collect::<Vec<_>>();
        let addresses = addresses.await.context("cannot list the addresses")?;
        let routes = [
            RouteMessageBuilder::<Ipv4Addr>::new().build(),
            RouteMessageBuilder::<Ipv6Addr>::new().build(),
        ];
        let mut network = Network {
            links: links.iter().map(link).collect(),
            addresses: addresses.iter().filter_map(address).collect(),
            ..Network::default()
        };
        for family in routes {
            let routes = self.handle.route().get(family).execute().try_collect::<Vec<_>>();
            let routes = routes.await.context("cannot list the routes")?;
            let defaults = routes.iter().filter(|route| is_default(route));
            network.default_routes.extend(defaults.flat_map(devices_of_route));
        }
        let elsewhere = routes_to(&self.handle, &BTreeSet::from(ELSEWHERE)).await?;
        network.sources = elsewhere.values().filter_map(source_of_route).collect();
        Ok(network)
    }

    /// The interface index of the device through which this node sends to each of these addresses; without those that it has
    /// no way to, and its own.
    ///
    /// # Errors
    /// If the kernel doesn't tell.
    ///
    /// The kernel is asked for one after the other: not to be waited for where something else is to be done.
    pub fn ways_to(
        &self,
        addresses: BTreeSet<IpAddr>,
    ) -> impl Future<Output = Result<BTreeMap<IpAddr, u32>>> + Send + use<> {
        let handle = self.handle.clone();
        async move {
            let routes = routes_to(&handle, &addresses).await?;
            let device = |(address, route): (IpAddr, RouteMessage)| Some((address, *devices_of_route(&route).first()?));
            Ok(routes.into_iter().filter_map(device).collect())
        }
    }

    /// Waits until something has changed that may matter. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the netlink connection is gone and there is no other to be had.
    pub async fn changed(&mut self) -> Result<()> {
        loop {
            match self.events.next().await {
                Some((event, _)) if !matters(&event.payload) => {}
                Some(_) => break,
                // The connection is gone, and with it events: look again, with a new one.
                None => {
                    *self = Self::open()?;
                    break;
                }
            }
        }
        // What else happened up to now is seen by the same look.
        self.has_changed();
        Ok(())
    }
}

/// The route that this node takes to each of these addresses; without those that it has no way to, and its own.
async fn routes_to(handle: &Handle, addresses: &BTreeSet<IpAddr>) -> Result<BTreeMap<IpAddr, RouteMessage>> {
    let mut taken = BTreeMap::new();
    for &address in addresses {
        let request = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .build(),
        };
        let routes = handle.route().get(request).execute().try_collect::<Vec<_>>().await;
        let routes = match routes {
            Ok(routes) => routes,
            // No route: ENETUNREACH, EHOSTUNREACH, or what a route of type prohibit or blackhole says.
            Err(rtnetlink::Error::NetlinkError(_)) => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot look up the route to {address}")),
        };
        let mut unicast = routes
            .into_iter()
            .filter(|route| route.header.kind == RouteType::Unicast);
        taken.extend(unicast.next().map(|route| (address, route)));
    }
    Ok(taken)
}

/// Removes the clsact queueing discipline of a device, unless it has filters.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn remove_unused_clsact(index: u32) -> Result<()> {
    // Parent and handle of clsact, and its two lists of filters (include/uapi/linux/pkt_sched.h).
    const TC_H_CLSACT: u32 = 0xffff_fff1;
    const HANDLE: u32 = 0xffff_0000;
    let index = i32::try_from(index).context("an interface index is positive")?;
    let remove = async || -> Result<()> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let connection = tokio::spawn(connection);
        let ingress = handle
            .traffic_filter(index)
            .get()
            .ingress()
            .execute()
            .try_collect::<Vec<_>>();
        let egress = handle
            .traffic_filter(index)
            .get()
            .egress()
            .execute()
            .try_collect::<Vec<_>>();
        let (ingress, egress) = (ingress.await?, egress.await?);
        if ingress.is_empty() && egress.is_empty() {
            let mut request = handle.qdisc().del(index);
            request.message_mut().header.parent = TcHandle::from(TC_H_CLSACT);
            request.message_mut().header.handle = TcHandle::from(HANDLE);
            request.execute().await?;
        }
        connection.abort();
        Ok(())
    };
    on_own_thread(remove).with_context(|| format!("cannot remove the clsact qdisc of device {index}"))
}

/// Removes a device by its name.
///
/// # Errors
/// If there is none, or the kernel refuses.
pub(super) fn remove_device(name: &str) -> Result<()> {
    let remove = async || -> Result<()> {
        let index = nix::net::if_::if_nametoindex(name)?;
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let connection = tokio::spawn(connection);
        handle.link().del(index).execute().await?;
        connection.abort();
        Ok(())
    };
    on_own_thread(remove).with_context(|| format!("cannot remove the device {name}"))
}

/// What is attached to a device beside tcx.
pub(super) struct DeviceHooks {
    /// Its name
    pub(super) name: String,
    /// How an XDP program is attached, and its id, if one is
    pub(super) xdp: Option<(XdpAttached, Option<u32>)>,
    /// Filters of the clsact queueing discipline at ingress, by kind
    pub(super) ingress_filters: Vec<String>,
    /// Likewise at egress
    pub(super) egress_filters: Vec<String>,
}

/// What is attached to the devices of this network namespace.
///
/// # Errors
/// If the kernel doesn't tell.
pub(super) fn device_hooks() -> Result<Vec<DeviceHooks>> {
    let look = async || -> Result<Vec<DeviceHooks>> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        let connection = tokio::spawn(connection);
        let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
        let mut devices = Vec::new();
        for link in links {
            let named = link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
            let (Some(name), Ok(index)) = (named, i32::try_from(link.header.index)) else {
                continue;
            };
            // A device without clsact has no such filters; one may go meanwhile.
            let filters = handle.traffic_filter(index).get();
            let ingress = filters.ingress().execute().try_collect::<Vec<_>>().await;
            let filters = handle.traffic_filter(index).get();
            let egress = filters.egress().execute().try_collect::<Vec<_>>().await;
            devices.push(DeviceHooks {
                name,
                xdp: xdp_of(&link),
                ingress_filters: kinds(&ingress.unwrap_or_default()),
                egress_filters: kinds(&egress.unwrap_or_default()),
            });
        }
        connection.abort();
        Ok(devices)
    };
    on_own_thread(look).context("cannot look at the devices")
}

/// How XDP is attached to a link, if it is.
fn xdp_of(link: &LinkMessage) -> Option<(XdpAttached, Option<u32>)> {
    let nested = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(nested) => Some(nested),
        _ => None,
    })?;
    let mode = nested.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(mode) if *mode != XdpAttached::None => Some(*mode),
        _ => None,
    })?;
    let id = nested.iter().find_map(|attribute| match attribute {
        LinkXdp::ProgId(id) => Some(*id),
        _ => None,
    });
    Some((mode, id))
}

/// The kinds of filters, each once.
fn kinds(filters: &[TcMessage]) -> Vec<String> {
    let kinds = filters.iter().flat_map(|filter| &filter.attributes);
    let kinds: BTreeSet<String> = kinds
        .filter_map(|attribute| match attribute {
            TcAttribute::Kind(kind) => Some(kind.clone()),
            _ => None,
        })
        .collect();
    kinds.into_iter().collect()
}

/// Waits for an exchange over netlink, on a thread of its own, as the caller's may belong to a runtime.
fn on_own_thread<T: Send>(exchange: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?
                .block_on(exchange())
        });
        thread.join()
    });
    done.unwrap_or_else(|_| Err(anyhow!("netlink failed")))
}

/// Whether an event may change the edges. Routes other than default ones come and go with every pod.
fn matters(event: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match event {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route)) => {
            is_default(route)
        }
        _ => true,
    }
}

fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: if message.header.flags.contains(LinkFlags::Loopback) {
            LinkKind::Loopback
        } else {
            LinkKind::Other
        },
        framing: framing(message.header.link_layer_type),
        up: message.header.flags.contains(LinkFlags::Up),
        master: None,
        peer_elsewhere: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(master) => link.master = Some(*master),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = link_kind(kind);
                    }
                }
            }
            _ => {}
        }
    }
    link
}

/// What programs at a tc hook see first (the kernel's `dev_is_mac_header_xmit`, include/linux/if_arp.h).
const fn framing(link_layer: LinkLayerType) -> Framing {
    match link_layer {
        LinkLayerType::Ether | LinkLayerType::Loopback => Framing::Ethernet,
        LinkLayerType::Tunnel
        | LinkLayerType::Tunnel6
        | LinkLayerType::Sit
        | LinkLayerType::Ipgre
        | LinkLayerType::Ip6gre
        | LinkLayerType::None
        | LinkLayerType::Rawip
        | LinkLayerType::Ppp => Framing::Bare,
        _ => Framing::Unknown,
    }
}

fn link_kind(kind: &InfoKind) -> LinkKind {
    match kind {
        InfoKind::Veth | InfoKind::Netkit => LinkKind::Pair,
        InfoKind::Bridge => LinkKind::Bridge,
        InfoKind::Bond | InfoKind::Team => LinkKind::Bond,
        InfoKind::Dummy | InfoKind::Ifb | InfoKind::Nlmon | InfoKind::Vrf => LinkKind::Dummy,
        InfoKind::Tun => LinkKind::Tun,
        InfoKind::Other(kind) if kind == "openvswitch" => LinkKind::Switch,
        InfoKind::Vxlan
        | InfoKind::Geneve
        | InfoKind::BareUdp
        | InfoKind::IpIp
        | InfoKind::Ip6Tnl
        | InfoKind::SitTun
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::Vti
        | InfoKind::Vti6
        | InfoKind::Xfrm
        | InfoKind::Wireguard => LinkKind::Tunnel,
        _ => LinkKind::Other,
    }
}

/// An address in use: not still being checked for duplicates, or found to be one (RFC 4862, 5.4).
fn address(message: &AddressMessage) -> Option<LinkAddress> {
    // Of IPv6 addresses the second bit says "temporary" (RFC 8981).
    const UNASKED: AddressFlags = AddressFlags::Deprecated.union(AddressFlags::Secondary);
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed;
    let (mut local, mut peer) = (None::<IpAddr>, None::<IpAddr>);
    let mut preferred = true;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Flags(flags) if flags.intersects(unusable) => return None,
            AddressAttribute::Flags(flags) => preferred = !flags.intersects(UNASKED),
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => peer = Some(*address),
            _ => {}
        }
    }
    Some(LinkAddress {
        index: message.header.index,
        // IPv4 tells both, the second being the other end of a point-to-point link; IPv6 only the second.
        address: local.or(peer)?,
        prefix: message.header.prefix_len,
        global: message.header.scope == AddressScope::Universe,
        preferred,
    })
}

fn is_default(route: &RouteMessage) -> bool {
    route.header.destination_prefix_length == 0
        && route.header.kind == RouteType::Unicast
        && route.header.table == netlink_packet_route::route::RouteHeader::RT_TABLE_MAIN
}

/// The source that the kernel takes for packets on a route.
fn source_of_route(route: &RouteMessage) -> Option<IpAddr> {
    let source = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(address)) => Some((*address).into()),
        RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => Some((*address).into()),
        _ => None,
    };
    route.attributes.iter().find_map(source)
}

fn devices_of_route(route: &RouteMessage) -> Vec<u32> {
    let mut devices = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => devices.push(*index),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    devices
}
