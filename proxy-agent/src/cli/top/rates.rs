//! From two looks at the tables to rates. Pure.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use proxy_common::datapath::Reason;
use serde::Serialize;

use super::setup::Setup;
use crate::{
    cli::rate::per_second,
    dataplane::inspect::ServiceLoad,
    plan::{Protocol, ServicePort},
};

/// A look at the tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// When, since boot
    pub(super) taken: Duration,
    /// What each service port has to do
    pub(super) loads: BTreeMap<ServicePort, ServiceLoad>,
    /// How long flows waited for their first answer since the look before
    pub(super) setups: BTreeMap<ServicePort, Setup>,
    /// Packets refused so far, whoever they were for, by reason
    pub(super) reasons: BTreeMap<Reason, u64>,
}

/// What there was to do between two looks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// Seconds between them
    pub(super) seconds: f64,
    /// All service ports together. Of refused packets those that are for no service port as well
    pub(super) total: Load,
    /// Packets refused a second, by reason, without those of which there were none
    pub(super) refusals: Vec<Refusal>,
    /// Every service port
    pub(super) services: Vec<ServiceRates>,
}

/// What there is to do for somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Load {
    /// New connections a second
    pub(super) connections: f64,
    /// Packets rewritten a second, both directions
    pub(super) packets: f64,
    /// Bytes of these a second
    pub(super) bytes: f64,
    /// Packets refused a second: rejected or dropped
    pub(super) refused: f64,
    /// Flows that there are, as metrics count them
    pub(super) flows: u64,
}

/// A reason to refuse packets.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Refusal {
    /// Its name
    pub(super) reason: String,
    /// Packets a second
    pub(super) packets: f64,
}

/// A service port.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ServiceRates {
    /// `namespace/name:port_name`
    pub(super) service: String,
    /// Its protocol
    pub(super) protocol: Protocol,
    /// What it is reached by
    pub(super) frontends: Vec<String>,
    /// What there is to do for it
    #[serde(flatten)]
    pub(super) load: Load,
    /// How long its new flows waited for their first answer; `None` if there was none, or nobody tells
    pub(super) setup: Option<Setup>,
    /// Whom its flows go to
    pub(super) endpoints: Vec<EndpointFlows>,
}

