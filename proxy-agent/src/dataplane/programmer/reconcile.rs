//! Reads the tables back: what a hand, or anything else outside, has changed in them is made good.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
    time::Duration,
};

use proxy_common::layout::Device;

use super::Programmer;
use crate::{
    dataplane::{
        audit::{self, Difference, Severity, Wanted},
        table::{TableError, Tables},
    },
    model::ObjectName,
    plan::{Frontend, NodePlan},
};

impl Programmer {
    /// What the node and its devices are to be, once all is known: with a plan that is what tables are compared with.
    pub fn wanted(&self) -> Option<(NodePlan, BTreeMap<u32, Device>)> {
        let node = self.node.clone().filter(|_| self.complete)?;
        Some((node, self.wanted_devices.clone()))
    }

    /// Compares the tables with the plan, which is that of all Services, and has them hold it if they don't; gives what
    /// differed. What could not be written and is being tried again is no difference. `tables` are those that this programmer
    /// writes.
    ///
    /// What heals them is what heals those of an agent that was killed: all is read anew, then the difference is written.
    ///
    /// # Errors
    /// If a table can't be read, or a name not be written; then nothing else has changed.
    pub fn reconcile(
        &mut self,
        tables: Tables,
        plan: BTreeMap<ObjectName, Vec<Frontend>>,
        now: Duration,
    ) -> Result<Vec<Difference>, TableError> {
        let Some((node, devices)) = self.wanted() else {
            return Ok(Vec::new());
        };
        let wanted = Wanted {
            frontends: &plan,
            node: &node,
            devices: Some(&devices),
        };
        let mut differences = audit::differences(&tables, &wanted)?;
        let failing: HashSet<String> = self.problems().into_iter().map(|problem| problem.object).collect();
        let is_known = |of: &str| failing.contains(of) || (of.is_empty() && !failing.is_empty());
        differences.retain(|found| found.severity == Severity::Wrong && !is_known(&found.object));
        if differences.is_empty() {
            return Ok(differences);
        }
        self.names.restore()?;
        let healed = Self::load(tables, now)?;
        let before = mem::replace(self, healed);
        (self.serving, self.changed_serving) = (before.serving, before.changed_serving);
        self.set_devices(&before.wanted_devices, now);
        self.replace(plan, now);
        self.set_node(node, now);
        Ok(differences)
    }
}
