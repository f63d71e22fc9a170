//! What stands in the pinned tables, read at each scrape: the agent's loop has no part in it.

use std::fmt;

use anyhow::Result;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use proxy_common::{
    datapath::Reason,
    layout::{Counter, ServiceCounter},
};

use super::encode::{counters, gauge, gauges};
use crate::{
    dataplane::{
        inspect::{self, TableFill, UnservedLocal},
        kernel,
        pin::PinDirectory,
        table::Tables,
    },
    plan::ServicePort,
};

/// Whether traffic is told by service port: as many time series as there are service ports, three times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceMetrics {
    /// Not at all
    Off,
    /// For every service port
    #[default]
    On,
}

/// Reads the tables at each scrape.
#[derive(Debug)]
pub(super) struct TablesCollector {
    pub(super) pin: PinDirectory,
    pub(super) services: ServiceMetrics,
}

/// What is told.
#[derive(Default)]
struct Contents {
    fills: Vec<TableFill>,
    reasons: Vec<(Reason, Counter)>,
    services: Vec<(ServicePort, ServiceCounter)>,
    unserved: Vec<UnservedLocal>,
}

impl Contents {
    fn read(tables: &Tables, services: ServiceMetrics) -> Result<Self> {
        Ok(Self {
            fills: inspect::table_fills(tables)?,
            reasons: inspect::reason_counters(tables)?,
            services: match services {
                ServiceMetrics::Off => Vec::new(),
                ServiceMetrics::On => inspect::service_traffic(tables)?,
            },
            unserved: inspect::unserved_local(tables)?.into(),
        })
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let by_table = |value: fn(&TableFill) -> u64| {
            let row = move |fill: &TableFill| ([("table", fill.name)], value(fill));
            self.fills.iter().map(row)
        };
        let entries = ("proxy_agent_table_entries", "Entries in a table of the datapath");
        gauges(encoder, entries, by_table(|fill| fill.entries))?;
        let limit = ("proxy_agent_table_max_entries", "Entries that a table has room for");
        gauges(encoder, limit, by_table(|fill| fill.max_entries.into()))?;

        let by_reason = |value: fn(&Counter) -> u64| {
            let row = move |(reason, counter): &(Reason, Counter)| {
                let labels = [
                    ("verdict", format!("{:?}", reason.verdict())),
                    ("reason", format!("{reason:?}")),
                ];
                (labels, value(counter))
            };
            self.reasons.iter().map(row)
        };
        let packets = ("proxy_agent_packets", "Packets by what became of them, and why");
        counters(encoder, packets, by_reason(|counter| counter.packets))?;
        let bytes = (
            "proxy_agent_bytes",
            "Bytes of packets, from the network header on, by what became of them, and why",
        );
        counters(encoder, bytes, by_reason(|counter| counter.bytes))?;

        let unserved = self.unserved.iter().flat_map(|of_family| {
            [("internal", of_family.internal), ("external", of_family.external)].map(|(policy, ports)| {
                (
                    [
                        ("ip_family", of_family.family.to_string()),
                        ("traffic_policy", policy.to_owned()),
                    ],
                    ports,
                )
            })
        });
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports with a Local traffic policy and endpoints, but none on this node";
        gauges(encoder, (name, help), unserved)
    }

    fn encode_services(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let by_port = |value: fn(&ServiceCounter) -> u64| {
            let row = move |(port, counter): &(ServicePort, ServiceCounter)| {
                let labels = [
                    ("namespace", port.namespace.clone()),
                    ("service", port.service.clone()),
                    ("port", port.port_name.clone()),
                    ("protocol", port.protocol.to_string()),
                ];
                (labels, value(counter))
            };
            self.services.iter().map(row)
        };
        let connections = ("proxy_agent_service_connections", "New flows to a service port");
        counters(encoder, connections, by_port(|counter| counter.connections))?;
        let packets = ("proxy_agent_service_packets", "Packets to and from a service port");
        counters(encoder, packets, by_port(|counter| counter.packets))?;
        let bytes = (
            "proxy_agent_service_bytes",
            "Bytes to and from a service port, from the network header on",
        );
        counters(encoder, bytes, by_port(|counter| counter.bytes))
    }
}

