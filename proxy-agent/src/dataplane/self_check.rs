//! Compares the tables with the plan on a thread of its own: a large cluster's take as long as a start does, and no change is to
//! wait for that.
//!
//! The thread only looks, while the tables are written as ever. Services that are written meanwhile are another time's; and what
//! it finds wrong with others nobody believes before looking again, with nothing written meanwhile.

use std::{
    collections::{BTreeMap, HashSet},
    sync::mpsc::{Receiver, TryRecvError, channel},
    thread,
};

use anyhow::Result;
use proxy_common::layout::Device;

use super::{
    audit::{self, Severity, Wanted},
    kernel,
    pin::PinDirectory,
};
use crate::{
    model::ObjectName,
    plan::{Frontend, NodePlan},
};

type Plan = BTreeMap<ObjectName, Vec<Frontend>>;

/// The look that is under way, if there is one.
#[derive(Default)]
pub(super) struct SelfCheck {
    /// Gives what seems to be wrong, by what it belongs to
    look: Option<Receiver<Result<HashSet<String>>>>,
    /// What was written since it began, in the words of problems
    written: HashSet<String>,
}

impl SelfCheck {
    /// Begins to look, unless a look is under way. `plan` is called on the thread.
    pub(super) fn begin(
        &mut self,
        pin: PinDirectory,
        (node, devices): (NodePlan, BTreeMap<u32, Device>),
        plan: impl FnOnce() -> Plan + Send + 'static,
    ) -> std::io::Result<()> {
        if self.look.is_some() {
            return Ok(());
        }
        let (sender, receiver) = channel();
        thread::Builder::new().name("self-check".to_owned()).spawn(move || {
            let looked = find_wrong(&pin, &plan(), &node, &devices);
            // Nobody waits any more when the agent ends.
            let _sent = sender.send(looked);
        })?;
        self.look = Some(receiver);
        self.written.clear();
        Ok(())
    }

    /// These Services are about to be written.
    pub(super) fn note<'a>(&mut self, services: impl Iterator<Item = &'a ObjectName>) {
        if self.look.is_some() {
            self.written.extend(services.map(|name| format!("Service {name}")));
        }
    }

    /// Whether something seems to differ, once a look is done.
    pub(super) fn poll(&mut self) -> Option<Result<bool>> {
        let found = match self.look.as_ref()?.try_recv() {
            Ok(found) => found,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Ok(HashSet::new()),
        };
        self.look = None;
        Some(found.map(|wrong| !wrong.is_subset(&self.written)))
    }
}

fn find_wrong(
    pin: &PinDirectory,
    plan: &Plan,
    node: &NodePlan,
    devices: &BTreeMap<u32, Device>,
) -> Result<HashSet<String>> {
    let wanted = Wanted {
        frontends: plan,
        node,
        devices: Some(devices),
    };
    let differences = audit::differences(&kernel::open(pin)?, &wanted)?;
    let wrong = differences
        .into_iter()
        .filter(|found| found.severity == Severity::Wrong);
    Ok(wrong.map(|found| found.object).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ObjectName {
        ObjectName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    /// A look that found these wrong, while `written` was written.
    fn looks_wrong(wrong: &[&str], written: &[&str]) -> Option<bool> {
        let (sender, receiver) = channel();
        let mut check = SelfCheck {
            look: Some(receiver),
            ..SelfCheck::default()
        };
        assert!(check.poll().is_none(), "it is under way");
        let written: Vec<_> = written.iter().map(|name| service(name)).collect();
        check.note(written.iter());
        let wrong = wrong.iter().map(|object| (*object).to_owned()).collect();
        sender.send(Ok(wrong)).expect("it is waited for");
        let looked = check.poll()?.expect("the tables are readable");
        assert!(check.poll().is_none(), "it is told once");
        Some(looked)
    }

    #[test]
    fn what_is_written_meanwhile_is_another_times() {
        assert_eq!(looks_wrong(&[], &["web"]), Some(false));
        assert_eq!(looks_wrong(&["Service default/web"], &[]), Some(true));
        assert_eq!(looks_wrong(&["Service default/web"], &["web", "api"]), Some(false));
        assert_eq!(looks_wrong(&["Service default/web", "this node"], &["web"]), Some(true));
        assert_eq!(looks_wrong(&[""], &["web"]), Some(true), "what belongs to nothing");
    }
}
