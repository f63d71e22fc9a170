//! Loads, pins and attaches the programs and writes the maps. The only room with `unsafe` and aya; knows no Kubernetes.
//!
//! [`Dataplane`] is the front door: the agent tells it what to serve and which devices there are. What it pins goes on
//! forwarding when the agent ends; the next agent takes it over with [`Dataplane::open`].

pub mod address;
mod attach;
pub mod audit;
pub mod cgroup;
pub mod cleanup;
mod clsact;
pub mod collect;
mod collection;
mod conntrack;
mod counted;
pub mod doctor;
pub mod edge;
pub mod faults;
mod features;
mod generation;
mod hook;
pub mod inspect;
pub mod kernel;
pub mod kube_proxy;
pub mod memory;
mod netfilter;
pub mod network;
mod object;
pub mod observer;
mod options;
pub mod pin;
pub mod pressure;
pub mod programmer;
mod raw;
mod self_check;
pub mod service_name;
mod shape;
pub mod simulation;
pub mod sizes;
pub mod sockets;
pub mod stale;
pub mod table;
mod takeover;
mod tcx;
pub mod watch;
pub mod xdp;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use proxy_common::layout::{Device, HOST_DEVICE, device_flags};

use self::{
    attach::Attacher,
    cgroup::SocketAttacher,
    collect::Collector,
    collection::Collection,
    edge::Edge,
    generation::{Generation, Previous, handover::Handover},
    object::Programs,
    pin::PinLock,
    programmer::Programmer,
    self_check::SelfCheck,
    sockets::SocketAborter,
    takeover::Takeover,
    xdp::{Express, ExpressAttacher},
};
use crate::{
    model::{ObjectName, Problem},
    plan::{Frontend, NodePlan},
};

pub use attach::Method;
pub use object::{LogLevel, has_programs};
pub use options::Options;

/// How long devices may take until new programs are at all of them, before these lead nevertheless.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);

/// How many differences are logged one by one when the tables are read back.
const TOLD_DIFFERENCES: usize = 10;

/// The programs and tables in the kernel, held by this process alone.
pub struct Dataplane {
    options: Options,
    programs: Programs,
    /// Taking over from what another build, or another size of tables, left
    handover: Option<Handover>,
    attacher: Attacher,
    express: ExpressAttacher,
    /// What the devices were last told of XDP, by interface index
    express_states: BTreeMap<u32, Express>,
    sockets: SocketAttacher,
    programmer: Programmer,
    collection: Collection,
    self_check: SelfCheck,
    takeover: Takeover,
    /// What was asked for last
    edges: BTreeMap<u32, Edge>,
    /// What the host itself sends from
    host: Device,
    device_problems: Vec<Problem>,
    socket_problems: Vec<Problem>,
    handover_problem: Option<Problem>,
    /// Since when all that is to be served has been written
    complete: Option<Duration>,
    /// Entries that were made good
    reconciled: u64,
    _lock: PinLock,
}

/// Has this process keep little memory that it doesn't use. To be called before there are threads.
pub fn keep_little_memory() {
    raw::keep_little_memory();
}

/// Gives back what memory is free: all Services have been read and written, which takes twice of what is kept.
pub fn return_memory() {
    raw::return_memory();
}

/// The time since boot that the datapath's clock counts (`CLOCK_MONOTONIC`); what methods here take as `now`.
pub fn now() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

