//! Plans the Services that changed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Claims, Frontend, PlanContext, claims_of, frontends};
use crate::model::{Changes, Model, ObjectName, Problem, ServiceView};

/// Plans Services, and knows which other Services a change concerns.
#[derive(Debug, Default)]
pub struct Planner {
    context: PlanContext,
    claims: Claims,
    /// The context has changed since everything was planned
    is_stale: bool,
}

/// What this node must serve from now on. A Service without frontends has an empty list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Update {
    /// All there is: what isn't in it must not be served any more
    Everything(BTreeMap<ObjectName, Vec<Frontend>>),
    /// Only these Services' frontends are others now
    Services(BTreeMap<ObjectName, Vec<Frontend>>),
}

impl Planner {
    /// A planner that has planned nothing yet.
    pub fn new(context: PlanContext) -> Self {
        Self {
            context,
            ..Self::default()
        }
    }

    /// Sets what all Services depend on. Returns whether it is another: then the next [`Self::update`] plans them all,
    /// even if no Service changed.
    pub fn set_context(&mut self, context: PlanContext) -> bool {
        let differs = context != self.context;
        self.context = context;
        self.is_stale |= differs;
        differs
    }

    /// What all Services depend on.
    pub const fn context(&self) -> &PlanContext {
        &self.context
    }

    /// Plans the Services of `changes`, and those that win or lose an address by them.
    pub fn update(&mut self, model: &Model, changes: &Changes) -> Update {
        match changes {
            Changes::Everything => Update::Everything(self.plan_everything(model)),
            Changes::Known => Update::Services(self.plan_known(model)),
            Changes::Services(_) if self.is_stale => Update::Services(self.plan_known(model)),
            Changes::Services(changed) => {
                let mut concerned = changed.clone();
                for name in changed {
                    concerned.append(&mut self.claim(name, model.service(name)));
                }
                let plan = |name: ObjectName| {
                    let planned = model.service(&name).map(|view| self.plan(model, view));
                    (name, planned.unwrap_or_default())
                };
                Update::Services(concerned.into_iter().map(plan).collect())
            }
        }
    }

    /// Plans all Services there are.
    pub fn plan_everything(&mut self, model: &Model) -> BTreeMap<ObjectName, Vec<Frontend>> {
        self.is_stale = false;
        self.claims.clear();
        for view in model.services() {
            self.claim(view.name, Some(view));
        }
        let plan = |view: ServiceView<'_>| (view.name.clone(), self.plan(model, view));
        model.services().map(plan).collect()
    }

    /// Claims of Services that are not served, because another Service has what they ask for.
    pub fn problems(&self) -> Vec<Problem> {
        self.claims.problems()
    }

    /// Plans all Services there are, and those that were planned before and are gone.
    fn plan_known(&mut self, model: &Model) -> BTreeMap<ObjectName, Vec<Frontend>> {
        let before: Vec<ObjectName> = self.claims.services().cloned().collect();
        let mut plan = self.plan_everything(model);
        for name in before {
            plan.entry(name).or_default();
        }
        plan
    }

    fn claim(&mut self, name: &ObjectName, view: Option<ServiceView<'_>>) -> BTreeSet<ObjectName> {
        let created = view.and_then(|view| view.service.created);
        let claims = view.map(|view| claims_of(view.service)).unwrap_or_default();
        self.claims.set(name, created, claims)
    }

    fn plan(&self, model: &Model, view: ServiceView<'_>) -> Vec<Frontend> {
        let mut planned = frontends(view, model.node(), &self.context);
        let is_owned = |frontend: &Frontend| {
            let port_name = &frontend.service_port.port_name;
            self.claims.owns(view.name, port_name, frontend.vip())
        };
        planned.retain(is_owned);
        planned
    }
}
