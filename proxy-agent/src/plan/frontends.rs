//! Lists what a Service is reached at, and where that leads (behaviour.md 3.1).

use std::net::IpAddr;

use super::{Family, Frontend, Kind, Masquerade, PlanContext, ServicePort, TrafficPolicy, Vip, endpoints::Candidates};
use crate::model::{Node, ObjectName, Port, Service, ServiceView};

/// The frontends of a Service on this node, as if no other Service claimed one of them.
pub fn frontends(view: ServiceView<'_>, node: &Node, context: &PlanContext) -> Vec<Frontend> {
    let mut frontends = Vec::new();
    for port in &view.service.ports {
        for family in Family::ALL {
            let addresses = addresses(view.service, family);
            if addresses.is_empty() {
                continue;
            }
            let candidates = Candidates::collect(view, port, family);
            for (kind, address) in addresses {
                let local = view.service.internal_traffic_local;
                frontends.push(Frontend {
                    service_port: service_port(view.name, port),
                    kind,
                    family,
                    address: Some(address),
                    port: port.port,
                    cluster: (!local).then(|| candidates.cluster(node)),
                    local: local.then(|| candidates.local()),
                    has_endpoints: candidates.any(),
                    policy: if local {
                        TrafficPolicy::Local
                    } else {
                        TrafficPolicy::Cluster
                    },
                    masquerade: internal_masquerade(family, context),
                    affinity: None,
                    sources: Vec::new(),
                });
            }
        }
    }
    frontends
}

/// What a Service is reached at, by port: the keys of [`frontends`].
pub fn vips(service: &Service) -> impl Iterator<Item = (&Port, Vip)> {
    service.ports.iter().flat_map(|port| {
        let addresses = Family::ALL.into_iter().flat_map(|family| addresses(service, family));
        addresses.map(move |(_, address)| {
            let vip = Vip {
                address,
                port: port.port,
                protocol: port.protocol,
            };
            (port, vip)
        })
    })
}

/// The addresses of a Service in one family. Without a cluster address the Service does not exist for the family, and
/// has no others either (behaviour.md 1.4).
fn addresses(service: &Service, family: Family) -> Vec<(Kind, IpAddr)> {
    let cluster_ip = service.cluster_ip(family);
    cluster_ip
        .into_iter()
        .map(|address| (Kind::ClusterIP, address))
        .collect()
}

/// Whose address is hidden from the endpoints of a cluster address, whatever its policy (behaviour.md 5.3).
fn internal_masquerade(family: Family, context: &PlanContext) -> Masquerade {
    if context.masquerade_all {
        Masquerade::Always
    } else if context.detected.contains(&family) {
        Masquerade::Outsiders
    } else {
        Masquerade::Never
    }
}

fn service_port(service: &ObjectName, port: &Port) -> ServicePort {
    ServicePort {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        port_name: port.name.clone(),
        protocol: port.protocol,
    }
}