impl Dataplane {
    /// Loads the programs and takes over what is pinned. Attaches nothing: what the last agent left goes on forwarding as it
    /// is. If its tables don't fit, new ones are made, and what they hold is carried over ([`generation`]).
    ///
    /// # Errors
    /// If the pin directory can't be used or another agent has it, or the kernel refuses; each says what to do.
    pub fn open(mut options: Options, now: Duration) -> Result<Self> {
        options.table_sizes = sizes::complete(&options.table_sizes);
        let lock = options.pin.claim()?;
        let previous = generation::settle(&options.pin, &options.table_sizes)?;
        let programs = load(&options, previous.as_ref().map(Previous::leader))?;
        let begin = |previous| Handover::begin(options.pin.generation(), previous, options.timeouts, now);
        let handover = previous.map(begin).transpose()?;
        let tables = || kernel::open_observed(&options.pin, &options.observer);
        let mut programmer = Programmer::load(tables()?, now).context("cannot read the tables of the last agent")?;
        if let Some(handover) = &handover {
            handover.admit(&mut programmer, now)?;
        }
        Ok(Self {
            programs,
            handover,
            programmer,
            collection: Collection::start(
                Collector::new(tables()?, options.timeouts).observed(options.observer.clone()),
                SocketAborter::new(kernel::open(&options.pin)?, options.sockets.mode),
                kernel::open(&options.pin)?,
                options.collect_interval,
                now,
            )?,
            self_check: SelfCheck::default(),
            takeover: Takeover::new(tables()?),
            express_states: BTreeMap::new(),
            express: ExpressAttacher::new(options.pin.clone(), options.xdp.clone()),
            sockets: SocketAttacher::new(options.pin.clone(), options.sockets.clone()),
            attacher: Attacher::new(options.pin.clone(), options.attach),
            options,
            edges: BTreeMap::new(),
            host: Device::default(),
            device_problems: Vec::new(),
            socket_problems: Vec::new(),
            handover_problem: None,
            complete: None,
            reconciled: 0,
            _lock: lock,
        })
    }

    /// Makes the tables hold exactly this plan: the first thing to do when all there is to serve is known.
    pub fn replace(&mut self, plan: BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        // What another build left has its own entries of what is conntrack's: they are moved with its flows.
        let begins = self.takeover.is_to_begin() && self.handover.is_none();
        if begins {
            self.takeover.begin(&plan, now);
            self.settle_takeover(now);
        }
        self.programmer.replace(plan, now);
        if begins {
            self.takeover.look(now);
            self.settle_takeover(now);
        }
        // Even if there is nothing: what comes later is new.
        let serving = self.programmer.take_changed_serving();
        self.takeover.purge(&serving);
        self.collection.purge(serving, now);
    }

    /// Writes what follows from how far the takeover is.
    fn settle_takeover(&mut self, now: Duration) {
        for address in self.takeover.sources() {
            if let Err(error) = self.programmer.admit_source(address, now) {
                tracing::warn!(%error, "the end of kube-proxy's connections to {address} won't be seen");
            }
        }
        let states = std::mem::take(&mut self.express_states);
        self.write_devices(&states, now);
        self.express_states = states;
    }

    /// Makes the tables hold exactly these frontends of the Services named, none for one that is gone.
    pub fn apply(&mut self, changes: BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        self.self_check.note(changes.keys());
        self.programmer.apply(changes, now);
        self.purge(now);
    }

    /// Removes the flows to endpoints that serve no more, after new flows go elsewhere (behaviour.md 7.8).
    fn purge(&mut self, now: Duration) {
        let changed = self.programmer.take_changed_serving();
        if !changed.is_empty() {
            self.takeover.purge(&changed);
            self.collection.purge(changed, now);
        }
    }

    /// Makes the tables hold what the node is.
    pub fn set_node(&mut self, node: NodePlan, now: Duration) {
        self.programmer.set_node(node, now);
        // Only now are nodePorts served.
        if self.takeover.is_under_way() {
            self.takeover.look(now);
            self.settle_takeover(now);
        }
        self.complete.get_or_insert(now);
        self.advance_handover(now);
    }

    /// Says which addresses packets of the host's processes have that go to other machines; goes with the next
    /// [`Self::set_edges`].
    pub fn set_host_addresses(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.host = edge::host_device(v4, v6);
    }

    /// Serves these edges (see [`edge::edges`]), by interface index, and no others.
    pub fn set_edges(&mut self, edges: &BTreeMap<u32, Edge>, now: Duration) {
        self.edges.clone_from(edges);
        self.sync_edges(now);
    }

