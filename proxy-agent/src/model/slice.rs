//! What this node needs to know of an EndpointSlice.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use k8s_openapi::{api::discovery::v1 as api, jiff::Timestamp};

use super::{
    Family, Protocol, address::parse_ip_of, object::Complaints, protocol::parse_port, selection::is_selected, trigger,
};

/// Names the Service that a slice belongs to.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Endpoints of one family, each reached on all of the slice's ports.
///
/// Stored by the hundred thousand: no field is kept that planning doesn't need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Family of all its endpoints
    pub family: Family,
    /// Where its endpoints listen
    pub ports: Box<[SlicePort]>,
    /// Its endpoints
    pub endpoints: Box<[Endpoint]>,
}

/// A port on which a slice's endpoints listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name; belongs to the Service's port of this name and protocol (behaviour.md 1.12)
    pub name: String,
    /// Protocol
    pub protocol: Protocol,
    /// Number, host byte order
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address
    pub address: IpAddr,
    /// What state it is in
    pub conditions: Conditions,
    /// Its `nodeName` is this node (behaviour.md 1.15)
    pub local: bool,
    /// Its node hints
    pub nodes: NodeHint,
    /// Its zone hints
    pub zones: Box<[Arc<str>]>,
}

/// State of an endpoint, defaults applied (behaviour.md 1.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new connections
    pub ready: bool,
    /// Would take connections, were it not terminating
    pub serving: bool,
    /// Is about to end
    pub terminating: bool,
}

/// For which nodes an endpoint is meant (`hints.forNodes`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeHint {
    /// It has no such hint
    None,
    /// Only for other nodes
    Elsewhere,
    /// For this node, perhaps for others as well
    Here,
}

/// A slice and what it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSlice {
    /// Name of its Service, which is in the same namespace
    pub service: String,
    /// When the change was made that it was written for last, if it says so (behaviour.md 9.8)
    pub triggered: Option<Timestamp>,
    /// The slice
    pub slice: Slice,
}

impl OwnedSlice {
    /// Reads an object; `None` for one that isn't this proxy's (behaviour.md 1.1, 1.9, 1.10).
    pub(super) fn parse(object: &api::EndpointSlice, node_name: &str, complaints: &mut Complaints) -> Option<Self> {
        if !is_selected(&object.metadata) {
            return None;
        }
        let labels = object.metadata.labels.as_ref();
        let service = labels
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL))
            .filter(|name| !name.is_empty());
        let Some(service) = service else {
            let field = format!("metadata.labels[{SERVICE_NAME_LABEL}]");
            complaints.add(field, "missing: it names the Service; the slice is ignored");
            return None;
        };
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return None,
            other => {
                complaints.add(
                    "addressType",
                    format!("{other:?} is unknown: IPv4, IPv6 and FQDN are; the slice is ignored"),
                );
                return None;
            }
        };
        let slice = Slice {
            family,
            ports: parse_ports(object.ports.as_deref().unwrap_or_default(), complaints),
            endpoints: parse_endpoints(&object.endpoints, family, node_name, complaints),
        };
        Some(Self {
            service: service.clone(),
            triggered: trigger::time_of(&object.metadata),
            slice,
        })
    }
}

fn parse_ports(objects: &[api::EndpointPort], complaints: &mut Complaints) -> Box<[SlicePort]> {
    let mut ports = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        let Some(name) = object.name.clone() else {
            let reason = "missing: the port is ignored; the name of an unnamed port is \"\"";
            complaints.add(format!("ports[{index}].name"), reason);
            continue;
        };
        let protocol = match Protocol::parse(object.protocol.as_deref()) {
            Ok(protocol) => protocol,
            Err(reason) => {
                complaints.add(format!("ports[{index}].protocol"), reason);
                continue;
            }
        };
        let port = object.port.ok_or_else(|| "missing: the port is ignored".to_owned());
        match port.and_then(parse_port) {
            Ok(port) => ports.push(SlicePort { name, protocol, port }),
            Err(reason) => complaints.add(format!("ports[{index}].port"), reason),
        }
    }
    ports.into()
}

fn parse_endpoints(
    objects: &[api::Endpoint],
    family: Family,
    node_name: &str,
    complaints: &mut Complaints,
) -> Box<[Endpoint]> {
    let mut zone_names = BTreeSet::new();
    let mut endpoints = Vec::with_capacity(objects.len());
    for (index, object) in objects.iter().enumerate() {
        // behaviour.md 1.13: further addresses mean nothing, and none at all means no endpoint.
        let Some(text) = object.addresses.first() else {
            continue;
        };
        let address = match parse_ip_of(family, text).and_then(reachable) {
            Ok(address) => address,
            Err(reason) => {
                complaints.add(format!("endpoints[{index}].addresses[0]"), reason);
                continue;
            }
        };
        let conditions = object.conditions.as_ref();
        let hints = object.hints.as_ref();
        let nodes = hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default();
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        endpoints.push(Endpoint {
            address,
            conditions: Conditions {
                ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
                serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
                terminating: conditions
                    .and_then(|conditions| conditions.terminating)
                    .unwrap_or(false),
            },
            local: object.node_name.as_deref() == Some(node_name),
            nodes: if nodes.is_empty() {
                NodeHint::None
            } else if nodes.iter().any(|node| node.name == node_name) {
                NodeHint::Here
            } else {
                NodeHint::Elsewhere
            },
            zones: zones.iter().map(|zone| shared(&mut zone_names, &zone.name)).collect(),
        });
    }
    endpoints.into()
}

/// Refuses the addresses that the API server refuses, too: a packet sent there would not leave this node.
fn reachable(address: IpAddr) -> Result<IpAddr, String> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || link_local {
        Err(format!("{address} can't be an endpoint's address"))
    } else {
        Ok(address)
    }
}

/// The one copy of a name in a slice.
fn shared(names: &mut BTreeSet<Arc<str>>, name: &str) -> Arc<str> {
    if let Some(known) = names.get(name) {
        return Arc::clone(known);
    }
    let name = Arc::<str>::from(name);
    names.insert(Arc::clone(&name));
    name
}
