//! `run`: the agent.

mod log;
mod settings;

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;

use self::settings::Settings;
use super::{flags, input::InputArgs};
use crate::{
    agent::{Agent, Ending},
    config::{LocalTraffic, ProxyConfig, Watch, parse_healthz_address, parse_metrics_address},
    dataplane::{
        self, Dataplane, Options, cgroup,
        edge::{EdgePolicy, InterfaceMatch},
        pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
        sizes::TableSize,
        xdp,
    },
    events::{self, About, Notice, Recorder, Severity},
    health::{self, Asked, ProxyHealth},
    inquiry::{self, Inquirer},
    metrics::{self, Metrics, SyncMetrics, Told, WorkMetrics},
    model::Model,
    source::{kubernetes::Kubernetes, manifests},
    surfaces::Surfaces,
};

/// Events that may wait for the agent's loop.
const QUEUE: usize = 1024;

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

    /// A ProxyAgentConfiguration file: what a KubeProxyConfiguration has no word for. Flags override it
    #[arg(long, value_name = "FILE")]
    agent_config: Option<PathBuf>,

    #[command(flatten)]
    settings: Settings,

    /// Where to serve metrics, with port 10249 if none is given [default: metricsBindAddress of the configuration, or
    /// 127.0.0.1:10249]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_metrics_address)]
    metrics_bind_address: Option<SocketAddr>,

    /// Where to serve /healthz and /livez, with port 10256 if none is given [default: healthzBindAddress of the configuration,
    /// or 0.0.0.0:10256, which means all addresses of both families]
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = parse_healthz_address)]
    healthz_bind_address: Option<SocketAddr>,

    /// End where it can't listen, instead of trying again every 5 s
    #[arg(long)]
    bind_address_hard_fail: bool,
}

impl RunArgs {
    pub(crate) fn run(mut self) -> Result<()> {
        dataplane::keep_little_memory();
        let mut warnings = Vec::new();
        let watch = Watch::new([&self.input.config, &self.agent_config].into_iter().flatten());
        let config = self.config(|warning| warnings.push(warning))?;
        if let Some(file) = &self.agent_config {
            self.settings = self.settings.or(Settings::read(file)?);
        }
        log::start(config.logging);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        set_oom_score(config.oom_score_adj);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let result = runtime.block_on(self.serve(config, watch));
        // A task that is busy reading must not hold up the end.
        runtime.shutdown_background();
        result
    }

    async fn serve(self, config: ProxyConfig, watch: Watch) -> Result<()> {
        let ending = Ending::listen()?;
        let node_name = self.input.node_name(&config)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let source: Pin<Box<dyn Future<Output = ()> + Send>>;
        let recorder;
        if let Some(directory) = self.input.manifests.clone() {
            source = Box::pin(manifests::watch(directory, node_name.clone(), sender));
            recorder = Recorder::without_cluster();
        } else {
            let kubernetes = Kubernetes::new(self.kubeconfig(&config), node_name.clone()).await?;
            recorder = Recorder::start(kubernetes.client(), node_name.clone());
            source = Box::pin(kubernetes.run(sender));
        }
        let work = WorkMetrics::default();
        let mut options = self.options(&config);
        options.observer = Arc::new(work.clone());
        let dataplane = Dataplane::open(options, dataplane::now())?;
        let (inquirer, questions) = inquiry::channel();
        let surfaces = self.surfaces(&config, recorder, &work, inquirer)?;
        tokio::spawn(source);
        tracing::info!(node = node_name, "serving");
        let edges = EdgePolicy {
            node_addresses: Vec::new(),
            ignored: self.settings.ignore_devices,
            pods: self.settings.pod_devices,
            uplinks: self.settings.uplink_devices,
            overlays: self.settings.overlay_devices,
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
        let agent = Agent::new(model, planned, dataplane, edges, node_addresses, surfaces);
        tokio::select! {
            ended = agent.run(receiver, questions, ending) => ended,
            file = watch.changed() => bail!("{}: the configuration has changed: it takes a start to use it", file.display()),
        }
    }

    /// The flag's, else the configuration's.
    fn kubeconfig<'a>(&'a self, config: &'a ProxyConfig) -> Option<&'a Path> {
        self.kubeconfig.as_deref().or(config.kubeconfig.as_deref())
    }

    /// Starts what serves and tells others; the tables are there by now.
    fn surfaces(
        &self,
        config: &ProxyConfig,
        recorder: Recorder,
        work: &WorkMetrics,
        inquirer: Inquirer,
    ) -> Result<Surfaces> {
        recorder.record(Notice {
            about: About::Node,
            severity: Severity::Normal,
            reason: "Starting",
            action: "StartProxy",
            note: String::new(),
        });
        let (sync, health) = (
            SyncMetrics::default(),
            ProxyHealth::with_sync_period(config.sync_period),
        );
        let hard_fail = config.bind_address_hard_fail;
        let metrics = Metrics::new(
            self.pin_dir.clone(),
            self.settings.metrics(),
            (&sync, work),
            config.to_configz(),
            flags::of_run(env::args_os()),
        );
        let refused = |reason: &'static str| {
            let recorder = recorder.clone();
            move |note: &str| recorder.record(Notice::warning(About::Node, reason, "StartProxy", note))
        };
        metrics::serve(
            metrics,
            inquirer,
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
    fn config(&self, warn: impl FnMut(String)) -> Result<ProxyConfig> {
        let mut config = self.input.config(warn)?;
        config.metrics_bind_address = self.metrics_bind_address.or(config.metrics_bind_address);
        config.healthz_bind_address = self.healthz_bind_address.or(config.healthz_bind_address);
        config.bind_address_hard_fail |= self.bind_address_hard_fail;
        Ok(config)
    }

    fn options(&self, config: &ProxyConfig) -> Options {
        let mut options = Options::new(self.pin_dir.clone());
        let settings = &self.settings;
        options.attach = settings.attach.unwrap_or_default();
        options.log = settings.program_log.unwrap_or_default();
        options.count_endpoints = settings.metrics().endpoints == Told::On;
        options.sockets = cgroup::Policy {
            mode: settings.socket_lb.unwrap_or_default(),
            cgroup: settings.cgroup.clone(),
        };
        options.xdp = xdp::Policy(settings.xdp.clone());
        for timeout in config.flow_timeouts.iter().chain(&settings.flow_timeouts) {
            timeout.apply(&mut options.timeouts);
        }
        for TableSize { tables, entries } in &settings.table_sizes {
            let sizes = tables.iter().map(|table| (table.clone(), *entries));
            options.table_sizes.extend(sizes);
        }
        if let Some(entries) = settings.flow_table_size {
            for table in ["flows_v4", "flows_v6"] {
                options.table_sizes.insert(table.to_owned(), entries);
            }
        }
        options
    }
}

/// As the configuration says (behaviour.md 8.9). A value below that of the container takes CAP_SYS_RESOURCE, which a pod that is
/// critical to its node has no need of: the kubelet protects it.
fn set_oom_score(score: Option<i32>) {
    let Some(score) = score else { return };
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!("oomScoreAdj {score} can't be set: {error}; it is left to whoever started this process");
    }
}
