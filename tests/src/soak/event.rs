//! What happens to the cluster during the soak.

use std::{fmt, thread, time::Duration};

use anyhow::{Context as _, Result};

use super::cluster::Cluster;
use crate::lab::{Agent, AgentOptions, Lab, flood};

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A Service changes, comes or goes
    Change,
    /// Many do at once
    Burst,
    /// An agent is asked to end, and started again
    Restart,
    /// An agent is killed, and started again
    Kill,
    /// An agent is killed while it takes in a change, and started again
    KillInChange,
    /// First packets with false sources
    Flood,
    /// An agent is asked to end, and started again with a flow table of another size
    Resize,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Change => "change",
            Self::Burst => "burst of changes",
            Self::Restart => "restart",
            Self::Kill => "kill",
            Self::KillInChange => "kill in a change",
            Self::Flood => "flood",
            Self::Resize => "table of another size",
        })
    }
}

/// How often each happens, in comparison.
const WEIGHTS: [(Event, u32); 7] = [
    (Event::Change, 10),
    (Event::Burst, 3),
    (Event::Restart, 1),
    (Event::Kill, 1),
    (Event::KillInChange, 2),
    (Event::Flood, 1),
    (Event::Resize, 1),
];

impl Event {
    /// One of them at random, by their weights.
    pub(super) fn draw(random: &mut fastrand::Rng) -> Self {
        let all: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = random.u32(..all);
        for (event, weight) in WEIGHTS {
            if drawn < weight {
                return event;
            }
            drawn -= weight;
        }
        Self::Change
    }

    /// Makes it happen.
    pub(super) fn happen(
        self,
        lab: &Lab,
        cluster: &mut Cluster,
        agents: &mut Agents,
        random: &mut fastrand::Rng,
    ) -> Result<()> {
        match self {
            Self::Change => {
                cluster.change(lab, random)?;
                cluster.settle(lab)
            }
            Self::Burst => {
                for _ in 0..random.usize(5..40) {
                    cluster.change(lab, random)?;
                }
                cluster.settle(lab)
            }
            Self::Restart => {
                let node = agents.take(random);
                node.terminate()?;
                cluster.change(lab, random)?;
                agents.all_running(lab)
            }
            Self::Kill => {
                agents.take(random).kill()?;
                cluster.change(lab, random)?;
                agents.all_running(lab)
            }
            Self::KillInChange => {
                let agent = agents.take(random);
                for _ in 0..random.usize(1..10) {
                    cluster.change(lab, random)?;
                }
                // The moment is drawn, too: it falls anywhere between the first write and the last.
                thread::sleep(Duration::from_micros(random.u64(..30_000)));
                agent.kill()?;
                agents.all_running(lab)
            }
            Self::Flood => {
                let targets = cluster.flooded(lab);
                let (protocol, to) = targets[random.usize(..targets.len())];
                // A ClusterIP is reached from pods only.
                let inside = lab
                    .nodes()
                    .iter()
                    .all(|node| !node.addresses().both().contains(&to.ip()));
                let from = if inside || random.bool() { "client" } else { "outside" };
                flood(lab.namespace(from), protocol, to, FLOOD)
            }
            Self::Resize => {
                agents.take(random).terminate()?;
                agents
                    .options
                    .arguments
                    .retain(|argument| !argument.starts_with(SIZE_FLAG));
                let entries = FLOW_ENTRIES[random.usize(..FLOW_ENTRIES.len())];
                agents.options.arguments.push(format!("{SIZE_FLAG}{entries}"));
                agents.all_running(lab)
            }
        }
    }
}

/// Sizes of the flow tables, in entries: a flow takes two, a masqueraded one four. A flood that is masqueraded is larger than the smaller
/// one and displaces part of itself, and the rest is there when the next comes; what becomes of a table that is filled many times over is
/// the scenarios' (`flood`): datagrams may then be given up before their answer.
const FLOW_ENTRIES: [u32; 2] = [131_072, 262_144];
const SIZE_FLAG: &str = "--flow-table-size=";
/// Packets of a flood.
const FLOOD: u16 = 40_960;

/// The agents of all nodes.
#[derive(Debug)]
pub(super) struct Agents {
    running: Vec<Agent>,
    options: AgentOptions,
}

impl Agents {
    /// Starts them.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let options = lab.cluster_options(&[&format!("{SIZE_FLAG}{}", FLOW_ENTRIES[0])])?;
        Ok(Self {
            running: lab.start_agents_with(&options)?,
            options,
        })
    }

    /// Takes one out, to be ended.
    fn take(&mut self, random: &mut fastrand::Rng) -> Agent {
        let index = random.usize(..self.running.len());
        self.running.swap_remove(index)
    }

    /// What differs between the tables and the plan.
    pub(super) fn differences(&self, lab: &Lab) -> Vec<String> {
        let verified = self.running.iter().map(|agent| (agent.node(), lab.verify(agent)));
        verified
            .filter_map(|(node, verified)| Some(format!("{node}: {:#}", verified.err()?)))
            .collect()
    }

    /// Starts those that don't run.
    pub(super) fn all_running(&mut self, lab: &Lab) -> Result<()> {
        for node in lab.nodes() {
            if !self.running.iter().any(|agent| agent.node() == node.name()) {
                let agent = lab.start_agent_with(node.name(), self.options.clone());
                self.running
                    .push(agent.with_context(|| format!("starting the agent of {}", node.name()))?);
            }
        }
        Ok(())
    }
}
