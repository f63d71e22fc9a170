//! What this node needs to know of a Service.

use std::{collections::BTreeSet, net::IpAddr};

use k8s_openapi::{api::core::v1 as api, jiff::Timestamp};

use super::{Family, Protocol, address::parse_ip, object::Complaints, protocol::parse_port, selection::is_selected};

/// A Service that this node serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// When it was created, if an API server says so
    pub created: Option<Timestamp>,
    /// The first `clusterIPs` entry of each family; at least one is there (behaviour.md 1.3, 1.4)
    cluster_ips: [Option<IpAddr>; 2],
    /// `internalTrafficPolicy` is Local (behaviour.md 2.2)
    pub internal_traffic_local: bool,
    /// Its ports; name and protocol together are unique
    pub ports: Vec<Port>,
}

/// A port of a Service. Where it leads is said by the slices (behaviour.md 1.12), so its target port isn't kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name, empty for an unnamed single port
    pub name: String,
    /// Protocol
    pub protocol: Protocol,
    /// Number, host byte order
    pub port: u16,
}

impl Service {
    /// The address of a family, if the Service exists for it (behaviour.md 1.4).
    pub const fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.cluster_ips[0],
            Family::V6 => self.cluster_ips[1],
        }
    }

    /// Reads an object; `None` for one that isn't this proxy's (behaviour.md 1.1-1.3).
    pub(super) fn parse(object: &api::Service, complaints: &mut Complaints) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        if !is_selected(&object.metadata) || spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let cluster_ips = parse_cluster_ips(spec, complaints);
        if cluster_ips == [None, None] {
            return None;
        }
        let internal_traffic_local = match spec.internal_traffic_policy.as_deref() {
            Some("Local") => true,
            None | Some("" | "Cluster") => false,
            Some(other) => {
                let reason = format!("{other:?} is no traffic policy: Cluster and Local are; taken for Cluster");
                complaints.add("spec.internalTrafficPolicy", reason);
                false
            }
        };
        Some(Self {
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
            cluster_ips,
            internal_traffic_local,
            ports: parse_ports(spec.ports.as_deref().unwrap_or_default(), complaints),
        })
    }
}

fn parse_cluster_ips(spec: &api::ServiceSpec, complaints: &mut Complaints) -> [Option<IpAddr>; 2] {
    // An API server fills both fields from either; a file may have only one.
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts: Vec<(String, &str)> = if listed.is_empty() {
        let single = spec.cluster_ip.as_deref().unwrap_or_default();
        vec![("spec.clusterIP".to_owned(), single)]
    } else {
        let field = |index| format!("spec.clusterIPs[{index}]");
        listed
            .iter()
            .enumerate()
            .map(|(index, text)| (field(index), text.as_str()))
            .collect()
    };
    let mut addresses = [None; 2];
    if spec.cluster_ip.as_deref() == Some("None") || texts.iter().any(|(_, text)| *text == "None") {
        return addresses;
    }
    for (field, text) in texts {
        if text.is_empty() {
            complaints.add(
                field,
                "no address is given (nothing allocates one here): the Service is not served",
            );
            continue;
        }
        match parse_ip(text) {
            Ok(address) if address.is_unspecified() || address.is_loopback() || address.is_multicast() => {
                complaints.add(field, format!("{address} can't be a Service's address"));
            }
            Ok(address) => {
                addresses[Family::of(address) as usize].get_or_insert(address);
            }
            Err(reason) => complaints.add(field, reason),
        }
    }
    addresses
}

fn parse_ports(objects: &[api::ServicePort], complaints: &mut Complaints) -> Vec<Port> {
    let mut ports = Vec::with_capacity(objects.len());
    let mut keys = BTreeSet::new();
    for (index, object) in objects.iter().enumerate() {
        let name = object.name.clone().unwrap_or_default();
        let protocol = match Protocol::parse(object.protocol.as_deref()) {
            Ok(protocol) => protocol,
            Err(reason) => {
                complaints.add(format!("spec.ports[{index}].protocol"), reason);
                continue;
            }
        };
        let port = match parse_port(object.port) {
            Ok(port) => port,
            Err(reason) => {
                complaints.add(format!("spec.ports[{index}].port"), reason);
                continue;
            }
        };
        if !keys.insert((name.clone(), protocol)) {
            let reason =
                format!("a {protocol} port before this one has the name {name:?}, too: this one is not served");
            complaints.add(format!("spec.ports[{index}].name"), reason);
            continue;
        }
        ports.push(Port { name, protocol, port });
    }
    ports
}
