//! What no frontend in the tables is for (behaviour.md 3.6, 4.6 to 4.9).

use std::{collections::BTreeSet, net::IpAddr};

use proxy_common::datapath::Reason;

use super::{Advice, Case, full, named, ports};
use crate::{
    dataplane::inspect::ServiceRow,
    inquiry::{About, ServiceDetail},
    plan::{Kind, Protocol},
};

/// A cluster address without the port.
pub(super) fn port(case: &Case<'_>) -> Advice {
    let address = case.destination.ip();
    let there: Vec<&ServiceRow> = case.rows.iter().filter(|row| row.address == Some(address)).collect();
    let Some(first) = there.first() else {
        // Its wildcard entry is all that it has.
        return unwritten(case, &About::Address(address)).unwrap_or_else(|| {
            Advice::new(
                format!("{address} is the cluster address of a Service none of whose ports is in the tables"),
                ["`proxy-agent status --verify` tells what is missing, and the agent's log why".to_owned()],
            )
        });
    };
    let (service, ports) = (named(first), ports(there.iter().copied()));
    let Some(protocol) = case.protocol else {
        return Advice::new(
            format!("{address} is the cluster address of {service}: no machine that could answer a ping"),
            [format!("try one of its ports: {ports}")],
        );
    };
    if let Some(unwritten) = unwritten(case, &About::Address(address)) {
        return unwritten;
    }
    Advice::new(
        format!(
            "{service} has no port {}/{protocol}: it has {ports}",
            case.destination.port()
        ),
        ["use one of these, or add the port to the Service".to_owned()],
    )
}

/// No frontend at all, and no cluster address: nothing where that is nobody's fault.
pub(super) fn frontend(case: &Case<'_>) -> Option<Advice> {
    let address = case.destination.ip();
    let own = case.own.iter().find(|(own, _)| *own == address);
    if let Some((_, serves_node_ports)) = own {
        return node_port(case, *serves_node_ports);
    }
    let there: Vec<&ServiceRow> = case.rows.iter().filter(|row| row.address == Some(address)).collect();
    if let Some(first) = there.first() {
        // behaviour.md 4.9
        let protocol = case.protocol?;
        return Some(unwritten(case, &About::Address(address)).unwrap_or_else(|| {
            Advice::new(
                format!(
                    "{address} is the {} address of {}, for {} only: what comes for {}/{protocol} is left alone",
                    first.kind,
                    named(first),
                    ports(there.iter().copied()),
                    case.destination.port()
                ),
                ["use one of these ports, or add the port to the Service".to_owned()],
            )
        }));
    }
    let is_endpoint = |row: &&ServiceRow| {
        let mut endpoints = row.cluster.iter().chain(&row.local);
        endpoints.any(|endpoint| endpoint.ip() == address)
    };
    if case.reason == Reason::Unrelated && case.rows.iter().any(|row| is_endpoint(&row)) {
        // A pod is talked to: that is no business of a proxy.
        return None;
    }
    Some(unwritten(case, &About::Address(address)).unwrap_or_else(|| nobodys(case, address)))
}

/// An address that no Service has.
fn nobodys(case: &Case<'_>, address: IpAddr) -> Advice {
    let where_from = if case.reason == Reason::Unallocated {
        ", though it is in a ServiceCIDR"
    } else {
        ""
    };
    let mut advice = Advice::new(
        format!("{address} belongs to no Service that this node serves{where_from}"),
        [
            format!(
                "`kubectl get services -A | grep -F {address}`: if none has it, the Service is gone, or a name is resolved to an \
                 address of before"
            ),
            "if one has it: this proxy leaves Services alone that are headless or of type ExternalName, and those with the label \
             service.kubernetes.io/service-proxy-name; addresses of a load balancer count in status.loadBalancer.ingress, \
             without ipMode Proxy"
                .to_owned(),
        ],
    );
    if let Err(error) = (case.find)(&About::Address(address)) {
        advice.fix.push(format!(
            "{error:#}: without an agent nothing new is served; `proxy-agent status` tells whether one runs"
        ));
    }
    advice
}

/// An address of the node, and no nodePort there.
fn node_port(case: &Case<'_>, serves_node_ports: bool) -> Option<Advice> {
    let protocol = case.protocol?;
    let (address, port) = (case.destination.ip(), case.destination.port());
    // Of both families, as nodePorts have no address.
    let there: Vec<&ServiceRow> = case
        .rows
        .iter()
        .filter(|row| row.kind == Kind::NodePort && row.port == port)
        .collect();
    if let Some(row) = there
        .iter()
        .find(|row| row.protocol == Some(protocol))
        .filter(|_| !serves_node_ports)
    {
        return Some(not_there(case, row));
    }
    if let Some(row) = there.first() {
        // Each has a frontend in each family.
        let protocols: BTreeSet<Protocol> = there.iter().filter_map(|row| row.protocol).collect();
        let protocols: Vec<String> = protocols.iter().map(ToString::to_string).collect();
        return Some(Advice::new(
            format!(
                "nodePort {port} of {} is one of {}, not of {protocol}",
                named(row),
                protocols.join(" and ")
            ),
            ["use that protocol, or add a port of the other to the Service".to_owned()],
        ));
    }
    unwritten(case, &About::NodePort(port)).or_else(|| {
        let is_usual = (30_000..=32_767).contains(&port);
        is_usual.then(|| {
            Advice::new(
                format!("no Service has the nodePort {port}/{protocol}: {address} itself answers, or nobody"),
                [
                    "`kubectl get services -A -o wide` has the nodePorts behind the colons".to_owned(),
                    "a Service of type ClusterIP has none; one of type LoadBalancer may have none by \
                     allocateLoadBalancerNodePorts: false"
                        .to_owned(),
                ],
            )
        })
    })
}

