//! Configuration: the KubeProxyConfiguration file that kube-proxy reads, so that a cluster's own can be kept
//! (behaviour.md 8.9; kube-proxy's pkg/proxy/apis/config).

mod configz;
mod file;
mod listen;
pub mod timeouts;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;

use self::timeouts::FlowTimeout;
use crate::model::{Family, parse_ip, parse_range};

use listen::{HEALTHZ_PORT, METRICS_PORT, parse_listen_address};
pub use listen::{parse_healthz_address, parse_metrics_address};

/// What the configuration means for this proxy. The default is that of an empty file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Name of this node, if it isn't the host's
    pub hostname_override: Option<String>,
    /// This node's primary address, instead of those of its Node object (behaviour.md 8.12); nothing binds to it
    pub bind_address: Option<IpAddr>,
    /// How a pod's traffic is told from other traffic (behaviour.md 5.8)
    pub local_traffic: LocalTraffic,
    /// On which of the node's addresses nodePorts are served (behaviour.md 3.6)
    pub node_port_addresses: NodePortAddresses,
    /// Masquerade everything that is sent to a cluster address (behaviour.md 5.3)
    pub masquerade_all: bool,
    /// Where metrics are served, if not at the default (behaviour.md 8.7)
    pub metrics_bind_address: Option<SocketAddr>,
    /// Where the health of the proxy is served, if not at the default (behaviour.md 8.4)
    pub healthz_bind_address: Option<SocketAddr>,
    /// The agent ends where it can't listen, instead of trying again (behaviour.md 8.6)
    pub bind_address_hard_fail: bool,
    /// How long flows are kept (behaviour.md 7.10, `conntrack`), where it is said
    pub flow_timeouts: Vec<FlowTimeout>,
    /// Fields that are set but mean nothing here, by path
    pub without_meaning: Vec<String>,
}

/// How a pod's traffic is told from other traffic (behaviour.md 5.8, `detectLocalMode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalTraffic {
    /// Its source is in one of these ranges (`clusterCIDR`); without a range of its family nothing is known to be local
    ClusterCidr(Vec<IpNet>),
    /// Its source is in one of the `spec.podCIDRs` of this node
    NodeCidr,
    /// It arrives at the interface of this name
    BridgeInterface(String),
    /// It arrives at an interface whose name starts so
    InterfaceNamePrefix(String),
}

/// On which of the node's addresses nodePorts are served (behaviour.md 3.6, `nodePortAddresses`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The addresses of the Node object
    Primary,
    /// All of the node's addresses in these ranges, at least one
    Ranges(Vec<IpNet>),
}

impl NodePortAddresses {
    /// The families that a list of ranges says nothing about. It means all of the node's addresses there (behaviour.md
    /// 3.6), which not everybody expects.
    pub fn open_families(&self) -> Vec<Family> {
        match self {
            Self::Primary => Vec::new(),
            Self::Ranges(ranges) => {
                let is_open = |family: &Family| ranges.iter().all(|range| Family::of(range.addr()) != *family);
                Family::ALL.into_iter().filter(is_open).collect()
            }
        }
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            hostname_override: None,
            bind_address: None,
            local_traffic: LocalTraffic::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::Primary,
            masquerade_all: false,
            metrics_bind_address: None,
            healthz_bind_address: None,
            bind_address_hard_fail: false,
            flow_timeouts: Vec::new(),
            without_meaning: Vec::new(),
        }
    }
}

