//! A Service that has no endpoint for a packet (behaviour.md 4.1 to 4.3).

use std::{collections::BTreeMap, net::SocketAddr};

use super::{Advice, Case, named};
use crate::{
    dataplane::inspect::ServiceRow,
    inquiry::{EndpointDetail, PortDetail, ServiceDetail},
    plan::Kind,
};

/// No endpoint anywhere.
pub(super) fn none(case: &Case<'_>, frontend: &ServiceRow) -> Advice {
    let detail = match case.detail(frontend) {
        Ok(Some(detail)) => detail,
        Ok(None) => return gone(frontend),
        Err(error) => return unknown(frontend, &error),
    };
    let slices = format!(
        "`kubectl -n {} get endpointslices -l kubernetes.io/service-name={} -o yaml`",
        frontend.namespace, frontend.service
    );
    if detail.slices == 0 {
        return Advice::new(
            format!("{} has no EndpointSlice", named(frontend)),
            [
                "with a selector: the kube-controller-manager makes them; it may be down, or late".to_owned(),
                format!(
                    "without one: write them by hand, with the label kubernetes.io/service-name: {} in namespace {}",
                    frontend.service, frontend.namespace
                ),
            ],
        );
    }
    let is_of_family = |address: &std::net::IpAddr| address.is_ipv4() == case.destination.is_ipv4();
    if !detail.endpoint_addresses.iter().any(is_of_family) {
        return no_address(case, frontend, &detail);
    }
    let port = frontend
        .protocol
        .and_then(|protocol| detail.port(&frontend.port_name, protocol));
    let endpoints = endpoints_of(case, port);
    if endpoints.is_empty() {
        return other_port(frontend, &detail, &slices);
    }
    if endpoints.iter().any(|endpoint| endpoint.is_usable()) {
        return unwritten(frontend, &detail);
    }
    Advice::new(
        format!("no endpoint of {} is ready: {}", named(frontend), states(&endpoints)),
        [
            format!(
                "look at the READY column of `kubectl -n {} get pods -o wide`, and at what `kubectl describe pod` says of \
                 the readiness probe",
                frontend.namespace
            ),
            "with publishNotReadyAddresses: true the Service has endpoints that are not ready, too".to_owned(),
        ],
    )
}

/// Endpoints, but none on this node, and the traffic policy is Local.
pub(super) fn none_here(case: &Case<'_>, frontend: &ServiceRow) -> Advice {
    let is_internal = frontend.kind == Kind::ClusterIP;
    let field = if is_internal {
        "internalTrafficPolicy"
    } else {
        "externalTrafficPolicy"
    };
    let detail = case.detail(frontend).ok().flatten();
    let port = detail
        .as_ref()
        .and_then(|detail| detail.port(&frontend.port_name, frontend.protocol?));
    let here: Vec<_> = endpoints_of(case, port)
        .into_iter()
        .filter(|endpoint| endpoint.local)
        .collect();
    let elsewhere: Vec<SocketAddr> = if frontend.cluster.is_empty() {
        endpoints_of(case, port)
            .iter()
            .map(|endpoint| endpoint.address)
            .collect()
    } else {
        frontend.cluster.clone()
    };
    let whats_here = if here.is_empty() {
        "no endpoint is on this node".to_owned()
    } else {
        format!("the endpoints on this node are not ready: {}", states(&here))
    };
    let whats_elsewhere = match elsewhere.len() {
        0 => String::new(),
        1..=4 => format!(" (there are {})", list(&elsewhere)),
        more => format!(" (there are {more} elsewhere)"),
    };
    let mut advice = Advice::new(
        format!(
            "{field} of {} is Local, and {whats_here}{whats_elsewhere}",
            named(frontend)
        ),
        [
            "have a pod of the Service on each node that gets such traffic, as a DaemonSet has".to_owned(),
            format!("or set {field}: Cluster, where endpoints of all nodes will do"),
        ],
    );
    if !is_internal && case.is_from_pod {
        // behaviour.md 5.6: it would get the endpoints of all nodes.
        advice.fix.push(
            "or tell the agent which clients are pods, which policy Local is not for: clusterCIDR, or another detectLocalMode"
                .to_owned(),
        );
    }
    if !is_internal {
        advice.fix.push(
            "or have the load balancer ask the Service's healthCheckNodePort, which is 200 on nodes with endpoints only"
                .to_owned(),
        );
    }
    advice
}

