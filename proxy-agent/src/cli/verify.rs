//! `status --verify`: whether the tables hold what is planned.

use std::{collections::HashSet, net::IpAddr, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::time::sleep;

use super::{input::InputArgs, listing::table};
use crate::dataplane::{
    audit::{self, Difference, Severity, Wanted},
    network::NetworkWatch,
    programmer::GRACE,
    table::Tables,
};

/// How long an API server may take to list everything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pause before the second look, by which what an agent was doing at the first is done: endpoint sets that nobody uses
/// any more are gone, a second at most after their grace, and changes under way are written.
const SECOND_LOOK: Duration = GRACE.saturating_add(Duration::from_secs(2));

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Verification {
    /// Nothing is programmed at all, though something is planned
    unprogrammed: bool,
    /// Frontends planned
    frontends: usize,
    /// What differed at both looks
    differences: Vec<Difference>,
}

impl Verification {
    /// # Errors
    /// If anything differs.
    pub(super) fn into_result(self) -> Result<()> {
        if self.unprogrammed {
            bail!(
                "nothing is programmed yet: no agent has listed Services and EndpointSlices since the tables were made (see \
                 its log)"
            );
        }
        match self.differences.len() {
            0 => Ok(()),
            1 => bail!("one entry differs from the plan"),
            count => bail!("{count} entries differ from the plan"),
        }
    }
}

/// Compares the tables with the plan: twice, a while apart, if they differ at first.
///
/// # Errors
/// If something can't be read.
pub(super) fn verify(tables: &Tables, input: &InputArgs, kubeconfig: Option<&Path>) -> Result<Verification> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut first = look(tables, input, kubeconfig).await?;
        if first.differences.is_empty() {
            return Ok(first);
        }
        sleep(SECOND_LOOK).await;
        let before: HashSet<Difference> = first.differences.drain(..).collect();
        let mut second = look(tables, input, kubeconfig).await?;
        second.differences.retain(|difference| before.contains(difference));
        Ok(second)
    })
}

async fn look(tables: &Tables, input: &InputArgs, kubeconfig: Option<&Path>) -> Result<Verification> {
    let network = NetworkWatch::open()?.network().await?;
    let local: Vec<IpAddr> = network.local_addresses().into_iter().collect();
    let planned = input.plan_once(kubeconfig, &local, PATIENCE).await?;
    let wanted = Wanted {
        frontends: &planned.frontends,
        node: &planned.node,
        devices: None,
    };
    let mut differences = audit::differences(tables, &wanted)?;
    // Kept for flows, which only the agent that collects them knows.
    differences.retain(|difference| difference.severity != Severity::Spare);
    let frontends = planned.frontends.values().map(Vec::len).sum();
    let is_empty = || anyhow::Ok(tables.v4.services.entries()?.is_empty() && tables.v6.services.entries()?.is_empty());
    Ok(Verification {
        unprogrammed: frontends > 0 && is_empty()?,
        frontends,
        differences,
    })
}

/// For people.
pub(super) fn text(verification: &Verification) -> String {
    let Verification {
        frontends, differences, ..
    } = verification;
    if differences.is_empty() {
        return format!("\n\nThe tables hold the plan: {frontends} frontends");
    }
    let mut rows = table(["TABLE", "ENTRY", "OF", "IS", "SHOULD BE"]);
    for difference in differences {
        rows.add_row([
            difference.table,
            &difference.entry,
            &difference.object,
            &difference.found,
            &difference.wanted,
        ]);
    }
    format!("\n\nThe tables are not as planned:\n{rows}")
}
