//! The real agent on a node.

use std::{
    env,
    fs::{self, OpenOptions},
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proxy_common::datapath::Reason;
use serde_json::Value;

use super::{Lab, Node, PATIENCE, Pod, Protocol, Service, address, verify::Verifier, wait_until};

/// Tables for a lab's few Services and clients. To make and free those of a real node takes longer than anything else that an
/// agent does in a lab.
const SMALL_TABLES: [&str; 6] = [
    "flows=131072",
    "slots=16384",
    "members=16384",
    "affinity=4096",
    "sockets=4096",
    "service_counts=4096",
];

/// How an agent is started, beyond what every agent in a lab is told.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Takes Services from the API server that this kubeconfig leads to, instead of [`Lab::manifests`]
    pub kubeconfig: Option<PathBuf>,
    /// More arguments for `proxy-agent run`
    pub arguments: Vec<String>,
    /// Where it pins, instead of [`Lab::pin_directory`]
    pub pin_directory: Option<PathBuf>,
    /// Goes on when the lab's value is dropped, for a lab that is kept
    pub leave_running: bool,
    /// Another build than [`agent_binary`]
    pub binary: Option<PathBuf>,
}

impl AgentOptions {
    /// With a KubeProxyConfiguration: see [`Lab::write_configuration`].
    pub fn configured(file: &Path) -> Self {
        Self {
            arguments: vec!["--config".to_owned(), file.display().to_string()],
            ..Self::default()
        }
    }
}

/// A running agent; killed when dropped. One that reads manifests must have made the tables what they say by then: if not,
/// the lab's scenario fails.
#[derive(Debug)]
pub struct Agent {
    node: String,
    child: Child,
    options: AgentOptions,
    verifier: Option<Verifier>,
    /// Where its log begins in the file that the agents of the node share, in bytes
    log_start: usize,
}

impl Agent {
    /// The node it serves.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// How it was started.
    pub const fn options(&self) -> &AgentOptions {
        &self.options
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// It doesn't end, or not with status 0.
    pub fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let child = &mut self.child;
        let status = wait_until("the agent ends", PATIENCE, || child.try_wait().transpose())??;
        ensure!(status.success(), "the agent on {} ended with {status}", self.node);
        Ok(())
    }

    /// Ends it without asking (SIGKILL).
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// It can't do what the manifests say: the end of the scenario doesn't ask for it.
    pub fn expect_differences(&mut self) {
        self.verifier = None;
    }

    /// Whether it has ended by itself, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if !self.options.leave_running {
            // One that is at work, and no other failure to tell.
            if let Some(verifier) = self.verifier.take()
                && !thread::panicking()
                && matches!(self.ended(), Ok(None))
            {
                verifier.verify();
            }
            // It may have ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Path of the agent: `$PROXY_AGENT`, or `proxy-agent` in the build directory of the running program.
///
/// # Errors
/// There is none: the message says how to build it.
pub fn agent_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PROXY_AGENT") {
        return Ok(path.into());
    }
    let this = env::current_exe()?;
    let beside = this
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("proxy-agent"));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .context("no proxy-agent beside this program: run `cargo xtask build`, or set PROXY_AGENT to its path")
}

/// Path of an agent whose tables have another layout: `other-layout/proxy-agent` in the build directory.
///
/// # Errors
/// There is none: the message says how to build it.
pub fn other_agent_binary() -> Result<PathBuf> {
    let this = env::current_exe()?;
    let built = this
        .ancestors()
        .map(|directory| directory.join("other-layout/proxy-agent"));
    built
        .into_iter()
        .find(|path| path.is_file())
        .context("no agent with another layout: run `cargo xtask build --other-layout`")
}

impl Lab {
    /// Starts the agent of a node and waits until it has programmed all Services there are, or has ended.
    pub fn start_agent(&self, node: &str) -> Result<Agent> {
        self.start_agent_with(node, AgentOptions::default())
    }