/// The endpoints of a port, of the packet's family.
fn endpoints_of<'a>(case: &Case<'_>, port: Option<&'a PortDetail>) -> Vec<&'a EndpointDetail> {
    let endpoints = port.into_iter().flat_map(|port| &port.endpoints);
    endpoints
        .filter(|endpoint| endpoint.address.is_ipv4() == case.destination.is_ipv4())
        .collect()
}

/// EndpointSlices without an address of the family.
fn no_address(case: &Case<'_>, frontend: &ServiceRow, detail: &ServiceDetail) -> Advice {
    let family = case.family();
    if !detail.endpoint_addresses.is_empty() {
        return Advice::new(
            format!("{} has endpoints, but none of {family}", named(frontend)),
            [format!(
                "give its pods {family} addresses, or take {family} out of spec.ipFamilies of the Service"
            )],
        );
    }
    let namespace = &frontend.namespace;
    Advice::new(
        format!(
            "the EndpointSlices of {} are empty: its selector matches no pod",
            named(frontend)
        ),
        [format!(
            "compare the SELECTOR of `kubectl -n {namespace} get service {} -o wide` with the LABELS of `kubectl -n {namespace} get \
             pods --show-labels`",
            frontend.service
        )],
    )
}

/// behaviour.md 1.12: a port of the Service and one of its slices belong together by name and protocol.
fn other_port(frontend: &ServiceRow, detail: &ServiceDetail, slices: &str) -> Advice {
    let quoted = |name: &str| {
        if name.is_empty() {
            "without a name".to_owned()
        } else {
            format!("named {name:?}")
        }
    };
    let protocol = frontend
        .protocol
        .map_or_else(String::new, |protocol| format!("/{protocol}"));
    let named_there: Vec<String> = detail
        .slice_ports
        .iter()
        .map(|port| format!("one {} ({})", quoted(&port.name), port.protocol))
        .collect();
    let there = if named_there.is_empty() {
        "they have none at all".to_owned()
    } else {
        format!("they have {}", named_there.join(", "))
    };
    Advice::new(
        format!(
            "the EndpointSlices of {} have {}, but no port {}{protocol}: {there}",
            named(frontend),
            counted(detail.endpoint_addresses.len()),
            quoted(&frontend.port_name),
        ),
        [
            "a targetPort that is a name must be the name of a port of the pods' containers, with the same protocol"
                .to_owned(),
            format!("EndpointSlices written by hand must use the Service's name of the port: {slices}"),
        ],
    )
}

/// The agent knows what the tables don't have.
fn unwritten(frontend: &ServiceRow, detail: &ServiceDetail) -> Advice {
    let mut advice = Advice::new(
        format!("{} has endpoints that are not in the tables", named(frontend)),
        ["`proxy-agent status --verify` tells what differs, and the agent's log why".to_owned()],
    );
    advice.fix.extend(detail.problems.iter().cloned());
    advice
}

/// The tables have a Service that the agent doesn't know.
fn gone(frontend: &ServiceRow) -> Advice {
    Advice::new(
        format!(
            "{} is in the tables, but no longer known: it was deleted",
            named(frontend)
        ),
        ["`proxy-agent status --verify` tells whether the tables are behind".to_owned()],
    )
}

/// Nobody says why.
fn unknown(frontend: &ServiceRow, error: &anyhow::Error) -> Advice {
    let (namespace, service) = (&frontend.namespace, &frontend.service);
    Advice::new(
        format!(
            "{} has no endpoint that is ready ({error:#}, so why isn't known)",
            named(frontend)
        ),
        [
            format!(
                "`kubectl -n {namespace} describe service {service}`: without endpoints its selector matches no pod, none is ready, \
                 or no container has a port of the targetPort's name"
            ),
            format!(
                "`kubectl -n {namespace} get endpointslices -l kubernetes.io/service-name={service} -o yaml` has the details"
            ),
        ],
    )
}

/// How many endpoints are in which state; each one by its address if they are few.
fn states(endpoints: &[&EndpointDetail]) -> String {
    if endpoints.len() <= 4 {
        let one = |endpoint: &&EndpointDetail| format!("{} ({endpoint})", endpoint.address);
        return endpoints.iter().map(one).collect::<Vec<_>>().join(", ");
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for endpoint in endpoints {
        *counts.entry(endpoint.to_string()).or_default() += 1;
    }
    let counted = counts.iter().map(|(state, count)| format!("{count} {state}"));
    counted.collect::<Vec<_>>().join("; ")
}

fn counted(endpoints: usize) -> String {
    if endpoints == 1 {
        "1 endpoint".to_owned()
    } else {
        format!("{endpoints} endpoints")
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
