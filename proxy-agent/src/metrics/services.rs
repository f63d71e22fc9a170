//! What is told of each service port and endpoint, up to a limit: time series cost memory wherever they are kept.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use anyhow::Result;
use prometheus_client::encoding::DescriptorEncoder;
use proxy_common::{datapath::Reason, layout::ServiceCounter};

use super::{
    detail::{Detail, Told},
    encode::{counters, gauge, gauges},
};
use crate::{
    dataplane::{
        inspect::{self, Census, ServiceTraffic},
        table::Tables,
    },
    plan::ServicePort,
};

/// What is told.
#[derive(Default)]
pub(super) struct Services {
    detail: Option<Detail>,
    ports: Vec<Port>,
    refusals: Vec<Refusal>,
    endpoints: Vec<Endpoint>,
    /// Service ports and endpoints that are left out
    left_out: usize,
}

struct Port {
    traffic: ServiceTraffic,
    flows: u64,
}

struct Refusal {
    port: ServicePort,
    reason: Reason,
    packets: u64,
}

struct Endpoint {
    port: ServicePort,
    address: SocketAddr,
    counted: ServiceCounter,
    flows: u64,
}

impl Services {
    /// Reads what there is to tell. Of too many service ports those with the lowest ids are told, which are the oldest: so they
    /// stay the same.
    pub(super) fn read(tables: &Tables, census: &Census, detail: Detail) -> Result<Self> {
        if detail.services == Told::Off && detail.endpoints == Told::Off {
            return Ok(Self::default());
        }
        let mut traffic = inspect::service_traffic(tables)?;
        traffic.sort_unstable_by_key(|port| port.id);
        let mut counted = BTreeMap::new();
        if detail.endpoints == Told::On {
            counted = inspect::endpoint_traffic(tables)?;
            // Flows go on to endpoints that are no more.
            for endpoint in census.endpoints.keys() {
                counted.entry(*endpoint).or_default();
            }
        }
        let all = traffic.len() + counted.len();
        traffic.truncate(detail.limit);
        let name = |id| Some(&traffic[traffic.binary_search_by_key(&id, |port| port.id).ok()?].port);
        let endpoint = |((id, address), counted)| {
            Some(Endpoint {
                port: name(id)?.clone(),
                address,
                counted,
                flows: census.endpoints.get(&(id, address)).copied().unwrap_or_default(),
            })
        };
        let endpoints: Vec<_> = counted.into_iter().filter_map(endpoint).take(detail.limit).collect();
        let mut refusals = Vec::new();
        if detail.services == Told::On {
            for (id, reason, counted) in inspect::refusals(tables)? {
                refusals.extend(name(id).map(|port| Refusal {
                    port: port.clone(),
                    reason,
                    packets: counted.packets,
                }));
            }
            refusals.sort_unstable_by(|one, other| (&one.port, one.reason).cmp(&(&other.port, other.reason)));
        }
        let ports = traffic.into_iter().map(|traffic| {
            let flows = census.services.get(&traffic.id).copied().unwrap_or_default();
            Port { traffic, flows }
        });
        let ports: Vec<_> = ports.collect();
        Ok(Self {
            detail: Some(detail),
            left_out: all - ports.len() - endpoints.len(),
            ports,
            refusals,
            endpoints,
        })
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(detail) = self.detail else { return Ok(()) };
        let help = "Service ports and endpoints that are not told, as they are more than --metrics-limit";
        gauge(encoder, ("proxy_agent_metrics_left_out", help), self.left_out as u64)?;
        if detail.services == Told::On {
            self.encode_ports(encoder)?;
        }
        if detail.endpoints == Told::On {
            self.encode_endpoints(encoder)?;
        }
        Ok(())
    }

