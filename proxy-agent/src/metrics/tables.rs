//! What stands in the pinned tables, read at each scrape: the agent's loop has no part in it.

use std::{fmt, net::IpAddr};

use anyhow::Result;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder};
use proxy_common::{datapath::Reason, layout::Counter};

use super::{
    detail::{Detail, Told},
    encode::{counters, gauge, gauges},
    services::Services,
};
use crate::dataplane::{
    inspect::{self, Census, Masquerades, TableFill, UnservedLocal},
    kernel,
    pin::PinDirectory,
    table::Tables,
};

/// Reads the tables at each scrape.
#[derive(Debug)]
pub(super) struct TablesCollector {
    pub(super) pin: PinDirectory,
    pub(super) detail: Detail,
}

/// What is told.
struct Contents {
    fills: Vec<TableFill>,
    reasons: Vec<(Reason, Counter)>,
    unserved: Vec<UnservedLocal>,
    census: Census,
    services: Services,
}

impl Contents {
    fn read(tables: &Tables, detail: Detail) -> Result<Self> {
        let (fills, census) = inspect::census(tables, detail.endpoints == Told::On)?;
        Ok(Self {
            fills,
            reasons: inspect::reason_counters(tables)?,
            unserved: inspect::unserved_local(tables)?.into(),
            services: Services::read(tables, &census, detail)?,
            census,
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
        gauges(encoder, (name, help), unserved)?;

        let by_address = |value: fn(&Masquerades) -> u64| {
            let row = move |(address, of_address): (&IpAddr, &Masquerades)| {
                ([("address", address.to_string())], value(of_address))
            };
            self.census.masquerades.iter().map(row)
        };
        let flows = (
            "proxy_agent_masquerade_flows",
            "Flows whose endpoints see this address of the node in place of the client's",
        );
        gauges(encoder, flows, by_address(|of_address| of_address.flows))?;
        let ports = (
            "proxy_agent_masquerade_ports",
            "Ports of this address that flows to one endpoint have, where they are most; there are 64,512",
        );
        gauges(encoder, ports, by_address(|of_address| of_address.to_one_endpoint))?;
        let conntrack = (
            "proxy_agent_conntrack_flows",
            "Connections from kube-proxy's time that are left to the kernel's conntrack",
        );
        gauge(encoder, conntrack, self.census.conntrack)?;
        self.services.encode(encoder)
    }
}

fn encode_readable(encoder: &mut DescriptorEncoder<'_>, is_readable: bool) -> fmt::Result {
    let help = "Whether the tables could be read for this scrape";
    gauge(encoder, ("proxy_agent_tables_readable", help), u32::from(is_readable))
}

impl Collector for TablesCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // Opened anew each time: other tables may be pinned there by now.
        let read = kernel::open(&self.pin).and_then(|tables| Contents::read(&tables, self.detail));
        encode_readable(&mut encoder, read.is_ok())?;
        match read {
            Ok(contents) => contents.encode(&mut encoder),
            Err(error) => {
                tracing::warn!("metrics without the tables: {error:#}");
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use prometheus_client::registry::Registry;
    use proxy_common::layout::{ServiceKey, ServiceValue, service_flags};

    use super::*;
    use crate::{dataplane::memory::Memory, metrics::text};

    /// Contents that were read before the scrape.
    struct Known(Contents);

    impl fmt::Debug for Known {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Known")
        }
    }

    impl Collector for Known {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            encode_readable(&mut encoder, true)?;
            self.0.encode(&mut encoder)
        }
    }

    fn told(contents: Contents) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Known(contents)));
        text::encode(&registry).expect("a string takes everything")
    }

    fn scrape(memory: &Memory) -> String {
        told(Contents::read(&memory.tables(), Detail::default()).expect("readable"))
    }

    #[track_caller]
    fn expect(text: &str, line: &str) {
        assert!(text.lines().any(|found| found == line), "{line}: missing in\n{text}");
    }

    /// A scrape that tells of everything.
    pub(in crate::metrics) fn sample() -> String {
        let memory = Memory::new(&|table| (table == "service_names").then_some(7));
        let refused = Counter { packets: 4, bytes: 50 };
        let reason = Reason::NoEndpoints as u32;
        memory.tables().reason_counts.insert(&reason, &refused).expect("room");
        let mut contents = Contents::read(&memory.tables(), Detail::default()).expect("readable");
        let masquerades = Masquerades {
            flows: 5,
            to_one_endpoint: 3,
        };
        contents.census.masquerades = HashMap::from([([192, 0, 2, 1].into(), masquerades)]);
        contents.census.conntrack = 2;
        told(contents)
    }

    #[test]
    fn tables_reasons_and_masquerades_are_told() {
        let text = sample();
        for line in [
            r#"proxy_agent_table_entries{table="service_names"} 0"#,
            r#"proxy_agent_table_max_entries{table="service_names"} 7"#,
            r#"proxy_agent_table_entries{table="flows_v6"} 0"#,
            r#"proxy_agent_packets_total{verdict="Reject",reason="NoEndpoints"} 4"#,
            r#"proxy_agent_bytes_total{verdict="Reject",reason="NoEndpoints"} 50"#,
            r#"proxy_agent_packets_total{verdict="Drop",reason="FlowTableFull"} 0"#,
            r#"proxy_agent_masquerade_flows{address="192.0.2.1"} 5"#,
            r#"proxy_agent_masquerade_ports{address="192.0.2.1"} 3"#,
            "proxy_agent_conntrack_flows 2",
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
