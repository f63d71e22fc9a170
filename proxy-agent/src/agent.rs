//! The agent's one loop: source -> model -> plan -> dataplane, and the node's devices beside it.
//!
//! Level-triggered: an event says what is, not what to do; what was missed or failed is made good by the next look.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc::Receiver,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::{
    config::ProxyConfig,
    dataplane::{
        self, Dataplane,
        edge::{Class, EdgePolicy, Network, Role, WhyNot, classes, edges, host_addresses, unserved},
        network::NetworkWatch,
    },
    health::Moment,
    inquiry::{About, AgentDetail, Question, Questions, ServiceDetail},
    model::{Changes, Model, Problem, ServiceView},
    plan::{NodePlan, PlanContext, Planner, Update},
    source::Event,
    surfaces::{Surfaces, Written, health_check_addresses},
};

/// How often old endpoint sets and flows are looked for, and failed writes tried again.
const TICK: Duration = Duration::from_secs(1);
/// How many ticks lie between two looks for pods that pass no edge: what both see is told, as a pod's device may go a moment
/// before its endpoint.
const POD_LOOK: u32 = 5;
/// How many ticks lie between two looks at what the tables hold: five minutes.
const TABLE_LOOK: u32 = 300;
/// How many events are taken in before the plan is written: bounds what one burst can hold up.
const BATCH: usize = 1024;

/// The wish that the agent end: SIGTERM or SIGINT.
pub struct Ending([Signal; 2]);

impl Ending {
    /// Listens from now on, so that a wish that comes while the agent starts is not lost; needs a tokio runtime.
    ///
    /// # Errors
    /// If the signals can't be listened for.
    pub fn listen() -> Result<Self> {
        Ok(Self([
            signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        ]))
    }

    async fn wished(&mut self) {
        let [one, other] = &mut self.0;
        let received = tokio::select! {
            received = one.recv() => received,
            received = other.recv() => received,
        };
        if received.is_none() {
            // The runtime no longer listens for signals: it is about to end.
            pending::<()>().await;
        }
    }
}

/// The addresses of the node: those of its Node object, or what the user says in their place.
pub type NodeAddresses = Box<dyn Fn(&Model) -> Vec<IpAddr> + Send>;

/// What runs on a node.
pub struct Agent {
    model: Model,
    planner: Planner,
    config: ProxyConfig,
    dataplane: Dataplane,
    edges: EdgePolicy,
    node_addresses: NodeAddresses,
    surfaces: Surfaces,
    /// The devices as last seen
    network: Network,
    /// What the tables were last told of the node
    node: Option<NodePlan>,
    /// What each device is, as logged
    classes: BTreeMap<String, Class>,
    /// Why the devices could not be looked at
    device_problem: Option<Problem>,
    /// The look for pods that pass no edge, while it is under way
    pod_look: Option<JoinHandle<Result<BTreeMap<IpAddr, u32>>>>,
    /// What the last two looks found of pods that pass no edge
    unserved: [Vec<Problem>; 2],
    told: BTreeSet<Problem>,
    synced: bool,
    /// Every Service has been read, since this process began
    knows_all: bool,
}

impl Agent {
    /// An agent for the node of `model`, which is still empty.
    pub fn new(
        model: Model,
        config: ProxyConfig,
        dataplane: Dataplane,
        edges: EdgePolicy,
        node_addresses: NodeAddresses,
        surfaces: Surfaces,
    ) -> Self {
        Self {
            model,
            planner: Planner::default(),
            config,
            dataplane,
            edges,
            node_addresses,
            surfaces,
            network: Network::default(),
            node: None,
            classes: BTreeMap::new(),
            device_problem: None,
            pod_look: None,
            unserved: [const { Vec::new() }; 2],
            told: BTreeSet::new(),
            synced: false,
            knows_all: false,
        }
    }