    fn sync_edges(&mut self, now: Duration) {
        // The entries first: a program must find them with the first packet. XDP hands packets only to devices that have it:
        // said before it goes, and after it came.
        self.write_devices(&self.express.standing(&self.edges), now);
        let mut failed = self.attacher.sync(&mut self.programs, &self.edges);
        let (states, express_failed) = self.express.sync(&mut self.programs, &self.edges);
        self.write_devices(&states, now);
        self.express_states = states;
        failed.extend(express_failed);
        self.device_problems = failed
            .into_iter()
            .map(|(name, error)| problem(format!("device {name}"), &error))
            .collect();
        self.sync_sockets();
    }

    /// Those of a previous generation stay until this one decides on packets: they have no other program to leave anything to.
    fn sync_sockets(&mut self) {
        if !self.handover.as_ref().is_some_and(Handover::follows) {
            let failed = self.sockets.sync(&mut self.programs).into_iter();
            self.socket_problems = failed.map(|(object, error)| problem(object, &error)).collect();
        }
    }

    fn write_devices(&mut self, states: &BTreeMap<u32, Express>, now: Duration) {
        let entry = |(&index, edge): (&u32, &Edge)| {
            let mut device = edge.device();
            device.flags |= states.get(&index).map_or(0, |state| state.flags());
            if self.takeover.is_under_way() {
                device.flags |= device_flags::TAKING_OVER;
            }
            (index, device)
        };
        let mut host = self.host;
        host.flags = self.sockets.device_flags();
        let host = (HOST_DEVICE, host);
        let devices = self.edges.iter().map(entry).chain([host]).collect();
        self.programmer.set_devices(&devices, now);
    }

    /// Does what time brings: frees old endpoint sets, tries again what failed, removes old flows. To be called about
    /// once a second.
    pub fn tick(&mut self, now: Duration) {
        self.programmer.tick(now);
        if self.takeover.tick(now) {
            self.settle_takeover(now);
        }
        self.purge(now);
        if !self.device_problems.is_empty() {
            self.sync_edges(now);
        } else if !self.socket_problems.is_empty() {
            self.sync_sockets();
        }
        self.advance_handover(now);
        match self.collection.poll(now) {
            Some(Ok(usage)) => {
                // Flows elsewhere use ids and filter bits, too.
                if self.handover.is_none() {
                    self.programmer.reclaim(&usage);
                }
                if usage.removed > 0 {
                    tracing::debug!(removed = usage.removed, kept = usage.kept, "old flow entries removed");
                }
            }
            Some(Err(error)) => tracing::warn!(%error, "old flows could not be removed"),
            None => {}
        }
    }

    /// Begins to compare the tables with the plan of all Services, which is made beside the writing: [`Self::looks_wrong`] tells
    /// what came of it. To be called now and then.
    pub fn begin_self_check(&mut self, plan: impl FnOnce() -> BTreeMap<ObjectName, Vec<Frontend>> + Send + 'static) {
        // While two generations of tables are kept, what is carried from one to the other is in no plan.
        if self.handover.is_some() {
            return;
        }
        if let Some(wanted) = self.programmer.wanted()
            && let Err(error) = self.self_check.begin(self.options.pin.clone(), wanted, plan)
        {
            tracing::warn!("the tables could not be read back: no thread: {error}");
        }
    }

    /// Whether a look at the tables has ended that found something wrong, which may be a change that came meanwhile:
    /// [`Self::reconcile`] looks again.
    pub fn looks_wrong(&mut self) -> bool {
        match self.self_check.poll() {
            Some(Ok(differs)) => differs,
            Some(Err(error)) => {
                tracing::warn!("the tables could not be read back: {error:#}");
                false
            }
            None => false,
        }
    }

