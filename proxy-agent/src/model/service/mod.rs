//! What this node needs to know of a Service.

mod outside;

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32};

use ipnet::IpNet;
use k8s_openapi::{api::core::v1 as api, jiff::Timestamp};

use super::{Family, Protocol, address::parse_ip, object::Complaints, protocol::parse_port, selection::is_selected};

/// How long a client stays with its endpoint where nothing else is said, in seconds.
const DEFAULT_AFFINITY: NonZeroU32 = NonZeroU32::new(10_800).unwrap();

/// How long a client may stay with its endpoint at most, in seconds: a day.
const LONGEST_AFFINITY: NonZeroU32 = NonZeroU32::new(86_400).unwrap();

/// A Service that this node serves: all that its plan depends on, and nothing else (behaviour.md 1.7, 1.8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// When it was created, if an API server says so
    pub created: Option<Timestamp>,
    /// The first `clusterIPs` entry of each family; at least one is there (behaviour.md 1.3, 1.4)
    cluster_ips: [Option<IpAddr>; 2],
    /// `internalTrafficPolicy` is Local (behaviour.md 2.2)
    pub internal_traffic_local: bool,
    /// `externalTrafficPolicy` is Local, and counts (behaviour.md 2.3)
    pub external_traffic_local: bool,
    /// `externalIPs`; of families that it exists for, sorted
    pub external_ips: Vec<IpAddr>,
    /// Addresses of its load balancer that packets arrive with (behaviour.md 3.2); of families that it exists for, sorted
    pub load_balancer_ips: Vec<IpAddr>,
    /// Where its load balancer asks whether this node has an endpoint (behaviour.md 8.1), host byte order
    pub health_check_port: Option<u16>,
    /// Who may use the addresses of its load balancer (behaviour.md 3.10); of families that it exists for, sorted. A
    /// family without a range is open
    pub source_ranges: Vec<IpNet>,
    /// How long a client stays with its endpoint, in seconds, 1 to 86400 (behaviour.md 6.2)
    pub affinity: Option<NonZeroU32>,
    /// Its ports, sorted; name and protocol together are unique
    pub ports: Vec<Port>,
}

/// A port of a Service. Where it leads is said by the slices (behaviour.md 1.12), so its target port isn't kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Name, empty for an unnamed single port
    pub name: String,
    /// Protocol
    pub protocol: Protocol,
    /// Number, host byte order
    pub port: u16,
    /// Number on the node's own addresses, host byte order; whatever the Service's type (behaviour.md 1.8)
    pub node_port: Option<u16>,
}

impl Service {
    /// The address of a family, if the Service exists for it (behaviour.md 1.4).
    pub const fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.cluster_ips[0],
            Family::V6 => self.cluster_ips[1],
        }
    }

    /// Every address that it is reached at, but those of the node.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let cluster = self.cluster_ips.iter().flatten();
        cluster
            .chain(&self.external_ips)
            .chain(&self.load_balancer_ips)
            .copied()
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
        // Without a cluster address there is nothing in a family (behaviour.md 1.4), and nobody misses it.
        let exists = |address: IpAddr| cluster_ips[Family::of(address) as usize].is_some();
        let mut external_ips = outside::external_ips(spec, complaints);
        external_ips.retain(|address| exists(*address));
        let mut load_balancer_ips = outside::load_balancer_ips(object.status.as_ref(), complaints);
        load_balancer_ips.retain(|address| exists(*address));
        let mut source_ranges = outside::source_ranges(spec, complaints);
        source_ranges.retain(|range| exists(range.addr()));
        let internal_policy = spec.internal_traffic_policy.as_deref();
        Some(Self {
            created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
            cluster_ips,
            internal_traffic_local: is_local("spec.internalTrafficPolicy", internal_policy, complaints),
            external_traffic_local: outside::is_local(spec, complaints),
            external_ips,
            load_balancer_ips,
            health_check_port: outside::health_check_port(spec),
            source_ranges,
            affinity: parse_affinity(spec, complaints),
            ports: parse_ports(spec.ports.as_deref().unwrap_or_default(), complaints),
        })
    }
}

/// Whether a traffic policy is Local.
fn is_local(field: &str, policy: Option<&str>, complaints: &mut Complaints) -> bool {
    match policy {
        Some("Local") => true,
        None | Some("" | "Cluster") => false,
        Some(other) => {
            let reason = format!("{other:?} is no traffic policy: Cluster and Local are; taken for Cluster");
            complaints.add(field, reason);
            false
        }
    }
}

/// Refuses addresses that no packet from elsewhere has as its destination.
fn servable(address: IpAddr) -> Result<IpAddr, String> {
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        Err(format!("{address} can't be a Service's address"))
    } else {
        Ok(address)
    }
}

fn parse_affinity(spec: &api::ServiceSpec, complaints: &mut Complaints) -> Option<NonZeroU32> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            let reason = format!("{other:?} is no session affinity: None and ClientIP are; taken for None");
            complaints.add("spec.sessionAffinity", reason);
            return None;
        }
    }
    let config = spec.session_affinity_config.as_ref();
    let Some(seconds) = config.and_then(|config| config.client_ip.as_ref()?.timeout_seconds) else {
        return Some(DEFAULT_AFFINITY);
    };
    let nearest = match u32::try_from(seconds).map(NonZeroU32::new) {
        Ok(Some(timeout)) if timeout <= LONGEST_AFFINITY => return Some(timeout),
        Ok(Some(_)) => LONGEST_AFFINITY,
        Ok(None) | Err(_) => NonZeroU32::MIN,
    };
    complaints.add(
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        format!("{seconds} s is no timeout: 1 to {LONGEST_AFFINITY} are; taken for {nearest}"),
    );
    Some(nearest)
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
        match parse_ip(text).and_then(servable) {
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
        let node_port = match object.node_port {
            None | Some(0) => None,
            Some(number) => match parse_port(number) {
                Ok(port) => Some(port),
                Err(reason) => {
                    complaints.add(format!("spec.ports[{index}].nodePort"), reason);
                    None
                }
            },
        };
        ports.push(Port {
            name,
            protocol,
            port,
            node_port,
        });
    }
    ports.sort_unstable();
    ports
}
