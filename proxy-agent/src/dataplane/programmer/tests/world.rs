//! A node that is told plans by programmers who may be killed, and what packets and the checker see of it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use proxy_common::layout::{Device, ServiceCounter, role};

use super::{
    Plan, object,
    probe::{Fate, Probe},
    second, unused,
};
use crate::{
    dataplane::{
        audit::{Difference, Wanted, differences},
        faults::{Faults, Killed},
        memory::Memory,
        programmer::Programmer,
        service_name,
        table::Table as _,
    },
    plan::{Kind, LocalSources, NodePlan, ServicePort},
};

pub(super) const POD_DEVICE: u32 = 1;
pub(super) const UPLINK: u32 = 2;

/// What a node is to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) plan: Plan,
    pub(super) node: NodePlan,
}

impl Default for State {
    fn default() -> Self {
        Self {
            plan: Plan::new(),
            node: NodePlan {
                node_port_addresses: ["192.0.2.100", "2001:db8::100"].map(parse).into(),
                loopback_node_port_addresses: ["127.0.0.1", "::1"].map(parse).into(),
                local_addresses: ["192.0.2.100", "2001:db8::100"].map(parse).into(),
                local_sources: LocalSources::Ranges(["10.244.0.0/24", "fd01:0:0:1::/64"].map(parse).into()),
                service_ranges: ["10.96.0.0/16", "fd00::/112"].map(parse).into(),
            },
        }
    }
}

pub(super) fn parse<T: std::str::FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| panic!("{text} can't be read"))
}

impl State {
    /// Tables that an agent writes for it from nothing.
    fn fresh(&self, now: Duration) -> Memory {
        let memory = Memory::default();
        let mut programmer = Programmer::load(memory.tables(), now).expect("readable");
        self.tell(&mut programmer, now);
        assert_eq!(programmer.problems(), []);
        memory
    }

    fn tell(&self, programmer: &mut Programmer, now: Duration) {
        programmer.set_devices(&devices(), now);
        programmer.replace(self.plan.clone(), now);
        programmer.set_node(self.node.clone(), now);
    }

    /// Packets of everybody to everything that it serves.
    fn probes(&self) -> Vec<Probe> {
        let sources = [
            (UPLINK, "198.51.100.7", "2001:db8:51::7"),
            (UPLINK, "203.0.113.7", "2001:db8:ffff::7"),
            (POD_DEVICE, "10.244.0.77", "fd01:0:0:1::77"),
        ];
        let mut probes = Vec::new();
        for frontend in self.plan.values().flatten() {
            let node = |address: &&IpAddr| crate::plan::Family::of(**address) == frontend.family;
            let address = match frontend.kind {
                Kind::NodePort => self.node.node_port_addresses.iter().find(node).copied(),
                _ => frontend.address,
            };
            let Some(address) = address else { continue };
            for (device, v4, v6) in sources {
                let source = SocketAddr::new(parse(if address.is_ipv4() { v4 } else { v6 }), 40_000);
                probes.push(Probe {
                    device,
                    protocol: frontend.service_port.protocol,
                    source,
                    destination: SocketAddr::new(address, frontend.port),
                });
            }
        }
        probes
    }
}

pub(super) fn devices() -> BTreeMap<u32, Device> {
    let device = |role| Device {
        masquerade_v4: [192, 0, 2, 100],
        role,
        ..Device::default()
    };
    BTreeMap::from([(POD_DEVICE, device(role::POD)), (UPLINK, device(role::UPLINK))])
}

/// A node.
pub(super) struct World {
    pub(super) memory: Memory,
    pub(super) state: State,
    pub(super) seconds: u64,
    /// What packets may meet with on the way from one state to another
    allowed: Option<Allowed>,
}

/// What packets may meet with between two states.
struct Allowed {
    states: [State; 2],
    fates: Vec<(Probe, [Fate; 2])>,
}

impl World {
    /// A node that serves nothing yet.
    pub(super) fn new() -> Self {
        let state = State::default();
        Self {
            memory: state.fresh(second(1)),
            state,
            seconds: 1,
            allowed: None,
        }
    }