#[cfg(test)]
impl ServiceRates {
    /// Port `http` of a TCP Service at the address 10.96.0.x, of so many letters, with so many flows to the endpoints 10.0.0.1,
    /// 10.0.0.2 and so on.
    pub(super) fn example(name: &str, load: Load, flows: &[u64]) -> Self {
        let endpoint = |(host, &flows)| EndpointFlows {
            endpoint: ([10, 0, 0, host], 80).into(),
            flows,
        };
        Self {
            service: format!("default/{name}:http"),
            protocol: Protocol::Tcp,
            frontends: vec![format!("10.96.0.{}:80", name.len())],
            load: Load {
                flows: flows.iter().sum(),
                ..load
            },
            setup: None,
            endpoints: (1..).zip(flows).map(endpoint).collect(),
        }
    }
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct EndpointFlows {
    /// Its address
    pub(super) endpoint: SocketAddr,
    /// Flows of the service port to it
    pub(super) flows: u64,
}

/// What there was to do from one look to the other. Of what is new since the first, all that was counted.
pub(super) fn rates(before: &Sample, after: &Sample) -> Rates {
    let seconds = after.taken.saturating_sub(before.taken).as_secs_f64();
    let rate = |before: u64, after: u64| per_second(before, after, seconds);
    let mut total = Load::default();
    let services = after.loads.iter().map(|(port, load)| {
        let then = before.loads.get(port);
        let counter = then.map(|load| load.counter).unwrap_or_default();
        let load_now = Load {
            connections: rate(counter.connections, load.counter.connections),
            packets: rate(counter.packets, load.counter.packets),
            bytes: rate(counter.bytes, load.counter.bytes),
            refused: rate(then.map_or(0, |load| load.refused), load.refused),
            flows: load.endpoints.values().sum(),
        };
        total.connections += load_now.connections;
        total.packets += load_now.packets;
        total.bytes += load_now.bytes;
        total.flows += load_now.flows;
        let endpoints = load.endpoints.iter();
        ServiceRates {
            service: port.to_string(),
            protocol: port.protocol,
            frontends: load.frontends.clone(),
            load: load_now,
            setup: after.setups.get(port).copied(),
            endpoints: endpoints
                .map(|(&endpoint, &flows)| EndpointFlows { endpoint, flows })
                .collect(),
        }
    });
    let services = services.collect();
    let refusals = after.reasons.iter().map(|(reason, &now)| Refusal {
        reason: format!("{reason:?}"),
        packets: rate(before.reasons.get(reason).copied().unwrap_or(0), now),
    });
    let mut refusals: Vec<_> = refusals.filter(|refusal| refusal.packets > 0.0).collect();
    refusals.sort_by(|a, b| b.packets.total_cmp(&a.packets));
    // Not `sum`, which begins at -0.
    total.refused = refusals.iter().fold(0.0, |sum, refusal| sum + refusal.packets);
    Rates {
        seconds,
        total,
        refusals,
        services,
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::ServiceCounter;

    use super::*;

    fn port(name: &str) -> ServicePort {
        ServicePort {
            namespace: "default".to_owned(),
            service: name.to_owned(),
            port_name: "http".to_owned(),
            protocol: Protocol::Tcp,
        }
    }

    fn load(connections: u64, refused: u64, flows: &[u64]) -> ServiceLoad {
        ServiceLoad {
            frontends: vec!["10.96.0.1:80".to_owned()],
            id: 1,
            counter: ServiceCounter {
                connections,
                packets: connections * 10,
                bytes: connections * 1000,
            },
            refused,
            endpoints: (1..)
                .zip(flows)
                .map(|(host, flows)| (([10, 0, 0, host], 80).into(), *flows))
                .collect(),
        }
    }

    fn sample(seconds: u64, loads: &[(&str, ServiceLoad)], no_port: u64) -> Sample {
        Sample {
            taken: Duration::from_secs(seconds),
            loads: loads.iter().map(|(name, load)| (port(name), load.clone())).collect(),
            setups: BTreeMap::new(),
            reasons: [(Reason::NoPort, no_port), (Reason::NoEndpoints, 7)].into(),
        }
    }

    #[test]
    fn rates_are_what_was_added_in_a_second() {
        let before = sample(10, &[("web", load(100, 4, &[1]))], 10);
        let after = sample(12, &[("web", load(150, 10, &[3, 2])), ("new", load(2, 0, &[]))], 11);
        let rates = rates(&before, &after);
        let web = Load {
            connections: 25.0,
            packets: 250.0,
            bytes: 25_000.0,
            refused: 3.0,
            flows: 5,
        };
        let new = Load {
            connections: 1.0,
            packets: 10.0,
            bytes: 1000.0,
            refused: 0.0,
            flows: 0,
        };
        let loads: Vec<_> = rates
            .services
            .iter()
            .map(|row| (row.service.as_str(), row.load))
            .collect();
        assert_eq!(loads, [("default/new:http", new), ("default/web:http", web)]);
        let expected = Load {
            connections: 26.0,
            packets: 260.0,
            bytes: 26_000.0,
            refused: 0.5,
            flows: 5,
        };
        assert_eq!(rates.total, expected);
        assert_eq!(
            rates.refusals,
            [Refusal {
                reason: "NoPort".to_owned(),
                packets: 0.5
            }]
        );
        let flows: Vec<_> = rates.services[1]
            .endpoints
            .iter()
            .map(|endpoint| endpoint.flows)
            .collect();
        assert_eq!(flows, [3, 2]);
    }

    #[test]
    fn setups_are_those_of_the_later_look() {
        let mut after = sample(12, &[("web", load(1, 0, &[])), ("new", load(1, 0, &[]))], 0);
        let setup = Setup {
            answered: 1,
            p50: 0.5,
            p99: 0.5,
        };
        after.setups.insert(port("web"), setup);
        let setups: Vec<_> = rates(&Sample::default(), &after)
            .services
            .iter()
            .map(|row| row.setup)
            .collect();
        assert_eq!(setups, [None, Some(setup)]);
    }

    #[test]
    fn counters_that_begin_anew_and_looks_at_the_same_time_give_no_nonsense() {
        let (low, high) = (
            sample(10, &[("web", load(1, 1, &[]))], 0),
            sample(10, &[("web", load(9, 9, &[]))], 0),
        );
        let later = Sample {
            taken: Duration::from_secs(20),
            ..low.clone()
        };
        for (before, after) in [(&low, &high), (&high, &later)] {
            let rates = rates(before, after);
            assert_eq!(rates.services[0].load, Load::default());
            assert!(rates.total.refused.is_sign_positive(), "{:?}", rates.total);
        }
    }
}