    /// Starts the agents of all nodes.
    pub fn start_agents(&self) -> Result<Vec<Agent>> {
        self.start_agents_with(&AgentOptions::default())
    }

    /// Starts the agents of all nodes with options of their own.
    pub fn start_agents_with(&self, options: &AgentOptions) -> Result<Vec<Agent>> {
        let spawn = |node: &Node| self.spawn_agent(node.name(), options.clone());
        let agents = self.nodes().iter().map(spawn).collect::<Result<Vec<_>>>()?;
        agents.into_iter().map(|agent| self.wait_until_ready(agent)).collect()
    }

    /// Starts an agent with options of its own.
    pub fn start_agent_with(&self, node: &str, options: AgentOptions) -> Result<Agent> {
        self.wait_until_ready(self.spawn_agent(node, options)?)
    }

    fn wait_until_ready(&self, mut agent: Agent) -> Result<Agent> {
        let node = agent.node().to_owned();
        let outcome = wait_until(&format!("the agent on {node} is ready"), PATIENCE, || {
            match agent.ended() {
                // To look at the log costs next to nothing; to look at the tables over and over, as much as the start does.
                Ok(None) => (self.says_ready(&agent) && self.is_ready(&agent).unwrap_or(false)).then_some(Ok(None)),
                ended => Some(ended),
            }
        });
        match outcome.and_then(|ended| ended) {
            Ok(None) => {
                // What a node is to hold of other Services takes a plan to say.
                if agent.options.kubeconfig.is_none() && !self.applied().iter().all(Service::is_plain) {
                    self.settle(&node)?;
                }
                Ok(agent)
            }
            Ok(Some(status)) => bail!("the agent on {node} ended with {status}: {}", self.log_tail(&node)),
            Err(error) => Err(error.context(self.log_tail(&node))),
        }
    }