impl Collector for TablesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Opened anew each time: other tables may be pinned there by now.
        let read = kernel::open(&self.pin).and_then(|tables| Contents::read(&tables, self.services));
        let readable = (
            "proxy_agent_tables_readable",
            "Whether the tables could be read for this scrape",
        );
        gauge(&mut encoder, readable, u32::from(read.is_ok()))?;
        match read {
            Ok(contents) => {
                contents.encode(&mut encoder)?;
                if self.services == ServiceMetrics::On {
                    contents.encode_services(&mut encoder)?;
                }
                Ok(())
            }
            Err(error) => {
                tracing::warn!("metrics without the tables: {error:#}");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{encoding::text, registry::Registry};
    use proxy_common::layout::{ServiceKey, ServiceValue, service_flags};

    use super::*;
    use crate::{
        dataplane::{memory::Memory, service_name},
        plan::Protocol,
    };

    /// Contents that were read before the scrape.
    struct Known(Contents);

    impl fmt::Debug for Known {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Known")
        }
    }

    impl Collector for Known {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode(&mut encoder)?;
            self.0.encode_services(&mut encoder)
        }
    }

    fn scrape(memory: &Memory) -> String {
        let contents = Contents::read(&memory.tables(), ServiceMetrics::On).expect("readable");
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Known(contents)));
        let mut text = String::new();
        text::encode(&mut text, &registry).expect("a string takes everything");
        text
    }

    #[track_caller]
    fn expect(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "{line}: missing in\n{text}");
    }

    #[test]
    fn tables_reasons_and_service_ports_are_told() {
        let memory = Memory::new(&|table| (table == "service_names").then_some(7));
        let mut tables = memory.tables();
        let port = ServicePort {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port_name: "http".to_owned(),
            protocol: Protocol::Tcp,
        };
        let name = service_name::encode(&port).expect("short names");
        tables.service_names.insert(&3, &name).expect("room");
        let counted = ServiceCounter {
            connections: 1,
            packets: 20,
            bytes: 300,
        };
        tables.service_counts.insert(&3, &counted).expect("room");
        let refused = Counter { packets: 4, bytes: 50 };
        let reason = Reason::NoEndpoints as u32;
        tables.reason_counts.insert(&reason, &refused).expect("room");
        let text = scrape(&memory);
        for line in [
            r#"proxy_agent_table_entries{table="service_names"} 1"#,
            r#"proxy_agent_table_max_entries{table="service_names"} 7"#,
            r#"proxy_agent_table_entries{table="flows_v6"} 0"#,
            r#"proxy_agent_packets_total{verdict="Reject",reason="NoEndpoints"} 4"#,
            r#"proxy_agent_bytes_total{verdict="Reject",reason="NoEndpoints"} 50"#,
            r#"proxy_agent_packets_total{verdict="Drop",reason="FlowTableFull"} 0"#,
            r#"proxy_agent_service_connections_total{namespace="default",service="web",port="http",protocol="TCP"} 1"#,
            r#"proxy_agent_service_packets_total{namespace="default",service="web",port="http",protocol="TCP"} 20"#,
            r#"proxy_agent_service_bytes_total{namespace="default",service="web",port="http",protocol="TCP"} 300"#,
        ] {
            expect(&text, line);
        }
    }

    /// behaviour.md 8.8: service ports, not frontends; only with endpoints somewhere and none here.
    #[test]
    fn rule_8_8_service_ports_without_local_endpoints_are_counted() {
        let memory = Memory::default();
        let mut services = memory.tables().v4.services;
        let mut serve = |port: u16, service: u32, flags: u32, local_count: u32| {
            let key = ServiceKey::new([10, 96, 0, 1], port, 6);
            let value = ServiceValue {
                service,
                flags,
                local_count,
                ..ServiceValue::default()
            };
            services.insert(&key, &value).expect("room");
        };
        let external = 1 << service_flags::KIND_SHIFT;
        let local = service_flags::LOCAL | service_flags::HAS_ENDPOINTS;
        serve(80, 1, local, 0);
        serve(81, 2, local, 1);
        serve(82, 3, service_flags::LOCAL, 0);
        serve(83, 4, service_flags::HAS_ENDPOINTS, 0);
        serve(84, 5, local | external | service_flags::SHORT_CIRCUIT, 0);
        serve(85, 5, local | external | service_flags::SHORT_CIRCUIT, 0);
        serve(0, 6, local | service_flags::WILDCARD, 0);
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let text = scrape(&memory);
        for (family, policy, count) in [
            ("IPv4", "internal", 1),
            ("IPv4", "external", 1),
            ("IPv6", "internal", 0),
            ("IPv6", "external", 0),
        ] {
            expect(
                &text,
                &format!(r#"{name}{{ip_family="{family}",traffic_policy="{policy}"}} {count}"#),
            );
        }
    }
}