/// behaviour.md 3.6, 3.7
fn not_there(case: &Case<'_>, row: &ServiceRow) -> Advice {
    let address = case.destination.ip();
    let served: Vec<String> = case
        .own
        .iter()
        .filter(|(own, serves)| *serves && own.is_ipv4() == address.is_ipv4())
        .map(|(own, _)| own.to_string())
        .collect();
    let at = if served.is_empty() {
        format!("at no {} address", case.family())
    } else {
        format!("at {} only", served.join(", "))
    };
    let why = if address.is_loopback() {
        "loopback addresses serve nodePorts to processes of the host only, whose sockets the agent must serve (--socket-lb)"
    } else {
        "nodePortAddresses of the configuration chooses the addresses; without it they are the node's primary ones"
    };
    Advice::new(
        format!(
            "nodePort {} of {} is not served at {address}: it is {at}",
            row.port,
            named(row)
        ),
        [
            why.to_owned(),
            "use another address of the node, or give nodePortAddresses a range with this one".to_owned(),
        ],
    )
}

/// What the agent knows of and the tables don't have.
fn unwritten(case: &Case<'_>, about: &About) -> Option<Advice> {
    let known = (case.find)(about).ok()?;
    let detail = known
        .iter()
        .find(|detail| has_port(detail, about, case.protocol, case.destination.port()))?;
    let cause = format!(
        "Service {}/{} has this port, but it is not in the tables{}",
        detail.namespace,
        detail.service,
        full::services(case)
    );
    let mut advice = Advice {
        cause,
        fix: detail.problems.clone(),
    };
    advice
        .fix
        .push("`proxy-agent status --verify` tells what differs, and the agent's log why".to_owned());
    Some(advice)
}

fn has_port(detail: &ServiceDetail, about: &About, protocol: Option<Protocol>, number: u16) -> bool {
    let mut ports = detail.ports.iter().filter(|port| Some(port.protocol) == protocol);
    match about {
        About::NodePort(_) => ports.any(|port| port.node_port == Some(number)),
        _ => ports.any(|port| port.port == number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dataplane::inspect::TableFill, inquiry::PortDetail};

    fn web() -> ServiceDetail {
        ServiceDetail {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            internal_traffic_local: false,
            external_traffic_local: false,
            addresses: vec!["10.96.0.1".parse().unwrap()],
            ports: vec![PortDetail {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
                endpoints: Vec::new(),
            }],
            slices: 0,
            slice_ports: Vec::new(),
            endpoint_addresses: Vec::new(),
            problems: vec!["Service default/web: table services_v4 is full".to_owned()],
        }
    }

    fn advice(find: &dyn Fn(&About) -> anyhow::Result<Vec<ServiceDetail>>, entries: u64) -> Advice {
        let fill = TableFill {
            name: "services_v4",
            entries,
            max_entries: 4,
            evicts: false,
        };
        let case = Case {
            reason: Reason::Unallocated,
            protocol: Some(Protocol::Tcp),
            is_from_pod: true,
            source: "10.244.0.5".parse().unwrap(),
            destination: "10.96.0.1:80".parse().unwrap(),
            frontend: None,
            rows: &[],
            fills: &[fill],
            own: &[],
            find,
        };
        case.advice().unwrap()
    }

    #[test]
    fn a_service_without_room_in_a_table_is_told() {
        let advice = advice(&|_| Ok(vec![web()]), 4);
        assert_eq!(
            advice.cause,
            "Service default/web has this port, but it is not in the tables: services_v4 has 4 of 4 entries \
             (--table-size services_v4=ENTRIES)"
        );
        assert_eq!(advice.fix[0], "Service default/web: table services_v4 is full");
    }

    #[test]
    fn an_agent_that_is_not_there_is_told() {
        let advice = advice(&|_| Err(anyhow::anyhow!("no agent answers")), 0);
        assert!(
            advice.cause.starts_with("10.96.0.1 belongs to no Service"),
            "{advice:?}"
        );
        assert!(
            advice.fix.iter().any(|line| line.starts_with("no agent answers: ")),
            "{advice:?}"
        );
    }
}
