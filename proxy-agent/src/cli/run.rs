//! `run`: the agent.

use std::{
    io::{self, IsTerminal as _},
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
};

use anyhow::{Context as _, Result};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::input::InputArgs;
use crate::{
    agent::{Agent, Ending},
    config::{LocalTraffic, ProxyConfig, parse_healthz_address, parse_metrics_address, timeouts::FlowTimeout},
    dataplane::{
        self, Dataplane, LogLevel, Method, Options, cgroup,
        edge::{EdgePolicy, InterfaceMatch},
        pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
        sizes::TableSize,
        xdp,
    },
    events::{self, About, Notice, Recorder, Severity},
    health::{self, Asked, ProxyHealth},
    metrics::{self, Metrics, ServiceMetrics, SyncMetrics},
    model::Model,
    source::{kubernetes::Kubernetes, manifests},
    surfaces::Surfaces,
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

    /// Where to serve /healthz and /livez, with port 10256 if none is given [default: healthzBindAddress of the configuration,
    /// or 0.0.0.0:10256, which means all addresses of both families]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_healthz_address)]
    healthz_bind_address: Option<SocketAddr>,

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
        let source: Pin<Box<dyn Future<Output = ()> + Send>>;
        let recorder;
        if let Some(directory) = self.input.manifests.clone() {
            source = Box::pin(manifests::watch(directory, sender));
            recorder = Recorder::without_cluster();
        } else {
            let kubernetes = Kubernetes::new(self.kubeconfig.as_deref(), node_name.clone()).await?;
            recorder = Recorder::start(kubernetes.client(), node_name.clone());
            source = Box::pin(kubernetes.run(sender));
        }
        let dataplane = Dataplane::open(self.options(&config), dataplane::now())?;
        let surfaces = self.surfaces(&config, recorder)?;
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
        let mut model = Model::new(node_name);
        model.note_trigger_times(Timestamp::now());
        Agent::new(model, planned, dataplane, edges, node_addresses, surfaces)
            .run(receiver, ending)
            .await
    }

    /// Starts what serves and tells others; the tables are there by now.
    fn surfaces(&self, config: &ProxyConfig, recorder: Recorder) -> Result<Surfaces> {
        recorder.record(Notice {
            about: About::Node,
            severity: Severity::Normal,
            reason: "Starting",
            action: "StartProxy",
            note: String::new(),
        });
        let (sync, health) = (SyncMetrics::default(), ProxyHealth::default());
        let hard_fail = config.bind_address_hard_fail;
        let metrics = Metrics::new(self.pin_dir.clone(), self.metrics_services, &sync, config.to_configz());
        let refused = |reason: &'static str| {
            let recorder = recorder.clone();
            move |note: &str| recorder.record(Notice::warning(About::Node, reason, "StartProxy", note))
        };
        metrics::serve(
            metrics,
            config.metrics_address(),
            hard_fail,
            refused("FailedToStartMetricServer"),
        )?;
        let counted = sync.clone();
        let count = move |asked, code| match asked {
            Asked::Healthz => counted.healthz_answered(code),
            Asked::Livez => counted.livez_answered(code),
        };
        let refused = refused("FailedToStartProxierHealthcheck");
        health::serve(health.clone(), config.healthz_address(), hard_fail, refused, count)?;
        events::watch_tables(self.pin_dir.clone(), recorder.clone());
        Ok(Surfaces::new(sync, health, recorder))
    }

    /// The configuration, with what the flags say in place of its own.
    fn config(&self) -> Result<ProxyConfig> {
        let mut config = self.input.config()?;
        config.metrics_bind_address = self.metrics_bind_address.or(config.metrics_bind_address);
        config.healthz_bind_address = self.healthz_bind_address.or(config.healthz_bind_address);
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
