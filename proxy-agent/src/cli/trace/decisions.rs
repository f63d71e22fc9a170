//! The datapath's decisions in words, in order, by what it asked of the tables.

use std::net::{IpAddr, SocketAddr};

use proxy_common::{
    datapath::InsertError,
    layout::{FlowKey, LOCAL_PODS, ServiceKey, address_flags},
};

use crate::{
    cli::listing::or_dash,
    dataplane::{address::Address, inspect::ServiceRow, simulation::Lookup},
    plan::Protocol,
};

/// A line for each question that decided something. `key` is the packet's; `rows` are the frontends in the tables; `policy` says
/// which endpoints there were to choose from.
pub(super) fn decisions<A: Address>(
    lookups: &[Lookup<A>],
    key: &FlowKey<A>,
    rows: &[ServiceRow],
    mut policy: Option<String>,
) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut flow_is_told = false;
    for lookup in lookups {
        if let Lookup::Flow(of, _) = lookup {
            // Looked up again when it is there, it decides nothing any more; nor do those of others.
            if of != key || flow_is_told {
                continue;
            }
            flow_is_told = true;
        }
        if matches!(lookup, Lookup::Remembered(..) | Lookup::Endpoint(..)) {
            lines.extend(policy.take());
        }
        lines.extend(line(lookup, key, rows));
    }
    // What is asked at a socket is asked again of its packets.
    lines.dedup();
    lines
}

fn line<A: Address>(lookup: &Lookup<A>, packet: &FlowKey<A>, rows: &[ServiceRow]) -> Option<String> {
    Some(match lookup {
        Lookup::FrontendFilter(address, false) => {
            format!("{} is no address of a Service, nor of this node", address.to_ip())
        }
        Lookup::BackendFilter(address, true) => format!("{} may be an endpoint's address", address.to_ip()),
        Lookup::ServiceRange(address, true) => format!("{} is in a ServiceCIDR", address.to_ip()),
        Lookup::ServiceRange(address, false) => format!("{} is in no ServiceCIDR", address.to_ip()),
        Lookup::OwnAddress(address, flags) => own_address(address.to_ip(), *flags),
        Lookup::Frontend(key, found) => frontend(key, found.is_some(), rows),
        Lookup::Source(LOCAL_PODS, address, is_pod) => {
            let is = if *is_pod { "is" } else { "is not" };
            format!("{} {is} in a range of pods' addresses", address.to_ip())
        }
        Lookup::Source(_, address, is_let_in) => {
            let is = if *is_let_in { "is" } else { "is not" };
            format!("{} {is} in the Service's loadBalancerSourceRanges", address.to_ip())
        }
        Lookup::Remembered(client, None) => format!("session affinity remembers no endpoint of {}", client.to_ip()),
        Lookup::Remembered(client, Some(last)) => format!(
            "session affinity: {} was last sent to {}",
            client.to_ip(),
            SocketAddr::new(last.address.to_ip(), last.port)
        ),
        Lookup::Endpoint(index, Some(backend)) => format!(
            "endpoint {} of the list is drawn: {}",
            index + 1,
            SocketAddr::new(backend.address.to_ip(), backend.port)
        ),
        Lookup::Endpoint(index, None) => format!("endpoint {} of the list is drawn, and is missing", index + 1),
        Lookup::Flow(key, known) if key == packet => {
            let has = if *known { "a" } else { "no" };
            format!("{has} flow with these addresses and ports is known")
        }
        Lookup::Opened(_, Err(InsertError::Exists)) => {
            "towards the endpoint these ports are another flow's: another source port is tried".to_owned()
        }
        Lookup::Opened(_, Err(InsertError::Full)) => "the flow table has no room for the flow".to_owned(),
        Lookup::FrontendFilter(_, true)
        | Lookup::BackendFilter(_, false)
        | Lookup::Flow(..)
        | Lookup::Opened(_, Ok(())) => return None,
    })
}

fn own_address(address: IpAddr, flags: u32) -> String {
    let what = if flags == 0 {
        "is none of this node's addresses"
    } else if flags & address_flags::NODE_PORTS != 0 {
        "is an address of this node where nodePorts are served"
    } else if flags & address_flags::LOOPBACK_NODE_PORTS != 0 {
        "is an address of this node where nodePorts are served to its processes"
    } else {
        "is an address of this node where nodePorts are not served"
    };
    format!("{address} {what}")
}

fn frontend<A: Address>(key: &ServiceKey<A>, found: bool, rows: &[ServiceRow]) -> String {
    let address = (key.address != A::default()).then(|| key.address.to_ip());
    let protocol = Protocol::from_number(key.protocol);
    let Some(address) = address else {
        let name = name_at(rows, None, key.port, protocol);
        let whose = if found { name } else { "no Service's".to_owned() };
        return format!("nodePort {}/{} is {whose}", key.port, or_dash(protocol));
    };
    if *key == ServiceKey::wildcard(key.address) {
        return if found {
            format!("{address} is a cluster address, none of whose ports this is")
        } else {
            format!("{address} is no Service's cluster address")
        };
    }
    let whose = if found {
        name_at(rows, Some(address), key.port, protocol)
    } else {
        "no Service's".to_owned()
    };
    let place = SocketAddr::new(address, key.port);
    format!("{place}/{} is {whose}", or_dash(protocol))
}

/// The kind and service port of a frontend.
fn name_at(rows: &[ServiceRow], address: Option<IpAddr>, port: u16, protocol: Option<Protocol>) -> String {
    let mut rows = rows.iter();
    let row = rows.find(|row| (row.address, row.port, row.protocol) == (address, port, protocol));
    row.map_or_else(
        || "a Service's".to_owned(),
        |row| {
            format!(
                "the {} of {}/{}:{}",
                row.kind, row.namespace, row.service, row.port_name
            )
        },
    )
}
