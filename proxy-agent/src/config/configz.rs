//! The configuration in use, in the words of kube-proxy's file: what `/configz` shows (behaviour.md 8.7).

use std::path::Path;

use serde_json::{Value, json};

use super::{
    LocalTraffic, ProxyConfig,
    file::{KIND, VERSION},
};

/// kube-proxy's name for its configuration there.
const SECTION: &str = "kubeproxy.config.k8s.io";

impl ProxyConfig {
    /// Every field that means something here, with the value it has by file, flag or default.
    pub fn to_configz(&self) -> Value {
        let (mode, ranges, bridge, prefix) = match &self.local_traffic {
            LocalTraffic::ClusterCidr(ranges) => ("ClusterCIDR", join(ranges), "", ""),
            LocalTraffic::NodeCidr => ("NodeCIDR", String::new(), "", ""),
            LocalTraffic::BridgeInterface(name) => ("BridgeInterface", String::new(), name.as_str(), ""),
            LocalTraffic::InterfaceNamePrefix(prefix) => ("InterfaceNamePrefix", String::new(), "", prefix.as_str()),
        };
        json!({SECTION: {
            "apiVersion": VERSION,
            "kind": KIND,
            "hostnameOverride": self.hostname_override.as_deref().unwrap_or_default(),
            "bindAddress": self.bind_address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string()),
            "metricsBindAddress": self.metrics_address(),
            "healthzBindAddress": self.healthz_address(),
            "bindAddressHardFail": self.bind_address_hard_fail,
            "clusterCIDR": ranges,
            "detectLocalMode": mode,
            "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
            "nodePortAddresses": self.node_port_addresses.to_texts(),
            "clientConnection": {"kubeconfig": self.kubeconfig.as_deref().unwrap_or(Path::new(""))},
            "iptables": {
                "masqueradeAll": self.masquerade_all,
                "syncPeriod": format!("{}ns", self.sync_period.as_nanos()),
            },
            "logging": {
                "format": if self.logging.is_json { "json" } else { "text" },
                "verbosity": self.logging.verbosity,
            },
            "oomScoreAdj": self.oom_score_adj,
        }})
    }
}

fn join(ranges: &[ipnet::IpNet]) -> String {
    let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Logging, NodePortAddresses};

    /// behaviour.md 8.7: what is shown is a file that means the same.
    #[test]
    fn rule_8_7_configz_can_be_read_back() {
        let configs = [
            ProxyConfig::default(),
            ProxyConfig {
                hostname_override: Some("node-a".to_owned()),
                bind_address: Some("2001:db8::7".parse().unwrap()),
                local_traffic: LocalTraffic::ClusterCidr(vec![
                    "10.244.0.0/16".parse().unwrap(),
                    "fd00:10::/56".parse().unwrap(),
                ]),
                node_port_addresses: NodePortAddresses::Ranges(vec!["192.0.2.0/24".parse().unwrap()]),
                masquerade_all: true,
                bind_address_hard_fail: true,
                kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
                sync_period: Duration::from_millis(1500),
                oom_score_adj: Some(-999),
                logging: Logging {
                    verbosity: 4,
                    is_json: true,
                },
                ..ProxyConfig::default()
            },
            ProxyConfig {
                local_traffic: LocalTraffic::InterfaceNamePrefix("veth".to_owned()),
                ..ProxyConfig::default()
            },
        ];
        for config in configs {
            let shown = config.to_configz()[SECTION].to_string();
            let expected = ProxyConfig {
                metrics_bind_address: Some(config.metrics_address()),
                healthz_bind_address: Some(config.healthz_address()),
                ..config
            };
            assert_eq!(ProxyConfig::parse(&shown).unwrap(), expected);
        }
    }
}