impl ProxyConfig {
    /// Reads a KubeProxyConfiguration file, YAML or JSON.
    ///
    /// # Errors
    /// The file can't be read, isn't of this type, has an unknown field, or a field has an unusable value; the error
    /// names the file and the field.
    pub fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("configuration {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("configuration {}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let file = file::KubeProxyConfiguration::parse(text)?;
        // Only nftables mode has settings of its own; the others share those of iptables.
        let masquerade_all = match file.mode() {
            "nftables" => file.nftables.masquerade_all,
            "" | "iptables" | "ipvs" => file.iptables.masquerade_all,
            other => bail!("mode: {other:?} is none of kube-proxy's modes on Linux: iptables, ipvs, nftables"),
        };
        let bind_address = given(file.bind_address.as_deref())
            .map(|text| parse_ip(text).map_err(|reason| anyhow::anyhow!("bindAddress: {reason}")))
            .transpose()?
            .filter(|address| !address.is_unspecified());
        Ok(Self {
            hostname_override: given(file.hostname_override.as_deref()).map(|name| name.trim().to_lowercase()),
            bind_address,
            local_traffic: local_traffic(&file)?,
            node_port_addresses: node_port_addresses(file.node_port_addresses.as_deref().unwrap_or_default())?,
            masquerade_all: masquerade_all.unwrap_or(false),
            metrics_bind_address: listen_address(
                "metricsBindAddress",
                file.metrics_bind_address.as_deref(),
                METRICS_PORT,
            )?,
            healthz_bind_address: listen_address(
                "healthzBindAddress",
                file.healthz_bind_address.as_deref(),
                HEALTHZ_PORT,
            )?,
            bind_address_hard_fail: file.bind_address_hard_fail.unwrap_or(false),
            flow_timeouts: flow_timeouts(&file.conntrack)?,
            without_meaning: file.without_meaning(),
        })
    }

    /// Where metrics are served: on this node only, unless the configuration says otherwise.
    pub fn metrics_address(&self) -> SocketAddr {
        let local = match self.bind_address {
            Some(IpAddr::V6(_)) => IpAddr::from(Ipv6Addr::LOCALHOST),
            _ => IpAddr::from(Ipv4Addr::LOCALHOST),
        };
        self.metrics_bind_address
            .unwrap_or(SocketAddr::new(local, METRICS_PORT))
    }

    /// Where the health of the proxy is served: at all addresses, as load balancers ask, unless the configuration says
    /// otherwise.
    pub fn healthz_address(&self) -> SocketAddr {
        let everywhere = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        self.healthz_bind_address
            .unwrap_or(SocketAddr::new(everywhere, HEALTHZ_PORT))
    }
}

fn listen_address(field: &str, text: Option<&str>, default_port: u16) -> Result<Option<SocketAddr>> {
    given(text)
        .map(|text| parse_listen_address(text, default_port).map_err(|reason| anyhow::anyhow!("{field}: {reason}")))
        .transpose()
}

fn local_traffic(file: &file::KubeProxyConfiguration) -> Result<LocalTraffic> {
    let needed = |field: &str, value: Option<&str>| match given(value) {
        Some(value) => Ok(value.to_owned()),
        None => bail!("{field}: missing: detectLocalMode needs it"),
    };
    Ok(
        match given(file.detect_local_mode.as_deref()).unwrap_or("ClusterCIDR") {
            "ClusterCIDR" => {
                let texts = given(file.cluster_cidr.as_deref())
                    .map(|texts| texts.split(','))
                    .into_iter()
                    .flatten();
                LocalTraffic::ClusterCidr(ranges("clusterCIDR", texts)?)
            }
            "NodeCIDR" => LocalTraffic::NodeCidr,
            "BridgeInterface" => {
                let name = file.detect_local.bridge_interface.as_deref();
                LocalTraffic::BridgeInterface(needed("detectLocal.bridgeInterface", name)?)
            }
            "InterfaceNamePrefix" => {
                let prefix = file.detect_local.interface_name_prefix.as_deref();
                LocalTraffic::InterfaceNamePrefix(needed("detectLocal.interfaceNamePrefix", prefix)?)
            }
            other => bail!(
                "detectLocalMode: {other:?} is unknown: ClusterCIDR, NodeCIDR, BridgeInterface and InterfaceNamePrefix are"
            ),
        },
    )
}

/// behaviour.md 7.10: what kube-proxy would set of nf_conntrack. Zero means that it sets nothing.
fn flow_timeouts(conntrack: &file::Conntrack) -> Result<Vec<FlowTimeout>> {
    let fields = [
        (
            "tcpEstablishedTimeout",
            &conntrack.tcp_established_timeout,
            "tcp-established",
        ),
        (
            "tcpCloseWaitTimeout",
            &conntrack.tcp_close_wait_timeout,
            "tcp-half-closed",
        ),
        ("udpTimeout", &conntrack.udp_timeout, "udp-opening"),
        ("udpStreamTimeout", &conntrack.udp_stream_timeout, "udp-established"),
    ];
    let mut timeouts = Vec::new();
    for (field, text, state) in fields {
        let Some(text) = given(text.as_deref()) else { continue };
        let time = timeouts::duration(text).map_err(|reason| anyhow::anyhow!("conntrack.{field}: {reason}"))?;
        if !time.is_zero() {
            let timeout = FlowTimeout::new(state, time);
            timeouts.push(timeout.with_context(|| format!("conntrack.{field}: {text} is too long"))?);
        }
    }
    Ok(timeouts)
}