    fn encode_ports(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let by_port = |value: fn(&ServiceCounter) -> u64| {
            let row = move |port: &Port| (labels(&port.traffic.port), value(&port.traffic.counted));
            self.ports.iter().map(row)
        };
        let connections = ("proxy_agent_service_connections", "New flows to a service port");
        counters(encoder, connections, by_port(|counter| counter.connections))?;
        let packets = ("proxy_agent_service_packets", "Packets to and from a service port");
        counters(encoder, packets, by_port(|counter| counter.packets))?;
        let bytes = (
            "proxy_agent_service_bytes",
            "Bytes to and from a service port, from the network header on",
        );
        counters(encoder, bytes, by_port(|counter| counter.bytes))?;
        let flows = (
            "proxy_agent_service_flows",
            "Flows to a service port that their client has not closed",
        );
        gauges(
            encoder,
            flows,
            self.ports.iter().map(|port| (labels(&port.traffic.port), port.flows)),
        )?;
        let refused = (
            "proxy_agent_service_refused_packets",
            "Packets that a service port refused, by what became of them, and why",
        );
        let row = |refusal: &Refusal| {
            let [namespace, service, port, protocol] = labels(&refusal.port);
            let verdict = ("verdict", format!("{:?}", refusal.reason.verdict()));
            let reason = ("reason", format!("{:?}", refusal.reason));
            ([namespace, service, port, protocol, verdict, reason], refusal.packets)
        };
        counters(encoder, refused, self.refusals.iter().map(row))
    }

    fn encode_endpoints(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let labels = |endpoint: &Endpoint| {
            let [namespace, service, port, protocol] = labels(&endpoint.port);
            let address = ("backend", endpoint.address.to_string());
            [namespace, service, port, protocol, address]
        };
        let by_endpoint = |value: fn(&ServiceCounter) -> u64| {
            let row = move |endpoint: &Endpoint| (labels(endpoint), value(&endpoint.counted));
            self.endpoints.iter().map(row)
        };
        let connections = ("proxy_agent_endpoint_connections", "New flows to an endpoint");
        counters(encoder, connections, by_endpoint(|counter| counter.connections))?;
        let packets = ("proxy_agent_endpoint_packets", "Packets to and from an endpoint");
        counters(encoder, packets, by_endpoint(|counter| counter.packets))?;
        let bytes = (
            "proxy_agent_endpoint_bytes",
            "Bytes to and from an endpoint, from the network header on",
        );
        counters(encoder, bytes, by_endpoint(|counter| counter.bytes))?;
        let flows = (
            "proxy_agent_endpoint_flows",
            "Flows to an endpoint that their client has not closed",
        );
        let rows = self.endpoints.iter().map(|endpoint| (labels(endpoint), endpoint.flows));
        gauges(encoder, flows, rows)
    }
}