    /// Reads the tables back and makes good what differs from the plan, which is that of all Services. It takes as long as a
    /// start does.
    pub fn reconcile(&mut self, plan: BTreeMap<ObjectName, Vec<Frontend>>, now: Duration) {
        // While two generations of tables are kept, what is carried from one to the other is in no plan.
        if self.handover.is_some() {
            return;
        }
        let began = Instant::now();
        let reconciled = kernel::open_observed(&self.options.pin, &self.options.observer)
            .and_then(|tables| Ok(self.programmer.reconcile(tables, plan, now)?));
        self.options.observer.compared(began.elapsed());
        self.purge(now);
        match reconciled {
            Ok(differences) => {
                self.reconciled += differences.len() as u64;
                for difference in differences.iter().take(TOLD_DIFFERENCES) {
                    tracing::warn!("made good what something else has changed: {difference}");
                }
                if let Some(more) = differences.len().checked_sub(TOLD_DIFFERENCES).filter(|more| *more > 0) {
                    tracing::warn!("made good {more} more entries");
                }
            }
            Err(error) => tracing::warn!("the tables could not be read back: {error:#}"),
        }
    }

    /// Entries that were found changed by something else, and made good, since this process began.
    pub const fn reconciled(&self) -> u64 {
        self.reconciled
    }

    /// Whether the tables take what is written to them. A Service that can't be written for a reason of its own, such as a
    /// table without room for it, doesn't count.
    pub fn is_writable(&self) -> bool {
        self.programmer.is_writable()
    }

    /// Whether all that was asked for of Services is in the tables.
    pub fn is_complete(&self) -> bool {
        self.programmer.is_complete()
    }

    /// What is not as it should be, and is being tried again.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.programmer.problems();
        problems.extend(self.device_problems.iter().chain(&self.socket_problems).cloned());
        problems.extend(self.handover_problem.clone());
        problems.extend(self.takeover.problems());
        problems
    }

    /// Takes over from a previous generation as far as that is possible now.
    fn advance_handover(&mut self, now: Duration) {
        let advanced = self.try_advance_handover(now);
        self.handover_problem = advanced.err().map(|error| Problem {
            object: "taking over from the previous programs".to_owned(),
            field: String::new(),
            reason: format!("{error:#}"),
        });
    }

    fn try_advance_handover(&mut self, now: Duration) -> Result<()> {
        let Some(handover) = &mut self.handover else {
            return Ok(());
        };
        if handover.follows() {
            // Were an old program still at a hook, it would not know of new flows; but what can't be helped is not waited for.
            let Some(complete) = self.complete else {
                return Ok(());
            };
            if !self.device_problems.is_empty() && now < complete + DEVICE_PATIENCE {
                return Ok(());
            }
            handover.lead(&mut self.programmer, now)?;
            self.sync_sockets();
            self.handover.iter().try_for_each(Handover::carry_sockets)?;
        }
        let Some(handover) = &mut self.handover else {
            return Ok(());
        };
        if !handover.advance(now)? {
            return Ok(());
        }
        self.programs = load(&self.options, None)?;
        self.attacher = Attacher::new(self.options.pin.clone(), self.options.attach);
        self.sync_edges(now);
        if let Some(handover) = self.handover.take() {
            handover.finish()?;
            self.takeover.resume(now);
            self.settle_takeover(now);
        }
        self.programmer.tell_serving_again();
        self.purge(now);
        Ok(())
    }
}

fn problem(object: String, error: &anyhow::Error) -> Problem {
    Problem {
        object,
        field: String::new(),
        reason: format!("{error:#}"),
    }
}

fn load(options: &Options, previous: Option<&Generation>) -> Result<Programs> {
    let mut programs = Programs::load(
        &options.pin,
        &options.table_sizes,
        options.timeouts,
        options.sockets.mode,
        options.count_endpoints,
        options.log,
        previous,
    )?;
    if options.log != LogLevel::Off {
        programs.forward_log()?;
    }
    Ok(programs)
}