    pub(super) fn now(&self) -> Duration {
        second(self.seconds)
    }

    /// A programmer takes over and brings the node to a state; gives the number of writes it made, and whether it lived.
    pub(super) fn sync(&mut self, state: &State, faults: &Arc<Faults>) -> Option<Programmer> {
        self.seconds += 1;
        let now = self.now();
        let tables = faults.in_tables(self.memory.tables());
        let synced = catch_unwind(AssertUnwindSafe(|| {
            let mut programmer = Programmer::load(tables, now).expect("readable");
            assert_eq!(faults.writes(), 0, "it only looks at first");
            state.tell(&mut programmer, now);
            programmer
        }));
        match synced {
            Ok(programmer) => Some(programmer),
            Err(cause) if cause.is::<Killed>() => None,
            Err(cause) => resume_unwind(cause),
        }
    }

    /// Every packet must meet with what an agent had written for the old state or the new one.
    pub(super) fn expect_either(&mut self, new: &State, when: &str) {
        let states = [self.state.clone(), new.clone()];
        if self.allowed.as_ref().is_none_or(|allowed| allowed.states != states) {
            let tables = states.each_ref().map(|state| state.fresh(self.now()).tables());
            let probes = states.iter().flat_map(State::probes);
            let fates = |probe: Probe| (probe, tables.each_ref().map(|tables| probe.fate(tables, self.now())));
            let fates = probes.map(fates).collect();
            self.allowed = Some(Allowed { states, fates });
        }
        let tables = self.memory.tables();
        for (probe, allowed) in self.allowed.iter().flat_map(|allowed| &allowed.fates) {
            let fate = probe.fate(&tables, self.now());
            assert!(
                allowed.contains(&fate),
                "{when}: {probe:?}: {fate:?}, neither of {allowed:?}"
            );
        }
    }

    /// The programmer has brought the node to a state: so must the tables be, to the last entry, after a while.
    pub(super) fn expect_settled(&mut self, mut programmer: Programmer, state: &State, when: &str) {
        assert_eq!(programmer.problems(), [], "{when}");
        self.state = state.clone();
        // Freed sets leave their filter bits stale: they go a while later.
        for _ in 0..2 {
            self.seconds += 10;
            programmer.tick(self.now());
            programmer.reclaim(&unused(self.now()));
        }
        assert_eq!(self.differences(), [], "{when}");
    }

    /// What the checker finds.
    pub(super) fn differences(&self) -> Vec<Difference> {
        let wanted = Wanted {
            frontends: &self.state.plan,
            node: &self.state.node,
            devices: Some(&devices()),
        };
        differences(&self.memory.tables(), &wanted).expect("readable")
    }

    /// The ids of the service ports, and what their traffic was.
    pub(super) fn ids(&self) -> BTreeMap<ServicePort, (u32, Option<ServiceCounter>)> {
        let names = self.memory.service_names.entries().expect("readable").into_iter();
        let entry = |(id, name)| {
            let counted = self.memory.service_counts.get(&id).expect("readable");
            Some((service_name::decode(&name)?, (id, counted)))
        };
        names.filter_map(entry).collect()
    }

    /// Traffic of every service port.
    pub(super) fn count_traffic(&self) {
        let mut counts = self.memory.service_counts.clone();
        for (id, counted) in self.ids().into_values() {
            let mut counted = counted.unwrap_or_default();
            counted.packets += 1;
            counts.insert(&id, &counted).expect("room");
        }
    }

    /// What service ports of both states have, they keep.
    pub(super) fn expect_kept(
        &self,
        before: &BTreeMap<ServicePort, (u32, Option<ServiceCounter>)>,
        state: &State,
        when: &str,
    ) {
        let now = self.ids();
        for (port, kept) in before {
            let has = |state: &State| {
                let mut frontends = state.plan.get(&object(&port.service)).into_iter().flatten();
                frontends.any(|frontend| frontend.service_port == *port)
            };
            if has(&self.state) && has(state) {
                assert_eq!(now.get(port), Some(kept), "{when}: {port}");
            }
        }
    }
}
