//! What the agent's loop tells the outer surfaces. It knows them, and they don't know it, nor each other.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;

use crate::{
    config::NodePortAddresses,
    events::{About, Notice, Recorder},
    health::{HealthCheck, HealthCheckPorts, Moment, ProxyHealth},
    metrics::SyncMetrics,
    model::{Changes, Family, Model, ObjectName, Problem, ServiceView},
    source::{Change, Event},
};

pub(crate) use crate::metrics::Written;

/// All of them.
#[derive(Debug)]
pub struct Surfaces {
    metrics: SyncMetrics,
    health: ProxyHealth,
    recorder: Recorder,
    ports: HealthCheckPorts,
    /// What the Services want that were written last
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// What was wanted when ports were opened last
    opened: BTreeMap<ObjectName, HealthCheck>,
    /// Where the ports are: known when they are first needed, and kept (behaviour.md 8.1)
    addresses: Option<Vec<IpAddr>>,
    /// Ports that could not be opened, as last told
    refused: BTreeMap<ObjectName, String>,
}

impl Surfaces {
    /// Those that these handles lead to.
    pub fn new(metrics: SyncMetrics, health: ProxyHealth, recorder: Recorder) -> Self {
        Self {
            metrics,
            ports: HealthCheckPorts::new(health.clone()),
            health,
            recorder,
            checks: BTreeMap::new(),
            opened: BTreeMap::new(),
            addresses: None,
            refused: BTreeMap::new(),
        }
    }

    /// The proxy's health.
    pub(crate) const fn health(&self) -> &ProxyHealth {
        &self.health
    }

    /// Something was told by the source (behaviour.md 8.4, 9.9).
    pub(crate) fn told(&self, event: &Event) {
        match event {
            Event::Service(change) => self.metrics.services_changed(objects(change)),
            Event::EndpointSlice(change) => self.metrics.endpoints_changed(objects(change)),
            Event::Node(_) | Event::ServiceCIDR(_) | Event::Problems { .. } => return,
        }
        let now = Moment::now();
        for family in Family::ALL {
            self.health.queued(family, now);
        }
    }

    /// What has changed is about to be written, if there is anything.
    pub(crate) fn taken(&self) {
        self.metrics.taken();
    }

    /// Everything that was told is in the tables, or if it is not `complete`, all but some Services.
    pub(crate) fn up_to_date(&self, complete: bool) {
        if complete {
            self.metrics.complete();
        }
        let now = Moment::now();
        for family in Family::ALL {
            self.health.updated(family, now);
        }
    }

    /// The tables were written, which took this long; with changes of endpoints that were made in the cluster at these times
    /// (behaviour.md 9.8).
    pub(crate) fn written(&self, written: Written, took: Duration, changes: &[(Family, Timestamp)]) {
        self.metrics.written(written, took);
        let now = Timestamp::now();
        for (family, made) in changes {
            // The clocks of two machines differ.
            let took = Duration::try_from(now.duration_since(*made)).unwrap_or_default();
            self.metrics.programmed(*family, took);
        }
    }

    /// So many entries have been made good, since this process began.
    pub(crate) fn reconciled(&self, entries: u64) {
        self.metrics.set_reconciled(entries);
    }

    /// The Node may be another.
    pub(crate) fn node(&self, model: &Model) {
        self.health.set_eligible(model.node().eligible);
    }

    /// These Services have been written; their health checks follow with [`Self::open_ports`] (behaviour.md 9.10).
    pub(crate) fn services(&mut self, model: &Model, changes: &Changes) {
        let check = |view: ServiceView<'_>| {
            let port = view.service.health_check_port?;
            let endpoints = view.ready_here();
            Some((view.name.clone(), HealthCheck { port, endpoints }))
        };
        match changes {
            Changes::Everything | Changes::Known => self.checks = model.services().filter_map(check).collect(),
            Changes::Services(names) => {
                for name in names {
                    self.checks.remove(name);
                    self.checks.extend(model.service(name).and_then(check));
                }
            }
        }
    }

    /// Opens and closes health check node ports as the Services written last want it, at these addresses if it is the first
    /// time; tries those again that could not be opened.
    pub(crate) fn open_ports(&mut self, addresses: impl FnOnce() -> Vec<IpAddr>) {
        if self.checks == self.opened && self.refused.is_empty() {
            return;
        }
        self.opened.clone_from(&self.checks);
        let addresses = self.addresses.get_or_insert_with(addresses);
        let mut refused = BTreeMap::new();
        self.ports.sync(&self.checks, addresses, |service, reason| {
            refused.insert(service.clone(), reason);
        });
        for (service, reason) in &refused {
            if self.refused.get(service) != Some(reason) {
                tracing::warn!("{reason}");
                let about = About::Service(service.clone());
                let notice = Notice::warning(about, "FailedToStartServiceHealthcheck", "Listen", reason);
                self.recorder.record(notice);
            }
        }
        self.refused = refused;
    }

    /// This many things are not as they should be.
    pub(crate) fn problems(&self, count: usize) {
        self.metrics.set_problems(count);
    }

    /// Something that was to be written can't be.
    pub(crate) fn unwritten(&self, problem: &Problem) {
        if let Some(service) = problem.service() {
            let note = problem.to_string();
            self.recorder.record(Notice::warning(
                About::Service(service),
                "FailedToProgramService",
                "ProgramService",
                note,
            ));
        }
    }
}

/// Where health check node ports listen: at each address of the node that serves nodePorts, or at all there are.
pub(crate) fn health_check_addresses(
    configured: &NodePortAddresses,
    node_port_addresses: impl Iterator<Item = IpAddr>,
) -> Vec<IpAddr> {
    let everywhere = IpAddr::from(Ipv4Addr::UNSPECIFIED);
    let takes_all = |range: &IpNet| range.prefix_len() == 0;
    if configured.ranges().iter().any(takes_all) {
        return vec![everywhere];
    }
    // A link-local address can't be listened at without saying on which link, and no load balancer has such a way.
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let addresses: Vec<_> = node_port_addresses.filter(|address| !is_link_local(address)).collect();
    // As kube-proxy does where it doesn't find any.
    if addresses.is_empty() {
        vec![everywhere]
    } else {
        addresses
    }
}

/// How many objects a change is about.
fn objects<T>(change: &Change<T>) -> usize {
    match change {
        Change::Replace(objects) => objects.len(),
        Change::Apply(_) | Change::Delete(_) => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour.md 8.1: each address that serves nodePorts, or all if that is said.
    #[test]
    fn rule_8_1_health_checks_are_where_node_ports_are() {
        let parse = |text: &str| -> IpAddr { text.parse().unwrap() };
        let ranges =
            |texts: &[&str]| NodePortAddresses::Ranges(texts.iter().map(|text| text.parse().unwrap()).collect());
        let serving = ["192.0.2.7", "2001:db8::7", "fe80::7"].map(parse);
        let addresses = |configured: &NodePortAddresses| health_check_addresses(configured, serving.into_iter());
        let own = vec![parse("192.0.2.7"), parse("2001:db8::7")];
        assert_eq!(addresses(&NodePortAddresses::Primary), own);
        assert_eq!(addresses(&ranges(&["192.0.2.0/24", "2001:db8::/32"])), own);
        assert_eq!(addresses(&ranges(&["0.0.0.0/0"])), [parse("0.0.0.0")]);
        let none = health_check_addresses(&NodePortAddresses::Primary, std::iter::empty());
        assert_eq!(none, [parse("0.0.0.0")]);
    }
}
