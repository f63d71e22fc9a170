//! `run`: the agent.

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
};

use anyhow::{Context as _, Result};
use clap::Args;
use tokio::sync::mpsc;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::input::InputArgs;
use crate::{
    agent::{Agent, Ending},
    config::{LocalTraffic, ProxyConfig, parse_metrics_address, timeouts::FlowTimeout},
    dataplane::{
        self, Dataplane, LogLevel, Method, Options, cgroup,
        edge::{EdgePolicy, InterfaceMatch},
        pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
        sizes::TableSize,
        xdp,
    },
    metrics::{self, Metrics, ServiceMetrics, SyncMetrics},
    model::Model,
    source::{kubernetes::Kubernetes, manifests},
};

/// Events that may wait for the agent's loop.
const QUEUE: usize = 1024;

/// What is logged unless RUST_LOG says otherwise: kube's client logs each failed attempt, which the watches tell better.
const LOG: &str = "info,kube_client=off,proxy_ebpf=debug";

/// Serve this node's Services until told to end; what is programmed then goes on forwarding
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    input: InputArgs,

    /// Kubeconfig of the cluster, where there is no --manifests [default: KUBECONFIG, ~/.kube/config, in-cluster]
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    kubeconfig: Option<PathBuf>,

    /// Directory on a BPF file system to pin maps and links in
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIRECTORY)]
    pin_dir: PinDirectory,

    /// Name pattern of devices that lead to pods, whatever they look like; may be repeated
    #[arg(long = "pod-devices", value_name = "PATTERN")]
    pod_devices: Vec<glob::Pattern>,

    /// Name pattern of devices that lead to other nodes and clients, whatever they look like; may be repeated
    #[arg(long = "uplink-devices", value_name = "PATTERN")]
    uplink_devices: Vec<glob::Pattern>,

    /// Name pattern of devices that lead to other nodes through a tunnel, whatever they look like; may be repeated
    #[arg(long = "overlay-devices", value_name = "PATTERN")]
    overlay_devices: Vec<glob::Pattern>,

    /// Name pattern of devices to leave alone, whatever they look like and other patterns say; may be repeated
    #[arg(long = "ignore-devices", value_name = "PATTERN")]
    ignored_devices: Vec<glob::Pattern>,

    /// How programs are attached
    #[arg(long, value_enum, default_value_t = Method::Auto)]
    attach: Method,

    /// Forward traffic from outside to backends on other nodes by XDP at uplinks: off, auto (in drivers that can do it), native
    /// or generic, for all devices or by name pattern; may be repeated. Such packets bypass netfilter [default: off]
    #[arg(long, value_name = "[PATTERN=]MODE")]
    xdp: Vec<xdp::Rule>,

    /// Whose connections and datagrams to Services are translated before there is a packet: those of the host's processes, of
    /// all, or nobody's
    #[arg(long, value_enum, default_value_t = cgroup::Mode::Host)]
    socket_lb: cgroup::Mode,

    /// Directory of the cgroup (version 2) whose processes --socket-lb is about [default: the root, wherever it is mounted]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// What the programs in the kernel log: every packet they refuse, or nothing
    #[arg(long, value_enum, default_value_t = LogLevel::Off)]
    program_log: LogLevel,

    /// Entries in each family's new flow table; a connection takes two [default: by the machine's memory]
    #[arg(long, value_name = "ENTRIES", value_parser = clap::value_parser!(u32).range(1024..))]
    flow_table_size: Option<u32>,

    /// Entries in a new table, by its name in `status`, with or without its family; may be repeated
    #[arg(long = "table-size", value_name = "NAME=ENTRIES")]
    table_sizes: Vec<TableSize>,

    /// Where to serve metrics, with port 10249 if none is given [default: metricsBindAddress of the configuration, or
    /// 127.0.0.1:10249]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_metrics_address)]
    metrics_bind_address: Option<SocketAddr>,

    /// Whether metrics tell the traffic of each service port: three time series each
    #[arg(long, value_enum, default_value_t)]
    metrics_services: ServiceMetrics,

    /// End where it can't listen, instead of trying again every 5 s
    #[arg(long)]
    bind_address_hard_fail: bool,

    /// How long flows of a state are kept without packets, instead of what the configuration or the kernel's conntrack says; may
    /// be repeated
    #[arg(long = "flow-timeout", value_name = "STATE=DURATION")]
    flow_timeouts: Vec<FlowTimeout>,
}