    /// Serves until it is to end. What is programmed then goes on forwarding.
    ///
    /// # Errors
    /// If the source ends, or the kernel no longer tells of devices.
    pub async fn run(
        mut self,
        mut events: Receiver<Event>,
        mut questions: Questions,
        mut ending: Ending,
    ) -> Result<()> {
        let mut network = NetworkWatch::open()?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.look_at_devices(&mut network).await;
        let (mut ticks_to_pod_look, mut ticks_to_table_look) = (POD_LOOK, TABLE_LOOK);
        loop {
            tokio::select! {
                () = ending.wished() => {
                    tracing::info!("ending; what is programmed goes on forwarding");
                    return Ok(());
                }
                changed = network.changed() => {
                    changed?;
                    self.look_at_devices(&mut network).await;
                    self.write_node();
                }
                event = events.recv() => {
                    self.take_in(event.context("the source of Services has ended")?);
                    for _ in 1..BATCH {
                        let Ok(event) = events.try_recv() else { break };
                        self.take_in(event);
                    }
                    self.write();
                    self.write_node();
                    self.open_ports();
                    if self.edges.node_addresses != (self.node_addresses)(&self.model) {
                        self.look_at_devices(&mut network).await;
                    }
                }
                question = questions.next() => {
                    self.answer(question);
                    continue;
                }
                _ = tick.tick() => {
                    let was_failing = !self.dataplane.problems().is_empty();
                    self.dataplane.tick(dataplane::now());
                    ticks_to_table_look -= 1;
                    // What failed may have left less behind than was thought.
                    if ticks_to_table_look == 0 || (was_failing && self.dataplane.problems().is_empty()) {
                        ticks_to_table_look = TABLE_LOOK;
                        self.begin_self_check();
                    }
                    if self.dataplane.looks_wrong() {
                        self.reconcile();
                    }
                    if was_failing {
                        self.tell_progress();
                    }
                    self.open_ports();
                    if self.device_problem.is_some() {
                        self.look_at_devices(&mut network).await;
                    }
                    if let Some(look) = self.pod_look.take_if(|look| look.is_finished()) {
                        self.take_unserved(look.await?);
                    }
                    ticks_to_pod_look -= 1;
                    if ticks_to_pod_look == 0 {
                        ticks_to_pod_look = POD_LOOK;
                        self.look_for_unserved(&network);
                    }
                }
            }
            self.tell_problems();
        }
    }

    /// Whoever asked may have gone.
    fn answer(&self, question: Question) {
        match question {
            Question::Agent(answer) => drop(answer.send(self.detail())),
            Question::Services(about, answer) => drop(answer.send(self.services(&about))),
        }
    }

    fn detail(&self) -> AgentDetail {
        let health = self.surfaces.health();
        AgentDetail {
            node: self.model.node_name().to_owned(),
            synced: self.synced,
            healthy: health.is_healthy(Moment::now()),
            node_eligible: health.is_eligible(),
            last_sync: health.last_updated().map(|time| time.to_string()),
            services: self.model.services().count(),
            made_good: self.dataplane.reconciled(),
            problems: self.told.iter().map(ToString::to_string).collect(),
        }
    }

    fn services(&self, about: &About) -> Vec<ServiceDetail> {
        let asked = self.model.services().filter(|view| about.is(*view));
        let mut details: Vec<_> = asked.map(|view| ServiceDetail::of(view, &self.told)).collect();
        details.sort_unstable_by_key(ServiceDetail::name);
        details
    }

    fn take_in(&mut self, event: Event) {
        self.surfaces.told(&event);
        self.model.apply(event);
    }

    /// Writes what changed, as soon as Services and EndpointSlices have both been listed (behaviour.md 9.1).
    fn write(&mut self) {
        let changes = self.model.take_changes();
        self.surfaces.node(&self.model);
        if !self.model.is_synced() {
            return;
        }
        self.surfaces.taken();
        if let Some(changes) = changes {
            self.write_changes(&changes);
        }
        self.tell_progress();
    }

    /// A change that can't be written is no longer waiting only if that is a matter of its Service alone.
    fn tell_progress(&self) {
        if self.synced && self.dataplane.is_writable() {
            self.surfaces.up_to_date(self.dataplane.is_complete());
        }
    }

    fn write_changes(&mut self, changes: &Changes) {
        let made = self.model.take_trigger_times();
        let began = Instant::now();
        // It depends on the Node, whose changes are among those of the model.
        let node_addresses = (self.node_addresses)(&self.model);
        let context = PlanContext::new(&self.config, self.model.node(), &node_addresses);
        self.planner.set_context(context);
        self.knows_all |= *changes == Changes::Everything;
        if *changes == Changes::Known {
            tracing::warn!("not all Services could be read: what is programmed already stays until they can");
        }
        match self.planner.update(&self.model, changes) {
            Update::Everything(plan) => {
                tracing::info!(services = plan.len(), "programming all Services");
                self.dataplane.replace(plan, dataplane::now());
            }
            Update::Services(plan) => {
                tracing::debug!(services = plan.len(), "programming changed Services");
                self.dataplane.apply(plan, dataplane::now());
            }
        }
        let made = if self.dataplane.is_complete() { made } else { Vec::new() };
        let written = if *changes == Changes::Everything {
            Written::All
        } else {
            Written::Changed
        };
        self.surfaces.written(written, began.elapsed(), &made);
        self.surfaces.services(&self.model, changes);
        if !self.synced {
            self.synced = true;
            tracing::info!("ready");
            dataplane::return_memory();
        }
    }

    /// Looks whether the tables hold the plan, beside the work. Not before all of it is known.
    fn begin_self_check(&mut self) {
        if self.knows_all {
            let (model, context) = (self.model.clone(), self.planner.context().clone());
            self.dataplane
                .begin_self_check(move || Planner::new(context).plan_everything(&model));
        }
    }

