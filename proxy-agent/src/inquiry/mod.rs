//! What people may ask a running agent: what it knows of Services and the tables don't hold, and how it is itself.
//!
//! The agent's loop answers between two changes, from its model: nothing is kept for those who may ask. The questions come in
//! by the metrics server's pages `/debug/agent` and `/debug/services`, and the reading commands ask them of the agent of
//! their node.

mod about;
mod service;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub use about::About;
pub use service::{EndpointDetail, PortDetail, ServiceDetail, SlicePortDetail};

/// Questions that may wait for the loop.
const QUEUE: usize = 16;

/// How an agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentDetail {
    /// Name of its node
    pub node: String,
    /// It has listed Services and EndpointSlices, and written what they lead to (behaviour.md 9.1)
    pub synced: bool,
    /// No change has been waiting for too long (behaviour.md 8.4)
    pub healthy: bool,
    /// Load balancers may send to the node (behaviour.md 8.5)
    pub node_eligible: bool,
    /// When all that it was told was last in the tables (RFC 3339); absent if it never was
    pub last_sync: Option<String>,
    /// Services that it serves
    pub services: usize,
    /// Entries of the tables that something else had changed, and it made good
    pub made_good: u64,
    /// What is not as it should be
    pub problems: Vec<String>,
}

/// A question, and where the answer goes.
#[derive(Debug)]
pub(crate) enum Question {
    /// How are you?
    Agent(oneshot::Sender<AgentDetail>),
    /// What do you know of these Services?
    Services(About, oneshot::Sender<Vec<ServiceDetail>>),
}

/// Asks the loop; clones ask the same one.
#[derive(Clone, Debug)]
pub struct Inquirer(mpsc::Sender<Question>);

/// Where questions come in.
#[derive(Debug)]
pub struct Questions(mpsc::Receiver<Question>);

/// A way for questions.
pub fn channel() -> (Inquirer, Questions) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Inquirer(sender), Questions(receiver))
}

impl Inquirer {
    /// How the agent is; `None` if it ends.
    pub async fn agent(&self) -> Option<AgentDetail> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question::Agent(answer)).await.ok()?;
        answered.await.ok()
    }

    /// What it knows of Services, sorted by name; `None` if it ends.
    pub async fn services(&self, about: About) -> Option<Vec<ServiceDetail>> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question::Services(about, answer)).await.ok()?;
        answered.await.ok()
    }
}

impl Questions {
    /// The next question; never if nobody can ask any more.
    pub(crate) async fn next(&mut self) -> Question {
        match self.0.recv().await {
            Some(question) => question,
            None => std::future::pending().await,
        }
    }
}
