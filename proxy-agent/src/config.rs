//! Configuration: the KubeProxyConfiguration file that kube-proxy reads, so that a cluster's own can be kept
//! (behaviour.md 8.9; kube-proxy's pkg/proxy/apis/config).

mod configz;
mod file;
mod listen;
mod node_ports;
#[cfg(test)]
mod tests;
pub mod timeouts;
mod watch;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;

use self::timeouts::FlowTimeout;
use crate::model::{parse_ip, parse_range};

use listen::{HEALTHZ_PORT, METRICS_PORT, parse_listen_address};
pub use listen::{parse_healthz_address, parse_metrics_address};
pub use node_ports::NodePortAddresses;
pub use watch::Watch;

/// kube-proxy's `syncPeriod`, unless it is said (behaviour.md 8.9).
const SYNC_PERIOD: Duration = Duration::from_secs(30);

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
    /// How the API server is reached, where no flag says so (`clientConnection.kubeconfig`)
    pub kubeconfig: Option<PathBuf>,
    /// A change that waits for longer than two of these makes the proxy unhealthy (behaviour.md 8.4, `syncPeriod` of the mode)
    pub sync_period: Duration,
    /// How readily the kernel ends this process where memory is short, from -1000 to 1000 (proc_pid_oom_score_adj(5))
    pub oom_score_adj: Option<i32>,
    /// What is logged, and how
    pub logging: Logging,
    /// Fields that are set but mean nothing here, by path
    pub without_meaning: Vec<String>,
}

/// What is logged, and how (`logging`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logging {
    /// kube-proxy's `-v`: from 4 on what is for whoever debugs, from 6 on all there is
    pub verbosity: u32,
    /// Each line is a JSON object
    pub is_json: bool,
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
            kubeconfig: None,
            sync_period: SYNC_PERIOD,
            oom_score_adj: None,
            logging: Logging::default(),
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
        // Only nftables mode has a masqueradeAll of its own; the others share that of iptables.
        let (masquerade_all, field, sync_period) = match file.mode() {
            "nftables" => (
                file.nftables.masquerade_all,
                "nftables.syncPeriod",
                &file.nftables.sync_period,
            ),
            "" | "iptables" => (
                file.iptables.masquerade_all,
                "iptables.syncPeriod",
                &file.iptables.sync_period,
            ),
            "ipvs" => (file.iptables.masquerade_all, "ipvs.syncPeriod", &file.ipvs.sync_period),
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
            node_port_addresses: NodePortAddresses::parse(file.node_port_addresses.as_deref().unwrap_or_default())?,
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
            kubeconfig: given(file.client_connection.kubeconfig.as_deref()).map(PathBuf::from),
            sync_period: time(field, sync_period.as_deref())?.unwrap_or(SYNC_PERIOD),
            oom_score_adj: oom_score_adj(file.oom_score_adj)?,
            logging: logging(&file.logging)?,
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
        if let Some(time) = time(&format!("conntrack.{field}"), text.as_deref())? {
            let timeout = FlowTimeout::new(state, time);
            timeouts.push(timeout.with_context(|| format!("conntrack.{field}: {time:?} is too long"))?);
        }
    }
    Ok(timeouts)
}

/// A duration; kube-proxy takes zero for "not set".
fn time(field: &str, text: Option<&str>) -> Result<Option<Duration>> {
    let time = given(text).map(timeouts::duration).transpose();
    let time = time.map_err(|reason| anyhow::anyhow!("{field}: {reason}"))?;
    Ok(time.filter(|time| !time.is_zero()))
}

fn oom_score_adj(score: Option<i32>) -> Result<Option<i32>> {
    match score {
        Some(score) if !(-1000..=1000).contains(&score) => bail!("oomScoreAdj: {score} is not from -1000 to 1000"),
        score => Ok(score),
    }
}

fn logging(file: &file::Logging) -> Result<Logging> {
    Ok(Logging {
        verbosity: file.verbosity.unwrap_or_default(),
        is_json: match given(file.format.as_deref()) {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => bail!("logging.format: {other:?} is unknown: text and json are"),
        },
    })
}

fn ranges<'a>(field: &str, texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpNet>> {
    let parse = |text: &str| parse_range(text).map_err(|reason| anyhow::anyhow!("{field}: {reason}"));
    texts.map(parse).collect()
}

/// A text that isn't blank.
fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.trim().is_empty())
}
