//! What is wrong when a packet doesn't get where its sender wants it, and what to do about it.
//!
//! The tables say what; why an endpoint isn't in them, or a Service isn't, only the objects do.

mod absent;
mod endpoints;
mod full;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_common::datapath::Reason;
use serde::Serialize;

use crate::{
    dataplane::inspect::{ServiceRow, TableFill},
    inquiry::{About, ServiceDetail},
    model::ObjectName,
    plan::Protocol,
};

/// The cause, and what helps: one or the other of the lines, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Advice {
    /// What is wrong
    pub(super) cause: String,
    /// What helps
    pub(super) fix: Vec<String>,
}

impl Advice {
    pub(super) fn new<const N: usize>(cause: impl Into<String>, fix: [String; N]) -> Self {
        Self {
            cause: cause.into(),
            fix: fix.into(),
        }
    }
}

/// A packet that was not forwarded.
pub(super) struct Case<'a> {
    /// Why
    pub(super) reason: Reason,
    /// Its protocol; `None` for one without ports
    pub(super) protocol: Option<Protocol>,
    /// It comes from a pod of this node
    pub(super) is_from_pod: bool,
    /// Its source
    pub(super) source: IpAddr,
    /// Its destination; the port means nothing without a protocol
    pub(super) destination: SocketAddr,
    /// The frontend that it is for, if there is one
    pub(super) frontend: Option<&'a ServiceRow>,
    /// Every frontend in the tables
    pub(super) rows: &'a [ServiceRow],
    /// How full the tables are
    pub(super) fills: &'a [TableFill],
    /// The node's own addresses, and whether nodePorts are served there
    pub(super) own: &'a [(IpAddr, bool)],
    /// Finds Services by what is known besides the tables
    pub(super) find: &'a dyn Fn(&About) -> Result<Vec<ServiceDetail>>,
}

impl Case<'_> {
    /// What to say of it; nothing where nothing is wrong that this proxy could know of.
    pub(super) fn advice(&self) -> Option<Advice> {
        match (self.reason, self.frontend) {
            (Reason::NoEndpoints, Some(frontend)) => Some(endpoints::none(self, frontend)),
            (Reason::NoLocalEndpoints, Some(frontend)) => Some(endpoints::none_here(self, frontend)),
            (Reason::SourceRefused, Some(frontend)) => Some(source_refused(self, frontend)),
            (Reason::NoPort, _) => Some(absent::port(self)),
            (Reason::Unallocated | Reason::Unrelated | Reason::NoFrontend | Reason::OtherProtocol, _) => {
                absent::frontend(self)
            }
            (Reason::FlowTableFull | Reason::PortsExhausted | Reason::NoMasqueradeAddress, _) => Some(full::flow(self)),
            (Reason::EndpointMissing, _) => Some(Advice::new(
                "the tables are not as the agent wrote them",
                ["`proxy-agent status --verify` tells what differs; an agent that runs makes it good within 5 minutes, \
                  one that is restarted at once"
                    .to_owned()],
            )),
            _ => None,
        }
    }

    /// `IPv4` or `IPv6`.
    fn family(&self) -> &'static str {
        if self.destination.is_ipv4() { "IPv4" } else { "IPv6" }
    }

    /// The Service of a frontend, by what is known besides the tables.
    fn detail(&self, frontend: &ServiceRow) -> Result<Option<ServiceDetail>> {
        let about = About::Service(ObjectName {
            namespace: frontend.namespace.clone(),
            name: frontend.service.clone(),
        });
        Ok((self.find)(&about)?.pop())
    }
}

/// behaviour.md 3.10
fn source_refused(case: &Case<'_>, frontend: &ServiceRow) -> Advice {
    let ranges: Vec<String> = frontend.sources.iter().map(ToString::to_string).collect();
    let service = named(frontend);
    Advice::new(
        format!(
            "{} is in none of the loadBalancerSourceRanges of {service}: {}",
            case.source,
            ranges.join(", ")
        ),
        [
            format!("add a range that holds {} to spec.loadBalancerSourceRanges of {service}", case.source),
            "where the client has another address, something on the way hides it: a load balancer must keep the sources"
                .to_owned(),
            "within the cluster use the cluster address: the ranges hold for the load balancer's only".to_owned(),
        ],
    )
}

/// The Service of a frontend, in words.
fn named(frontend: &ServiceRow) -> String {
    format!("Service {}/{}", frontend.namespace, frontend.service)
}

/// `80/TCP (http)` of each of these frontends.
fn ports<'a>(rows: impl IntoIterator<Item = &'a ServiceRow>) -> String {
    let one = |row: &ServiceRow| {
        let protocol = row.protocol.map_or_else(String::new, |protocol| format!("/{protocol}"));
        let name = if row.port_name.is_empty() {
            String::new()
        } else {
            format!(" ({})", row.port_name)
        };
        format!("{}{protocol}{name}", row.port)
    };
    rows.into_iter().map(one).collect::<Vec<_>>().join(", ")
}
