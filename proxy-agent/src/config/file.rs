//! The fields of a KubeProxyConfiguration file, as kube-proxy's v1alpha1 types name them.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(super) const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// Fields that mean something here, by path, besides those of the section of the mode; the others are read only to say that they
/// don't.
const WITH_MEANING: [&str; 20] = [
    "apiVersion",
    "bindAddress",
    "bindAddressHardFail",
    "clientConnection.kubeconfig",
    "clusterCIDR",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.udpStreamTimeout",
    "conntrack.udpTimeout",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "detectLocalMode",
    "healthzBindAddress",
    "hostnameOverride",
    "kind",
    "logging.format",
    "logging.verbosity",
    "metricsBindAddress",
    "nodePortAddresses",
    "oomScoreAdj",
];

/// The whole file.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct KubeProxyConfiguration {
    api_version: Option<String>,
    kind: Option<String>,
    feature_gates: Option<BTreeMap<String, bool>>,
    pub(super) client_connection: ClientConnection,
    pub(super) logging: Logging,
    pub(super) hostname_override: Option<String>,
    pub(super) bind_address: Option<String>,
    pub(super) healthz_bind_address: Option<String>,
    pub(super) metrics_bind_address: Option<String>,
    pub(super) bind_address_hard_fail: Option<bool>,
    enable_profiling: Option<bool>,
    show_hidden_metrics_for_version: Option<String>,
    mode: Option<String>,
    pub(super) iptables: IpTables,
    pub(super) ipvs: Ipvs,
    pub(super) nftables: NfTables,
    winkernel: WinKernel,
    pub(super) detect_local_mode: Option<String>,
    pub(super) detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub(super) cluster_cidr: Option<String>,
    pub(super) node_port_addresses: Option<Vec<String>>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) conntrack: Conntrack,
    config_sync_period: Option<String>,
    port_range: Option<String>,
    windows_run_as_service: Option<bool>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ClientConnection {
    pub(super) kubeconfig: Option<String>,
    accept_content_types: Option<String>,
    content_type: Option<String>,
    qps: Option<f32>,
    burst: Option<i32>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct IpTables {
    pub(super) masquerade_all: Option<bool>,
    masquerade_bit: Option<i32>,
    localhost_node_ports: Option<bool>,
    #[serde(rename = "snatNodeInternalIP")]
    snat_node_internal_ip: Option<bool>,
    pub(super) sync_period: Option<String>,
    min_sync_period: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NfTables {
    pub(super) masquerade_all: Option<bool>,
    masquerade_bit: Option<i32>,
    pub(super) sync_period: Option<String>,
    min_sync_period: Option<String>,
}

/// `k8s.io/component-base/logs/api/v1`.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Logging {
    pub(super) format: Option<String>,
    /// A duration, or nanoseconds
    flush_frequency: Option<Value>,
    pub(super) verbosity: Option<u32>,
    vmodule: Option<Vec<VModule>>,
    options: LoggingOptions,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct VModule {
    file_pattern: String,
    verbosity: u32,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct LoggingOptions {
    text: LoggingStreams,
    json: LoggingStreams,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct LoggingStreams {
    split_stream: Option<bool>,
    /// A quantity: a text, or a number
    info_buffer_size: Option<Value>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Ipvs {
    pub(super) sync_period: Option<String>,
    min_sync_period: Option<String>,
    scheduler: Option<String>,
    #[serde(rename = "excludeCIDRs")]
    exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    strict_arp: Option<bool>,
    tcp_timeout: Option<String>,
    tcp_fin_timeout: Option<String>,
    udp_timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct WinKernel {
    network_name: Option<String>,
    source_vip: Option<String>,
    #[serde(rename = "enableDSR")]
    enable_dsr: Option<bool>,
    root_hns_endpoint_name: Option<String>,
    forward_health_check_vip: Option<bool>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DetectLocal {
    pub(super) bridge_interface: Option<String>,
    pub(super) interface_name_prefix: Option<String>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Conntrack {
    max_per_core: Option<i32>,
    min: Option<i32>,
    pub(super) tcp_established_timeout: Option<String>,
    pub(super) tcp_close_wait_timeout: Option<String>,
    tcp_be_liberal: Option<bool>,
    pub(super) udp_timeout: Option<String>,
    pub(super) udp_stream_timeout: Option<String>,
}

impl KubeProxyConfiguration {
    /// Reads the file's text, YAML or JSON.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_yaml_ng::from_str(text)?;
        let text_of = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or("(nothing)");
        let (version, kind) = (text_of("apiVersion"), text_of("kind"));
        if (version, kind) != (VERSION, KIND) {
            bail!("this is {version} {kind}, not {VERSION} {KIND}");
        }
        serde_path_to_error::deserialize(&value).map_err(|error| anyhow!("{}: {}", error.path(), error.inner()))
    }

    /// The mode that kube-proxy would run in, empty for its default.
    pub(super) fn mode(&self) -> &str {
        self.mode.as_deref().unwrap_or_default()
    }

    /// The paths of all fields there are.
    #[cfg(test)]
    pub(super) fn fields() -> Vec<String> {
        fn collect(path: &str, value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    let separator = if path.is_empty() { "" } else { "." };
                    for (name, value) in fields {
                        collect(&format!("{path}{separator}{name}"), value, found);
                    }
                }
                _ => found.push(path.to_owned()),
            }
        }
        let mut found = Vec::new();
        collect(
            "",
            &serde_json::to_value(Self::default()).expect("names are texts"),
            &mut found,
        );
        found
    }

    /// Fields that are set to something, but mean nothing here.
    pub(super) fn without_meaning(&self) -> Vec<String> {
        let mut found = Vec::new();
        if let Ok(value) = serde_json::to_value(self) {
            collect_set("", &value, &mut found);
        }
        let sync_period = format!("{}.syncPeriod", self.section());
        let masquerade_all = format!("{}.masqueradeAll", self.masquerade_section());
        found.retain(|path| !WITH_MEANING.contains(&path.as_str()) && ![&sync_period, &masquerade_all].contains(&path));
        found
    }

    /// The section whose `masqueradeAll` counts: that of iptables is ipvs mode's, too.
    fn masquerade_section(&self) -> &str {
        match self.section() {
            "ipvs" => "iptables",
            section => section,
        }
    }

    /// The section of the mode.
    fn section(&self) -> &str {
        match self.mode() {
            "" => "iptables",
            mode => mode,
        }
    }
}

/// Collects the paths of fields that have a value other than their type's zero, which kubeadm writes for "not set".
fn collect_set(path: &str, value: &Value, found: &mut Vec<String>) {
    let is_set = match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let separator = if path.is_empty() { "" } else { "." };
                collect_set(&format!("{path}{separator}{name}"), value, found);
            }
            false
        }
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !matches!(text.as_str(), "" | "0" | "0s"),
        Value::Array(items) => !items.is_empty(),
    };
    if is_set {
        found.push(path.to_owned());
    }
}