fn node_port_addresses(texts: &[String]) -> Result<NodePortAddresses> {
    match texts {
        [] => Ok(NodePortAddresses::Primary),
        [primary] if primary == "primary" => Ok(NodePortAddresses::Primary),
        texts => Ok(NodePortAddresses::Ranges(ranges(
            "nodePortAddresses",
            texts.iter().map(String::as_str),
        )?)),
    }
}

fn ranges<'a>(field: &str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpNet>> {
    let parse = |text: &str| parse_range(text).map_err(|reason| anyhow::anyhow!("{field}: {reason}"));
    texts.map(parse).collect()
}

/// A text that isn't blank.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use proxy_common::layout::Timeouts;

    use super::*;

    /// What kubeadm writes into the ConfigMap `kube-proxy`.
    const KUBEADM: &str = r#"
apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection: {acceptContentTypes: "", burst: 0, contentType: "", kubeconfig: /var/lib/kube-proxy/kubeconfig.conf, qps: 0}
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
configSyncPeriod: 0s
conntrack: {maxPerCore: null, min: null, tcpBeLiberal: false, tcpCloseWaitTimeout: null, tcpEstablishedTimeout: null, udpStreamTimeout: 0s, udpTimeout: 0s}
detectLocal: {bridgeInterface: "", interfaceNamePrefix: ""}
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables: {localhostNodePorts: null, masqueradeAll: true, masqueradeBit: 14, minSyncPeriod: 0s, syncPeriod: 0s}
ipvs: {excludeCIDRs: null, minSyncPeriod: 0s, scheduler: "", strictARP: false, syncPeriod: 0s, tcpFinTimeout: 0s, tcpTimeout: 0s, udpTimeout: 0s}
kind: KubeProxyConfiguration
logging: {flushFrequency: 0, options: {json: {infoBufferSize: "0"}, text: {infoBufferSize: "0"}}, verbosity: 0}
metricsBindAddress: ""
mode: ""
nftables: {masqueradeAll: false, masqueradeBit: null, minSyncPeriod: 0s, syncPeriod: 0s}
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel: {enableDSR: false, forwardHealthCheckVip: false, networkName: "", rootHnsEndpointName: "", sourceVip: ""}
"#;

    fn with(lines: &str) -> Result<ProxyConfig> {
        ProxyConfig::parse(&format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{lines}"
        ))
    }

    fn error(lines: &str) -> String {
        format!("{:#}", with(lines).unwrap_err())
    }

    #[test]
    fn what_kubeadm_writes_is_understood() {
        let ranges = ["10.244.0.0/16", "fd00:10:244::/56"].map(|range| range.parse().unwrap());
        let expected = ProxyConfig {
            local_traffic: LocalTraffic::ClusterCidr(ranges.into()),
            masquerade_all: true,
            without_meaning: vec![
                "clientConnection.kubeconfig".to_owned(),
                "iptables.masqueradeBit".to_owned(),
            ],
            ..ProxyConfig::default()
        };
        assert_eq!(ProxyConfig::parse(KUBEADM).unwrap(), expected);
    }

    #[test]
    fn rule_8_9_fields_have_their_meaning() {
        let config = with(
            "hostnameOverride: Node-A\nbindAddress: 192.0.2.7\nmode: nftables\nnftables: {masqueradeAll: true}\n\
             detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\nnodePortAddresses: [192.0.2.0/24]\n\
             metricsBindAddress: 0.0.0.0:9\nhealthzBindAddress: '::1'\nbindAddressHardFail: true",
        );
        let expected = ProxyConfig {
            hostname_override: Some("node-a".to_owned()),
            bind_address: Some("192.0.2.7".parse().unwrap()),
            local_traffic: LocalTraffic::BridgeInterface("cni0".to_owned()),
            node_port_addresses: NodePortAddresses::Ranges(vec!["192.0.2.0/24".parse().unwrap()]),
            masquerade_all: true,
            metrics_bind_address: Some("0.0.0.0:9".parse().unwrap()),
            healthz_bind_address: Some("[::1]:10256".parse().unwrap()),
            bind_address_hard_fail: true,
            flow_timeouts: Vec::new(),
            without_meaning: vec!["mode".to_owned()],
        };
        assert_eq!(config.unwrap(), expected);
        assert_eq!(with("").unwrap(), ProxyConfig::default());
        assert_eq!(with("nodePortAddresses: [primary]").unwrap(), ProxyConfig::default());
    }

    /// behaviour.md 8.4, 8.7: without a word of it, metrics are for this node and health is for all.
    #[test]
    fn rule_8_7_addresses_have_defaults() {
        let default = with("").unwrap();
        assert_eq!(default.metrics_address(), "127.0.0.1:10249".parse().unwrap());
        assert_eq!(default.healthz_address(), "0.0.0.0:10256".parse().unwrap());
        let v6 = with("bindAddress: '2001:db8::7'").unwrap();
        assert_eq!(v6.metrics_address(), "[::1]:10249".parse().unwrap());
        let other = with("metricsBindAddress: 192.0.2.7\nhealthzBindAddress: 192.0.2.7:8").unwrap();
        assert_eq!(other.metrics_address(), "192.0.2.7:10249".parse().unwrap());
        assert_eq!(other.healthz_address(), "192.0.2.7:8".parse().unwrap());
    }

    #[test]
    fn rule_7_10_conntrack_timeouts_are_those_of_flows() {
        let config = with(
            "conntrack: {tcpEstablishedTimeout: 2h0m0s, tcpCloseWaitTimeout: 30m, udpTimeout: 0s, udpStreamTimeout: 250s}",
        )
        .unwrap();
        assert!(config.without_meaning.is_empty(), "{:?}", config.without_meaning);
        let mut timeouts = Timeouts::DEFAULT;
        config
            .flow_timeouts
            .iter()
            .for_each(|timeout| timeout.apply(&mut timeouts));
        let expected = Timeouts {
            tcp_established: Timeouts::ticks(7200),
            tcp_half_closed: Timeouts::ticks(1800),
            udp_established: Timeouts::ticks(250),
            ..Timeouts::DEFAULT
        };
        assert_eq!(timeouts, expected);
        assert!(error("conntrack: {udpTimeout: soon}").starts_with("conntrack.udpTimeout: \"soon\""));
    }

    #[test]
    fn rule_3_6_a_family_without_a_range_is_open() {
        let open = |lines: &str| with(lines).unwrap().node_port_addresses.open_families();
        assert_eq!(open("nodePortAddresses: [192.0.2.0/24]"), [Family::V6]);
        assert_eq!(open("nodePortAddresses: ['2001:db8::/32']"), [Family::V4]);
        assert_eq!(open("nodePortAddresses: [192.0.2.0/24, '::/0']"), []);
        assert_eq!(open("nodePortAddresses: [primary]"), []);
        assert_eq!(open(""), []);
    }

    #[test]
    fn errors_name_the_field() {
        assert!(error("clusterCidr: 10.0.0.0/8").contains("clusterCidr"));
        assert!(error("clusterCIDR: 10.0.0.0/8,x").starts_with("clusterCIDR: \"x\" is no address range"));
        assert!(error("bindAddress: nowhere").starts_with("bindAddress: \"nowhere\" is no IP address"));
        assert!(
            error("metricsBindAddress: here").starts_with("metricsBindAddress: \"here\" is no address to listen at")
        );
        assert!(error("healthzBindAddress: ':7'").starts_with("healthzBindAddress: \":7\" is no address to listen at"));
        assert!(error("mode: kernelspace").starts_with("mode: \"kernelspace\""));
        assert!(error("detectLocalMode: NodeCidr").starts_with("detectLocalMode: \"NodeCidr\" is unknown"));
        assert!(error("detectLocalMode: BridgeInterface").starts_with("detectLocal.bridgeInterface: missing"));
        assert!(error("conntrack: {maxPerCore: many}").starts_with("conntrack.maxPerCore: "));
        let other = ProxyConfig::parse("apiVersion: v1\nkind: Service")
            .unwrap_err()
            .to_string();
        assert_eq!(
            other,
            "this is v1 Service, not kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration"
        );
    }
}
