//! What is known of Services besides the tables: why an endpoint is not in them stands in no table.

use anyhow::Result;

use crate::{
    cli::{ask::AskArgs, input::Input},
    inquiry::{About, ServiceDetail},
    model::ServiceView,
};

/// Where it is known from.
pub(super) enum Knowledge {
    /// Objects that were read for this
    Read(Box<Input>),
    /// The agent of this node
    Agent(AskArgs),
}

impl Knowledge {
    /// The Services that are asked about.
    ///
    /// # Errors
    /// No agent answers.
    pub(super) fn find(&self, about: &About) -> Result<Vec<ServiceDetail>> {
        match self {
            Self::Read(input) => {
                let problems = input.model.problems();
                let asked = input.model.services().filter(|view| about.is(*view));
                let detail = |view: ServiceView<'_>| ServiceDetail::of(view, &problems);
                Ok(asked.map(detail).collect())
            }
            Self::Agent(agent) => agent.services(about),
        }
    }
}