    /// Has the tables hold the plan, if something else has changed them. Not before all of it is known.
    fn reconcile(&mut self) {
        if self.knows_all {
            let plan = self.planner.plan_everything(&self.model);
            self.dataplane.reconcile(plan, dataplane::now());
            self.surfaces.reconciled(self.dataplane.reconciled());
        }
    }

    /// Writes what the node is, once its Services are: an address that no Service has is then known to have none.
    fn write_node(&mut self) {
        if !self.synced {
            return;
        }
        let node_addresses = (self.node_addresses)(&self.model);
        let local: Vec<IpAddr> = self.network.local_addresses().into_iter().collect();
        let node = NodePlan::new(&self.config, &self.model, &node_addresses, &local);
        if self.node.as_ref() != Some(&node) {
            self.dataplane.set_node(node.clone(), dataplane::now());
            self.node = Some(node);
        }
    }

    /// Opens health check node ports, once it is known where.
    fn open_ports(&mut self) {
        if let Some(node) = &self.node {
            let configured = &self.config.node_port_addresses;
            self.surfaces
                .open_ports(|| health_check_addresses(configured, node.node_port_addresses.iter().copied()));
        }
    }

    /// Serves the devices of now. If the kernel doesn't tell them, what is served stays, and the next tick looks again.
    async fn look_at_devices(&mut self, network: &mut NetworkWatch) {
        self.edges.node_addresses = (self.node_addresses)(&self.model);
        self.device_problem = match network.network().await {
            Ok(network) => {
                self.tell_classes(classes(&network, &self.edges));
                let edges = edges(&network, &self.edges);
                let (v4, v6) = host_addresses(&network, &self.edges);
                self.dataplane.set_host_addresses(v4, v6);
                self.dataplane.set_edges(&edges, dataplane::now());
                self.network = network;
                None
            }
            Err(error) => Some(Problem {
                object: "devices".to_owned(),
                field: String::new(),
                reason: format!("{error:#}"),
            }),
        };
    }

    /// Begins to look for pods of this node whose packets pass no edge, unless that is under way: changes don't wait for it.
    fn look_for_unserved(&mut self, network: &NetworkWatch) {
        if self.pod_look.is_some() {
            return;
        }
        let slices = self.model.services().flat_map(ServiceView::slices);
        let endpoints = slices.flat_map(|slice| &slice.endpoints);
        let pods = endpoints.filter(|endpoint| endpoint.local && endpoint.conditions.ready);
        let pods: BTreeSet<IpAddr> = pods.map(|endpoint| endpoint.address).collect();
        self.pod_look = Some(tokio::spawn(network.ways_to(pods)));
    }

    /// Takes in what came of a look. Where the kernel doesn't tell, nothing is known to be wrong.
    fn take_unserved(&mut self, ways: Result<BTreeMap<IpAddr, u32>>) {
        let found = match ways {
            Ok(ways) => unserved(&self.network, &edges(&self.network, &self.edges), &ways),
            Err(error) => {
                tracing::debug!("looking for pods that pass no edge: {error:#}");
                Vec::new()
            }
        };
        let [_, last] = std::mem::take(&mut self.unserved);
        self.unserved = [last, found];
    }

    /// Logs what a device is, once. Pods come and go, and `status` lists them.
    fn tell_classes(&mut self, classes: BTreeMap<String, Class>) {
        for (device, class) in classes
            .iter()
            .filter(|(name, class)| self.classes.get(*name) != Some(class))
        {
            match class {
                Ok((role @ Role::Pod, why)) => tracing::debug!("device {device}: {role}, {why}"),
                Ok((role, why)) => tracing::info!("device {device}: {role}, {why}"),
                Err(why @ WhyNot::Framing) => tracing::warn!("device {device} is not served: {why}"),
                Err(why) => tracing::info!("device {device}: no edge, {why}"),
            }
        }
        self.classes = classes;
    }

    /// Logs each problem once when it comes, and once when it goes.
    fn tell_problems(&mut self) {
        let unwritten = self.dataplane.problems();
        let problems = [self.model.problems(), self.planner.problems(), unwritten.clone()];
        let [before, last] = &self.unserved;
        let still_unserved = last.iter().filter(|problem| before.contains(problem)).cloned();
        let problems: BTreeSet<Problem> = problems
            .into_iter()
            .flatten()
            .chain(self.device_problem.clone())
            .chain(still_unserved)
            .collect();
        for problem in problems.difference(&self.told) {
            tracing::warn!("{problem}");
            if unwritten.contains(problem) {
                self.surfaces.unwritten(problem);
            }
        }
        for problem in self.told.difference(&problems) {
            tracing::info!("no longer: {problem}");
        }
        self.surfaces.problems(problems.len());
        self.told = problems;
    }
}