impl RunArgs {
    pub(crate) fn run(self) -> Result<()> {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
        tracing_subscriber::registry()
            .with(filter)
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(io::stderr)
                    .with_ansi(io::stderr().is_terminal())
                    .with_target(false),
            )
            .init();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let result = runtime.block_on(self.serve());
        // A task that is busy reading must not hold up the end.
        runtime.shutdown_background();
        result
    }

    async fn serve(self) -> Result<()> {
        let ending = Ending::listen()?;
        let config = self.config()?;
        let node_name = self.input.node_name(&config)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source: Pin<Box<dyn Future<Output = ()> + Send>> = if let Some(directory) = self.input.manifests.clone() {
            Box::pin(manifests::watch(directory, sender))
        } else {
            let kubernetes = Kubernetes::new(self.kubeconfig.as_deref(), node_name.clone()).await?;
            Box::pin(kubernetes.run(sender))
        };
        let dataplane = Dataplane::open(self.options(&config), dataplane::now())?;
        let sync_metrics = SyncMetrics::default();
        let all_metrics = Metrics::new(
            self.pin_dir.clone(),
            self.metrics_services,
            &sync_metrics,
            config.to_configz(),
        );
        let hard_fail = config.bind_address_hard_fail;
        metrics::serve(all_metrics, config.metrics_address(), hard_fail, |_| {})?;
        tokio::spawn(source);
        tracing::info!(node = node_name, "serving");
        let edges = EdgePolicy {
            node_addresses: Vec::new(),
            ignored: self.ignored_devices,
            pods: self.pod_devices,
            uplinks: self.uplink_devices,
            overlays: self.overlay_devices,
            local_traffic: match &config.local_traffic {
                LocalTraffic::ClusterCidr(_) | LocalTraffic::NodeCidr => None,
                LocalTraffic::BridgeInterface(name) => Some(InterfaceMatch::Name(name.clone())),
                LocalTraffic::InterfaceNamePrefix(prefix) => Some(InterfaceMatch::Prefix(prefix.clone())),
            },
        };
        let input = self.input;
        let planned = config.clone();
        let node_addresses = Box::new(move |model: &Model| input.node_addresses(&config, model.node()));
        Agent::new(
            Model::new(node_name),
            planned,
            dataplane,
            edges,
            node_addresses,
            sync_metrics,
        )
        .run(receiver, ending)
        .await
    }

    /// The configuration, with what the flags say in place of its own.
    fn config(&self) -> Result<ProxyConfig> {
        let mut config = self.input.config()?;
        config.metrics_bind_address = self.metrics_bind_address.or(config.metrics_bind_address);
        config.bind_address_hard_fail |= self.bind_address_hard_fail;
        Ok(config)
    }

    fn options(&self, config: &ProxyConfig) -> Options {
        let mut options = Options::new(self.pin_dir.clone());
        options.attach = self.attach;
        options.log = self.program_log;
        options.sockets = cgroup::Policy {
            mode: self.socket_lb,
            cgroup: self.cgroup.clone(),
        };
        options.xdp = xdp::Policy(self.xdp.clone());
        for timeout in config.flow_timeouts.iter().chain(&self.flow_timeouts) {
            timeout.apply(&mut options.timeouts);
        }
        for TableSize { tables, entries } in &self.table_sizes {
            let sizes = tables.iter().map(|table| (table.clone(), *entries));
            options.table_sizes.extend(sizes);
        }
        if let Some(entries) = self.flow_table_size {
            for table in ["flows_v4", "flows_v6"] {
                options.table_sizes.insert(table.to_owned(), entries);
            }
        }
        options
    }
}
