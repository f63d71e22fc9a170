//! An agent that is killed at any write to real maps: the next one brings them to the plan, to the last entry.

use std::{
    collections::BTreeMap,
    num::NonZeroU32,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use proxy_agent::{
    dataplane::{
        audit::{Wanted, differences},
        collect::FlowUsage,
        faults::{Faults, Killed},
        kernel,
        programmer::{GRACE, Programmer},
    },
    model::ObjectName,
    plan::{Frontend, LocalSources, NodePlan},
};

use crate::frontend;

type Plan = BTreeMap<ObjectName, Vec<Frontend>>;

fn plan(frontends: &[Frontend]) -> Plan {
    let name = |frontend: &Frontend| ObjectName {
        namespace: frontend.service_port.namespace.clone(),
        name: frontend.service_port.service.clone(),
    };
    let mut plan = Plan::new();
    for frontend in frontends {
        plan.entry(name(frontend)).or_default().push(frontend.clone());
    }
    plan
}

fn plans() -> Vec<Plan> {
    let v4 = ["10.244.0.5:8080", "10.244.1.5:8080"];
    let v6 = ["[fd00:244::5]:8080"];
    let web = [
        frontend("web", "10.96.0.1:80", &v4),
        frontend("web", "[fd00:96::1]:80", &v6),
    ];
    let restricted = web.clone().map(|frontend| Frontend {
        affinity: NonZeroU32::new(10_800),
        sources: match frontend.address {
            Some(address) if address.is_ipv4() => vec!["192.0.2.0/24".parse().expect("a range")],
            _ => vec!["2001:db8::/32".parse().expect("a range")],
        },
        ..frontend
    });
    let scaled = [
        frontend("web", "10.96.0.1:80", &v4[1..]),
        frontend("api", "[fd00:96::2]:80", &v6),
    ];
    vec![plan(&web), plan(&restricted), plan(&scaled), Plan::new()]
}

fn node() -> NodePlan {
    let own = || ["192.0.2.100".parse().expect("an address")].into();
    NodePlan {
        node_port_addresses: own(),
        loopback_node_port_addresses: ["127.0.0.1".parse().expect("an address")].into(),
        local_addresses: own(),
        local_sources: LocalSources::Ranges(vec!["10.244.0.0/16".parse().expect("a range")]),
        service_ranges: vec!["10.96.0.0/16".parse().expect("a range")],
    }
}

/// Issue 4, 3: `kill -9` at every step of a sync, and the checker over pinned tables.
#[test]
fn a_kill_at_any_write_is_made_good() {
    let sandbox = sandbox!();
    drop(sandbox.open().expect("a dataplane"));
    let tables = || kernel::open(&sandbox.pin()).expect("tables");
    let mut now = Duration::from_secs(1);
    let mut killed = 0;
    for plan in plans() {
        for write in 0.. {
            let faults = Faults::kill_at(write);
            let mut sync = |faults: &std::sync::Arc<Faults>| {
                now += Duration::from_secs(1);
                let mut programmer = Programmer::load(faults.in_tables(tables()), now).expect("readable");
                programmer.replace(plan.clone(), now);
                programmer.set_node(node(), now);
                programmer
            };
            let mut programmer = match catch_unwind(AssertUnwindSafe(|| sync(&faults))) {
                Ok(programmer) => programmer,
                Err(cause) => {
                    assert!(cause.is::<Killed>(), "a panic of its own, before write {write}");
                    killed += 1;
                    continue;
                }
            };
            faults.end();
            assert_eq!(programmer.problems(), []);
            for _ in 0..2 {
                now += GRACE * 2;
                programmer.tick(now);
                let usage = FlowUsage {
                    began: now,
                    ..FlowUsage::default()
                };
                programmer.reclaim(&usage);
            }
            let (frontends, node) = (&plan, &node());
            let wanted = Wanted {
                frontends,
                node,
                devices: None,
            };
            assert_eq!(differences(&tables(), &wanted).expect("readable"), []);
            break;
        }
    }
    assert!(killed > 10, "only {killed} writes were visited");
}