    /// Starts an agent without waiting for anything.
    pub fn spawn_agent(&self, node: &str, options: AgentOptions) -> Result<Agent> {
        let path = self.agent_log(node);
        let log = OpenOptions::new().create(true).append(true).open(&path)?;
        // Whether this agent is ready must not be read from the log of the one before it.
        let log_start = usize::try_from(log.metadata()?.len())?;
        let pin = options
            .pin_directory
            .clone()
            .unwrap_or_else(|| self.pin_directory(node));
        let binary = options.binary.clone().map_or_else(agent_binary, Ok)?;
        self.binaries
            .lock()
            .expect("nobody panics here")
            .insert(node.to_owned(), binary.clone());
        let mut command = Command::new(binary);
        command
            .args(["run", "--node-name", node])
            .args(match &options.kubeconfig {
                Some(kubeconfig) => ["--kubeconfig".into(), kubeconfig.clone()],
                None => ["--manifests".into(), self.manifests()],
            })
            .arg("--pin-dir")
            .arg(&pin)
            .args(self.table_sizes())
            .args(&options.arguments)
            .args(self.cgroup_of(node, &options))
            .args(self.xdp_of(&options).map(|mode| format!("--xdp={mode}")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if options.leave_running {
            // Out of reach of the terminal's signals.
            command.process_group(0);
        }
        // A process is born in the namespace of the thread that starts it.
        let child = self
            .node(node)
            .namespace()
            .run(|| command.spawn())
            .context("starting proxy-agent")?;
        self.adopt(&child)?;
        let verifier = match options.kubeconfig {
            Some(_) => None,
            // This program knows the layout of its own build only.
            None if options.binary.is_some() => None,
            None => Some(self.verifier(node, pin, &options.arguments)?),
        };
        Ok(Agent {
            node: node.to_owned(),
            child,
            options,
            verifier,
            log_start,
        })
    }

    /// The sizes that an agent is told first: an argument of the test's comes later, and so has the last word.
    fn table_sizes(&self) -> impl Iterator<Item = &'static str> + use<> {
        let small = self.small_tables.then_some(SMALL_TABLES);
        small.into_iter().flatten().flat_map(|size| ["--table-size", size])
    }

    /// The cgroup that an agent is told: that of its node, unless an argument says otherwise.
    fn cgroup_of(&self, node: &str, options: &AgentOptions) -> Vec<PathBuf> {
        let told = options
            .arguments
            .iter()
            .any(|argument| argument.starts_with("--cgroup"));
        let cgroup = self.node(node).namespace().cgroup().filter(|_| !told);
        cgroup.map_or_else(Vec::new, |cgroup| vec!["--cgroup".into(), cgroup.to_owned()])
    }

    /// The mode of XDP that an agent is told for all devices, by an argument `--xdp=MODE` or by the lab. One that is told
    /// otherwise (`--xdp`, then a rule) is left at that.
    fn xdp_of(&self, options: &AgentOptions) -> Option<String> {
        if options.arguments.iter().any(|argument| argument == "--xdp") {
            return None;
        }
        let told = options
            .arguments
            .iter()
            .find_map(|argument| argument.strip_prefix("--xdp="));
        told.map(str::to_owned)
            .or_else(|| self.xdp.map(|mode| mode.to_string()))
    }

    /// Ends a process with the lab, even if this one is killed first.
    pub fn adopt(&self, child: &Child) -> Result<()> {
        self.estate.adopt(child.id())
    }

    /// Runs a reading command of the binary of the agent that was started last on the pinned tables of a node, in the node's namespace.
    ///
    /// # Errors
    /// It ended with a status other than 0.
    pub fn ask_agent(&self, node: &str, command: &str, arguments: &[&str]) -> Result<String> {
        let binary = self.binaries.lock().expect("nobody panics here").get(node).cloned();
        let binary = binary.map_or_else(agent_binary, Ok)?;
        let pins = self.pin_directory(node);
        let (binary, pins) = (binary.to_string_lossy(), pins.to_string_lossy());
        let arguments: Vec<&str> = [command, "--pin-dir", &pins]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        self.node(node).namespace().tool(&binary, &arguments, "")
    }

    /// Waits until a node serves a Service as described.
    pub fn wait_for_service(&self, node: &str, service: &Service) -> Result<()> {
        if service.is_plain() {
            self.wait_for_endpoints(node, service)
        } else {
            // What this node is to hold takes a plan to say.
            self.settle(node)
        }
    }

    /// Waits until the agent of a node has programmed everything that was written for it before this call.
    ///
    /// An agent takes changes in order and finishes one batch before the next. So a change written now is in the same batch
    /// as the latest one or in a later one, and one that is written when that is seen is in a later batch for certain.
    ///
    /// # Errors
    /// It doesn't within the lab's patience; an agent with an API server never does.
    pub fn settle(&self, node: &str) -> Result<()> {
        let mut round = self.round.lock().expect("nobody panics here");
        for _ in 0..2 {
            *round += 1;
            let marker = Service::new("lab", "marker", address::cluster(255))
                .port("round", Protocol::Tcp, 1, *round)
                .member("marker", "", address::OUTSIDE);
            self.apply(&marker)?;
            self.wait_for_endpoints(node, &marker)?;
        }
        Ok(())
    }

    /// The same for all nodes.
    pub fn settle_everywhere(&self) -> Result<()> {
        self.nodes().iter().try_for_each(|node| self.settle(node.name()))
    }

    fn wait_for_endpoints(&self, node: &str, service: &Service) -> Result<()> {
        let wanted = service.endpoints();
        wait_until(
            &format!("{node} serves {} with {wanted:?}", service.full_name()),
            PATIENCE,
            || (self.served_endpoints(node, service).ok()? == wanted).then_some(()),
        )
    }

    /// The same for all nodes.
    pub fn wait_for_service_everywhere(&self, service: &Service) -> Result<()> {
        self.nodes()
            .iter()
            .try_for_each(|node| self.wait_for_service(node.name(), service))
    }

    /// Endpoints that the tables of a node hold for a Service, in all its frontends, sorted.
    pub fn served_endpoints(&self, node: &str, service: &Service) -> Result<Vec<SocketAddr>> {
        let listing = self.listing(node, "services", &["--service", &service.full_name()])?;
        let frontends = listing["services"]
            .as_array()
            .context("services -o json: no list `services`")?;
        let lists = frontends.iter().filter_map(|frontend| frontend["cluster"].as_array());
        let addresses = lists.flatten().filter_map(Value::as_str).map(str::parse);
        let mut endpoints = addresses.collect::<Result<Vec<SocketAddr>, _>>()?;
        endpoints.sort_unstable();
        endpoints.dedup();
        Ok(endpoints)
    }

    /// Number of flows in the tables of a node.
    pub fn flow_count(&self, node: &str) -> Result<usize> {
        let listing = self.listing(node, "flows", &[])?;
        Ok(listing["flows"]
            .as_array()
            .context("flows -o json: no list `flows`")?
            .len())
    }

    /// Whether an agent has said that it is ready, which it says when it has written all Services, and before the node's addresses.
    fn says_ready(&self, agent: &Agent) -> bool {
        let log = fs::read(self.agent_log(agent.node())).unwrap_or_default();
        let own = log.get(agent.log_start..).unwrap_or_default();
        own.split(|&byte| byte == b'\n').any(|line| line.ends_with(b" ready"))
    }

    /// Whether this agent holds the node's tables, the tables hold every applied Service, and the programs are on the
    /// device of every pod.
    fn is_ready(&self, agent: &Agent) -> Result<bool> {
        let node = agent.node();
        let status = self.listing(node, "status", &[])?;
        let devices = status["devices"]
            .as_array()
            .context("status -o json: no list `devices`")?;
        let is_served = |pod: &Pod| {
            // A pod without a device on the node needs none to be served.
            let Some(name) = pod.host_device() else { return true };
            let device = devices.iter().find(|device| device["name"] == name.as_str());
            device.is_some_and(|device| device["ingress"].is_string() && device["egress"].is_string())
        };
        let uplink = devices.iter().find(|device| device["name"] == "eth0");
        let has_xdp = self.xdp_of(&agent.options).is_none_or(|mode| {
            let attached = uplink.map_or(&Value::Null, |device| &device["xdp"]);
            // Whether a driver can do it is the test's to know.
            mode == "auto"
                || if mode == "off" {
                    attached.is_null()
                } else {
                    *attached == mode.as_str()
                }
        });
        let holds = |service: &Service| Ok(self.served_endpoints(node, service)? == service.endpoints());
        Ok(status["agent"]["process"] == agent.pid()
            && has_xdp
            && self.pods().iter().filter(|pod| pod.node() == node).all(is_served)
            && self
                .applied()
                .iter()
                .filter(|service| service.is_plain())
                .map(holds)
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .all(|held| held))
    }

    /// How often the programs of a node met a reason.
    pub fn reason_count(&self, node: &str, reason: Reason) -> Result<u64> {
        let status = self.listing(node, "status", &[])?;
        let reasons = status["reasons"].as_array().context("status lists no reasons")?;
        let counted = reasons.iter().find(|counted| counted["number"] == reason as u32);
        Ok(counted.and_then(|counted| counted["packets"].as_u64()).unwrap_or(0))
    }

    /// What a reading command of the agent's binary prints with `-o json`.
    pub fn listing(&self, node: &str, command: &str, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["-o", "json"]].concat();
        let text = self.ask_agent(node, command, &arguments)?;
        serde_json::from_str(&text).with_context(|| format!("{command} -o json printed {text}"))
    }

    fn log_tail(&self, node: &str) -> String {
        let text = fs::read_to_string(self.agent_log(node)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