/// The labels of a service port.
fn labels(port: &ServicePort) -> [(&'static str, String); 4] {
    [
        ("namespace", port.namespace.clone()),
        ("service", port.service.clone()),
        ("port", port.port_name.clone()),
        ("protocol", port.protocol.to_string()),
    ]
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use prometheus_client::{collector::Collector, registry::Registry};
    use proxy_common::layout::{Backend, Counter, EndpointKey, RefusalKey, SlotKey};

    use super::*;
    use crate::{
        dataplane::{memory::Memory, service_name},
        metrics::text,
        plan::Protocol,
    };

    /// Services that were read before the scrape.
    struct Known(Services);

    impl fmt::Debug for Known {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Known")
        }
    }

    impl Collector for Known {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(&mut encoder)
        }
    }

    const ENDPOINT: ([u8; 4], u16) = ([10, 244, 1, 7], 8080);

    /// A scrape with three service ports, `a` to `c`, of which `b` has traffic.
    fn scrape(detail: Detail) -> String {
        let memory = Memory::default();
        let mut tables = memory.tables();
        for (id, service) in [(2, "a"), (3, "b"), (4, "c")] {
            let port = ServicePort {
                namespace: "default".to_owned(),
                service: service.to_owned(),
                port_name: "http".to_owned(),
                protocol: Protocol::Tcp,
            };
            let name = service_name::encode(&port).expect("short names");
            tables.service_names.insert(&id, &name).expect("room");
        }
        let counted = ServiceCounter {
            connections: 1,
            packets: 20,
            bytes: 300,
        };
        tables.service_counts.insert(&3, &counted).expect("room");
        for (service, reason, packets) in [
            (3, Reason::NoEndpoints, 5),
            (3, Reason::FlowTableFull, 2),
            (9, Reason::NoEndpoints, 1),
        ] {
            let reason = reason as u32;
            let refused = Counter { packets, bytes: 60 };
            let key = RefusalKey { service, reason };
            tables.refusals.insert(&key, &refused).expect("room");
        }
        // Of an endpoint that there is, and of one that was.
        let (address, port) = ENDPOINT;
        let backend = Backend {
            address,
            port,
            reserved: 0,
        };
        let slot = SlotKey { set: 1, index: 0 };
        tables.v4.slots.insert(&slot, &backend).expect("room");
        for address in [address, [10, 244, 1, 9]] {
            let key = EndpointKey::new(3, &address, port);
            let counted = ServiceCounter {
                connections: 2,
                packets: 40,
                bytes: 600,
            };
            tables.endpoint_counts.insert(&key, &counted).expect("room");
        }
        let census = Census {
            services: HashMap::from([(3, 7)]),
            endpoints: HashMap::from([((3, ENDPOINT.into()), 6), ((4, ENDPOINT.into()), 1)]),
            ..Census::default()
        };
        let services = Services::read(&tables, &census, detail).expect("readable");
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Known(services)));
        text::encode(&registry).expect("a string takes everything")
    }

    /// A scrape that tells of everything.
    pub(in crate::metrics) fn sample() -> String {
        scrape(Detail {
            endpoints: Told::On,
            ..Detail::default()
        })
    }

    fn samples(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn service_ports_are_told_unless_they_are_off() {
        let text = scrape(Detail::default());
        let told = samples(&text);
        let labels = r#"{namespace="default",service="b",port="http",protocol="TCP"}"#;
        for (name, value) in [
            ("service_connections_total", 1),
            ("service_packets_total", 20),
            ("service_bytes_total", 300),
            ("service_flows", 7),
        ] {
            let line = format!("proxy_agent_{name}{labels} {value}");
            assert!(told.contains(&line.as_str()), "{line} is not in\n{text}");
        }
        assert!(told.contains(&"proxy_agent_metrics_left_out 0"));
        // Of a service port that there isn't, nothing.
        for (verdict, reason, packets) in [("Reject", "NoEndpoints", 5), ("Drop", "FlowTableFull", 2)] {
            let labels = labels.replace('}', &format!(r#",verdict="{verdict}",reason="{reason}"}}"#));
            let line = format!("proxy_agent_service_refused_packets_total{labels} {packets}");
            assert!(told.contains(&line.as_str()), "{line} is not in\n{text}");
        }
        assert_eq!(told.len(), 1 + 3 * 4 + 2);
        let off = Detail {
            services: Told::Off,
            ..Detail::default()
        };
        assert_eq!(scrape(off), "");
    }

    #[test]
    fn endpoints_are_told_if_that_is_asked_for() {
        let detail = Detail {
            services: Told::Off,
            endpoints: Told::On,
            ..Detail::default()
        };
        let text = scrape(detail);
        let labels = r#"{namespace="default",service="b",port="http",protocol="TCP",backend="10.244.1.7:8080"}"#;
        for (name, value) in [
            ("connections_total", 2),
            ("packets_total", 40),
            ("bytes_total", 600),
            ("flows", 6),
        ] {
            let line = format!("proxy_agent_endpoint_{name}{labels} {value}");
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(samples(&text).len(), 1 + 2 * 4);
    }

    #[test]
    fn no_more_are_told_than_the_limit_says() {
        let detail = Detail {
            endpoints: Told::On,
            limit: 1,
            ..Detail::default()
        };
        let text = scrape(detail);
        let told = samples(&text);
        // Two service ports, and their endpoints with them.
        assert_eq!(told[0], "proxy_agent_metrics_left_out 4", "{text}");
        assert_eq!(told.len(), 1 + 4, "{text}");
        assert!(told[1..].iter().all(|line| line.contains(r#"service="a""#)), "{text}");
    }
}
