//! Lists what a Service is reached at, and where that leads (behaviour.md 3.1).

use std::{cell::LazyCell, net::IpAddr};

use ipnet::IpNet;

use super::{
    Claim, Family, Frontend, Kind, Masquerade, PlanContext, Protocol, ServicePort, TrafficPolicy, Vip,
    endpoints::Candidates,
};
use crate::model::{Node, ObjectName, Port, Service, ServiceView};

/// The frontends of a Service on this node, as if no other Service claimed one of them.
pub fn frontends(view: ServiceView<'_>, node: &Node, context: &PlanContext) -> Vec<Frontend> {
    let service = view.service;
    let mut frontends = Vec::new();
    for family in Family::ALL {
        let sources = sources(service, family, context);
        for port in &service.ports {
            let places = places(service, port, family);
            if places.is_empty() {
                continue;
            }
            let candidates = Candidates::collect(view, port, family);
            // What no frontend uses isn't computed (behaviour.md 2.4).
            let cluster = LazyCell::new(|| candidates.cluster(node));
            let local = LazyCell::new(|| candidates.local());
            for place in places {
                let (policy, masquerade) = match place.kind {
                    Kind::ClusterIP => internal_traffic(service, family, context),
                    Kind::ExternalIP | Kind::LoadBalancer | Kind::NodePort => external_traffic(service),
                };
                frontends.push(Frontend {
                    service_port: service_port(view.name, port),
                    kind: place.kind,
                    family,
                    address: place.address,
                    port: place.port,
                    cluster: (policy != TrafficPolicy::Local).then(|| (*cluster).clone()),
                    local: (policy != TrafficPolicy::Cluster).then(|| (*local).clone()),
                    has_endpoints: candidates.any(),
                    serving: if port.protocol == Protocol::Udp {
                        candidates.serving()
                    } else {
                        Vec::new()
                    },
                    policy,
                    masquerade,
                    affinity: service.affinity,
                    sources: if place.kind == Kind::LoadBalancer {
                        sources.clone()
                    } else {
                        Vec::new()
                    },
                });
            }
        }
    }
    frontends
}

/// What a Service asks to be reached at: one claim for each of its [`frontends`].
pub fn claims_of(service: &Service) -> Vec<Claim> {
    let mut claims = Vec::new();
    for family in Family::ALL {
        for port in &service.ports {
            claims.extend(places(service, port, family).into_iter().map(|place| Claim {
                vip: Vip {
                    family,
                    address: place.address,
                    port: place.port,
                    protocol: port.protocol,
                },
                kind: place.kind,
                port_name: port.name.clone(),
            }));
        }
    }
    claims
}

/// Where a service port is reached.
struct Place {
    kind: Kind,
    address: Option<IpAddr>,
    port: u16,
}

/// Where a service port is reached in a family: each address once. Without a cluster address the Service does not exist
/// for the family, and has no others either (behaviour.md 1.4).
fn places(service: &Service, port: &Port, family: Family) -> Vec<Place> {
    let Some(cluster_ip) = service.cluster_ip(family) else {
        return Vec::new();
    };
    let mut places = vec![Place {
        kind: Kind::ClusterIP,
        address: Some(cluster_ip),
        port: port.port,
    }];
    // An address that is listed twice is the load balancer's: source ranges protect the address, and a second name for it
    // must not open it to all (kube-proxy asks them before anything else, too).
    let load_balancer = service.load_balancer_ips.iter().map(|ip| (Kind::LoadBalancer, *ip));
    let external = service.external_ips.iter().map(|ip| (Kind::ExternalIP, *ip));
    for (kind, address) in load_balancer.chain(external) {
        let is_known = places.iter().any(|place| place.address == Some(address));
        if Family::of(address) == family && !is_known {
            places.push(Place {
                kind,
                address: Some(address),
                port: port.port,
            });
        }
    }
    places.extend(port.node_port.map(|port| Place {
        kind: Kind::NodePort,
        address: None,
        port,
    }));
    places
}

/// How a cluster address is served: whose address is hidden doesn't depend on the policy (behaviour.md 2.2, 5.3).
fn internal_traffic(service: &Service, family: Family, context: &PlanContext) -> (TrafficPolicy, Masquerade) {
    let policy = if service.internal_traffic_local {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    };
    let masquerade = if context.masquerade_all {
        Masquerade::Always
    } else if context.detected.contains(&family) {
        Masquerade::Outsiders
    } else {
        Masquerade::Never
    };
    (policy, masquerade)
}

/// How all other frontends are served (behaviour.md 3.1, 5.4-5.7).
const fn external_traffic(service: &Service) -> (TrafficPolicy, Masquerade) {
    if service.external_traffic_local {
        (TrafficPolicy::LocalForOutsiders, Masquerade::Host)
    } else {
        (TrafficPolicy::Cluster, Masquerade::Always)
    }
}

/// Who may use the load balancer's addresses of a family (behaviour.md 3.10).
fn sources(service: &Service, family: Family, context: &PlanContext) -> Vec<IpNet> {
    let ranges = service.source_ranges.iter().copied();
    let mut sources: Vec<IpNet> = ranges.filter(|range| Family::of(range.addr()) == family).collect();
    let has_node = |range: &IpNet| context.own_addresses.iter().any(|own| range.contains(own));
    if sources.iter().any(has_node) {
        // A host that has such an address on a device of its own may use it as the source towards itself.
        let own = service.load_balancer_ips.iter().copied();
        sources.extend(own.filter(|address| Family::of(*address) == family).map(IpNet::from));
    }
    sources.sort_unstable();
    sources.dedup();
    sources
}

fn service_port(service: &ObjectName, port: &Port) -> ServicePort {
    ServicePort {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
    }
}
