//! Session affinity (behaviour.md 6).

use proxy_agent::plan::{Frontend, Kind};
use serde_json::{Value, json};

use crate::world::{World, balanced};

/// A Service with all kinds of frontends and this affinity.
fn world(affinity: Value, config: Value) -> World {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1"],
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    spec["sessionAffinity"] = affinity;
    spec["sessionAffinityConfig"] = config;
    World::with([balanced("web", spec, json!([{"ip": "198.51.100.1"}]))])
}

fn timeout(seconds: i32) -> Value {
    json!({"clientIP": {"timeoutSeconds": seconds}})
}

fn affinity(world: &World) -> Option<u32> {
    world.the(Kind::ClusterIP).affinity.map(Into::into)
}

/// All frontends of a service port share what is remembered, so they have the same timeout.
#[test]
fn rule_6_1_all_frontends_of_a_service_port_have_it() {
    let world = world(json!("ClientIP"), timeout(60));
    let frontends: Vec<&Frontend> = world.frontends.values().flatten().collect();
    assert_eq!(frontends.len(), 4);
    for frontend in frontends {
        assert_eq!(frontend.affinity.map(Into::into), Some(60_u32), "{frontend:?}");
    }
}

#[test]
fn rule_6_2_the_timeout_has_a_default_and_limits() {
    assert_eq!(affinity(&world(json!("ClientIP"), Value::Null)), Some(10_800));
    assert_eq!(
        affinity(&world(json!("ClientIP"), json!({"clientIP": {}}))),
        Some(10_800)
    );
    for (seconds, taken) in [(1, 1), (86_400, 86_400)] {
        let world = world(json!("ClientIP"), timeout(seconds));
        assert_eq!(affinity(&world), Some(taken));
        assert_eq!(world.problems(), [""; 0]);
    }
    for (seconds, taken) in [(0, 1), (-5, 1), (86_401, 86_400), (i32::MAX, 86_400)] {
        let world = world(json!("ClientIP"), timeout(seconds));
        assert_eq!(affinity(&world), Some(taken), "{seconds}");
        let problem = format!(
            "Service ns/web: spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} s is no timeout: 1 to 86400 are; \
             taken for {taken}"
        );
        assert_eq!(world.problems(), [problem]);
    }
}

#[test]
fn rule_6_5_affinity_can_be_off() {
    for off in [Value::Null, json!(""), json!("None")] {
        // A timeout that is left over means nothing.
        let world = world(off.clone(), timeout(60));
        assert_eq!(affinity(&world), None, "{off}");
        assert_eq!(world.problems(), [""; 0], "{off}");
    }
    let world = world(json!("ClientIp"), timeout(60));
    assert_eq!(affinity(&world), None);
    let problem = "Service ns/web: spec.sessionAffinity: \"ClientIp\" is no session affinity: None and ClientIP are; taken for None";
    assert_eq!(world.problems(), [problem]);
}
