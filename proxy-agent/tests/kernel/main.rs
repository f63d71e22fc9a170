//! The dataplane against the kernel: each test in a mount and a network namespace of its own, which go with its thread.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use aya::programs::TcAttachType;
use proxy_agent::{
    dataplane::{
        self, Dataplane, Method,
        cleanup::cleanup,
        collect,
        edge::{Edge, EdgePolicy, Framing, Role, Why, edges},
        kernel,
        network::NetworkWatch,
    },
    model::ObjectName,
    plan::{Family, Frontend, Kind, Masquerade, Protocol, ServicePort, TrafficPolicy},
};
use proxy_common::layout::{FlowKey, FlowValue, HOST_DEVICE, INGRESS, SourceKey, tables};

/// A [`Sandbox`](crate::sandbox::Sandbox), or the end of a test that can't run here.
macro_rules! sandbox {
    () => {
        match $crate::sandbox::Sandbox::new() {
            Ok(sandbox) => sandbox,
            Err(obstacle) => proxy_tests::skip!("{obstacle}"),
        }
    };
}

mod devices;
mod generation;
mod kill;
mod sandbox;

use sandbox::{attached, ip, look, runtime, wait_for};

fn frontend(service: &str, address: &str, endpoints: &[&str]) -> Frontend {
    let address: SocketAddr = address.parse().expect("an address and port");
    Frontend {
        service_port: ServicePort {
            namespace: "default".to_owned(),
            service: service.to_owned(),
            port_name: String::new(),
            protocol: Protocol::Tcp,
        },
        kind: Kind::ClusterIP,
        family: Family::of(address.ip()),
        address: Some(address.ip()),
        port: address.port(),
        cluster: Some(
            endpoints
                .iter()
                .map(|endpoint| endpoint.parse().expect("an endpoint"))
                .collect(),
        ),
        local: None,
        has_endpoints: !endpoints.is_empty(),
        serving: Vec::new(),
        policy: TrafficPolicy::Cluster,
        masquerade: Masquerade::Never,
        affinity: None,
        sources: Vec::new(),
    }
}

fn plan() -> BTreeMap<ObjectName, Vec<Frontend>> {
    let web = ObjectName {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    };
    let frontends = vec![
        frontend("web", "10.96.0.1:80", &["10.244.0.5:8080", "10.244.1.5:8080"]),
        frontend("web", "[fd00:96::1]:80", &["[fd00:244::5]:8080"]),
    ];
    BTreeMap::from([(web, frontends)])
}

/// design.md 6: the agent's end leaves programs and tables as they are, and the next agent takes them over.
#[test]
fn a_restart_keeps_links_and_tables() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    let mut first = sandbox.open().expect("a dataplane");
    first.set_edges(&look(), dataplane::now());
    first.replace(plan(), dataplane::now());
    assert_eq!(first.problems(), []);
    let links = sandbox.link_ids();
    assert_eq!(links.len(), 2, "{links:?}");
    drop(first);

    assert_eq!(attached("pod1", TcAttachType::Ingress).len(), 1, "the program stays");
    let tables = kernel::open(&sandbox.pin()).expect("tables to read without an agent");
    let before = (
        tables.v4.slots.entries().expect("slots"),
        tables.v6.services.entries().expect("services"),
    );
    // The frontend, and the wildcard of its address.
    assert_eq!((before.0.len(), before.1.len()), (2, 2));

    let mut second = sandbox.open().expect("the tables taken over");
    second.set_edges(&look(), dataplane::now());
    second.replace(plan(), dataplane::now());
    assert_eq!(second.problems(), []);
    let after = (
        tables.v4.slots.entries().expect("slots"),
        tables.v6.services.entries().expect("services"),
    );
    assert_eq!(before, after);
    for (old, new) in links.iter().zip(sandbox.link_ids()) {
        assert_eq!((&old.0, old.1), (&new.0, new.1), "the same link");
        assert_ne!(old.2, new.2, "with the new agent's program");
    }
}

#[test]
fn one_pin_directory_has_one_agent() {
    let sandbox = sandbox!();
    let first = sandbox.open().expect("a dataplane");
    let message = format!("{:#}", sandbox.open().err().expect("refused"));
    assert!(
        message.contains(&format!("process {}", std::process::id())),
        "{message}"
    );
    assert!(format!("{:#}", cleanup(&sandbox.pin()).expect_err("refused")).contains("another agent"));
    drop(first);
    sandbox.open().expect("free again");
}

/// Tries go on from the last key, not from a number of four bytes as hashes do.
#[test]
fn every_source_range_is_read_back() {
    let sandbox = sandbox!();
    let _dataplane = sandbox.open().expect("a dataplane");
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let mut expected = Vec::new();
    for number in 0..10_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        let key = SourceKey::new(7, [10, high, low, 0], 24);
        tables.v4.sources.insert(&key, &1).expect("room");
        let mut address = [0; 16];
        address[..2].copy_from_slice(&[0x20, 0x01]);
        address[4..6].copy_from_slice(&[high, low]);
        tables
            .v6
            .sources
            .insert(&SourceKey::new(7, address, 48), &1)
            .expect("room");
        expected.push((key, 1));
    }
    let mut read = tables.v4.sources.entries().expect("readable");
    read.sort_unstable();
    expected.sort_unstable();
    assert_eq!(read, expected);
    assert_eq!(tables.v6.sources.entries().expect("readable").len(), 10_000);
}

#[test]
fn tables_have_the_sizes_asked_for() {
    let sandbox = sandbox!();
    let mut options = sandbox.options();
    options.table_sizes.insert("slots_v4".to_owned(), 1);
    let mut dataplane = Dataplane::open(options, dataplane::now()).expect("a dataplane");
    dataplane.replace(plan(), dataplane::now());
    let problems = dataplane.problems();
    let [problem] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert!(
        problem
            .to_string()
            .contains("Service default/web: 10.96.0.1 port 80 TCP: table slots_v4 is full"),
        "{problem}"
    );
    let tables = kernel::open(&sandbox.pin()).expect("tables");
    assert_eq!(
        tables.v6.services.entries().expect("readable").len(),
        2,
        "the rest is served, and its address's other ports are refused"
    );
}

/// A pod's veth comes, goes, and comes again under its old name.
#[test]
fn devices_are_served_as_they_come_and_go() {
    let sandbox = sandbox!();
    let mut dataplane = sandbox.open().expect("a dataplane");
    for _ in 0..2 {
        sandbox.add_pod("pod1");
        let seen = look();
        assert_eq!(seen.values().map(|edge| edge.role).collect::<Vec<_>>(), [Role::Pod]);
        dataplane.set_edges(&seen, dataplane::now());
        assert_eq!(dataplane.problems(), []);
        assert_eq!(attached("pod1", TcAttachType::Ingress).len(), 1);
        assert_eq!(attached("pod1", TcAttachType::Egress).len(), 1);
        assert_eq!(sandbox.link_ids().len(), 2);
        ip("link delete pod1");
    }
    dataplane.set_edges(&look(), dataplane::now());
    assert_eq!(sandbox.link_ids(), [], "no pins of devices that are gone");
    let tables = kernel::open(&sandbox.pin()).expect("tables");
    let left = tables.devices.entries().expect("devices").into_iter();
    assert_eq!(left.map(|(index, _)| index).collect::<Vec<_>>(), [HOST_DEVICE]);
}

/// A CNI may make the pair here and move the pod's end later.
#[test]
fn a_pair_becomes_a_pods_when_its_end_moves() {
    let sandbox = sandbox!();
    runtime().block_on(async {
        ip("link add pod1 type veth peer name peer1");
        let mut watch = NetworkWatch::open().expect("netlink");
        let roles = |network| edges(&network, &EdgePolicy::default()).len();
        assert_eq!(roles(watch.network().await.expect("the network")), 0);
        ip(&format!("link set peer1 netns {}", sandbox.pod_path()));
        while roles(watch.network().await.expect("the network")) == 0 {
            let changed = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
            changed.expect("an event in time").expect("an event");
        }
    });
}

/// The same index and name as before: what is pinned for it is dead (ENOLINK).
#[test]
fn a_device_recreated_under_its_old_index_is_attached_anew() {
    let sandbox = sandbox!();
    let mut dataplane = sandbox.open().expect("a dataplane");
    for _ in 0..2 {
        ip("link add pod1 index 77 type veth peer name peer1");
        let edge = Edge {
            name: "pod1".to_owned(),
            role: Role::Pod,
            why: Why::Pair,
            framing: Framing::Ethernet,
            local_traffic: false,
            masquerade_v4: None,
            masquerade_v6: None,
        };
        dataplane.set_edges(&BTreeMap::from([(77, edge)]), dataplane::now());
        assert_eq!(dataplane.problems(), []);
        assert_eq!(attached("pod1", TcAttachType::Ingress).len(), 1);
        ip("link delete pod1");
    }
}

/// The time from a veth's appearing to its programs, as the running agent would have it.
#[test]
fn a_new_device_is_noticed_at_once() {
    let sandbox = sandbox!();
    let mut dataplane = sandbox.open().expect("a dataplane");
    runtime().block_on(async {
        let mut watch = NetworkWatch::open().expect("netlink");
        sandbox.add_pod("pod1");
        let appeared = Instant::now();
        while attached("pod1", TcAttachType::Egress).is_empty() {
            let changed = tokio::time::timeout(Duration::from_secs(5), watch.changed()).await;
            changed.expect("an event in time").expect("an event");
            let network = watch.network().await.expect("the network");
            dataplane.set_edges(&edges(&network, &EdgePolicy::default()), dataplane::now());
        }
        println!("served after {:?}", appeared.elapsed());
    });
}

#[test]
fn old_flows_are_removed() {
    let sandbox = sandbox!();
    let mut options = sandbox.options();
    options.collect_interval = Duration::ZERO;
    let mut dataplane = Dataplane::open(options, dataplane::now()).expect("a dataplane");
    let mut tables = kernel::open(&sandbox.pin()).expect("tables");
    let now = dataplane::now() + Duration::from_secs(1000);
    for (client, last_seen) in [(1, 0), (2, collect::tick(now))] {
        let key = FlowKey::new(INGRESS, 17, ([10, 244, 0, client], 40_000), ([10, 96, 0, 1], 53));
        let value = FlowValue {
            last_seen,
            ..FlowValue::default()
        };
        tables.v4.flows.insert(&key, &value).expect("room");
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        dataplane.tick(now);
        let left = tables.v4.flows.entries().expect("readable");
        if let [(key, _)] = left[..] {
            assert_eq!(key.source, [10, 244, 0, 2]);
            break;
        }
        assert!(Instant::now() < deadline, "{left:?}");
        std::thread::yield_now();
    }
}

/// Between a look at an entry and its removal a packet may make another of it.
#[test]
fn an_entry_that_is_not_meant_stays() {
    let sandbox = sandbox!();
    let _dataplane = Dataplane::open(sandbox.options(), dataplane::now()).expect("a dataplane");
    let mut flows = kernel::open(&sandbox.pin()).expect("tables").v4.flows;
    let key = FlowKey::new(INGRESS, 17, ([10, 244, 0, 1], 40_000), ([10, 96, 0, 1], 53));
    let value = FlowValue {
        last_seen: 7,
        ..FlowValue::default()
    };
    let seen = |tick| move |value: &FlowValue<[u8; 4]>| value.last_seen == tick;
    assert!(!flows.remove_if(&key, &seen(7)).expect("writable"));
    flows.insert(&key, &value).expect("room");
    assert!(!flows.remove_if(&key, &seen(8)).expect("writable"));
    assert_eq!(flows.get(&key).expect("readable"), Some(value));
    assert!(flows.remove_if(&key, &seen(7)).expect("writable"));
    assert_eq!(flows.get(&key).expect("readable"), None);
}

#[test]
fn cleanup_leaves_nothing() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    let mut dataplane = sandbox.open().expect("a dataplane");
    dataplane.set_edges(&look(), dataplane::now());
    drop(dataplane);
    let other_version = sandbox.pin().root().join("v0/links");
    fs::create_dir_all(other_version).expect("what another version left");
    let removed = cleanup(&sandbox.pin()).expect("removed");
    assert_eq!((removed.links, removed.tables), (2, tables::ALL.len()));
    assert!(!sandbox.pin().root().exists());
    wait_for("the programs to be detached", || {
        attached("pod1", TcAttachType::Ingress).is_empty()
    });
    assert_eq!(cleanup(&sandbox.pin()).expect("nothing to do").links, 0);
}

/// design.md 7: reading commands work on the pinned tables, without agent and API server.
#[test]
fn reading_commands_need_no_agent() {
    let sandbox = sandbox!();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxy-agent"));
        command
            .args(arguments)
            .arg("--pin-dir")
            .arg(sandbox.pin().root())
            .output()
            .expect("the agent's binary")
    };
    let output = run(&["services"]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(
        message.contains("nothing is pinned at") && message.contains("proxy-agent run"),
        "{message}"
    );

    sandbox.add_pod("pod1");
    let mut dataplane = sandbox.open().expect("a dataplane");
    dataplane.set_edges(&look(), dataplane::now());
    dataplane.replace(plan(), dataplane::now());
    let json = |command: &str| -> serde_json::Value {
        let output = run(&[command, "-o", "json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let status = json("status");
    assert_eq!(status["agent"]["process"], std::process::id());
    drop(dataplane);

    let services = json("services");
    assert_eq!(services["services"].as_array().expect("a list").len(), 2);
    assert_eq!(services["services"][0]["service"], "web");
    assert_eq!(
        services["services"][0]["cluster"],
        serde_json::json!(["10.244.0.5:8080", "10.244.1.5:8080"])
    );
    assert_eq!(json("flows")["flows"], serde_json::json!([]));
    let status = json("status");
    assert_eq!(status["agent"]["running"], false);
    assert_eq!(status["devices"][0]["name"], "pod1");
    assert_eq!(status["devices"][0]["role"], "pod");
    assert_eq!(
        (&status["devices"][0]["ingress"], &status["devices"][0]["egress"]),
        (&"tcx".into(), &"tcx".into())
    );
    assert_eq!(
        status["tables"][0],
        serde_json::json!({"name": "services_v4", "entries": 2, "max_entries": 65_536, "evicts": false})
    );
    for command in ["services", "flows", "status"] {
        let output = run(&[command]);
        assert!(output.status.success());
        println!("{}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Before Linux 6.6 there is no tcx.
#[test]
fn clsact_does_where_tcx_is_missing() {
    let sandbox = sandbox!();
    sandbox.add_pod("pod1");
    let filters = |parent: &str| {
        let output = Command::new("tc")
            .args(["filter", "show", "dev", "pod1", parent])
            .output()
            .expect("tc(8)");
        String::from_utf8_lossy(&output.stdout).matches("direct-action").count()
    };
    for _ in 0..2 {
        let mut dataplane = sandbox.open_with(Method::Clsact).expect("a dataplane");
        dataplane.set_edges(&look(), dataplane::now());
        assert_eq!(dataplane.problems(), []);
        drop(dataplane);
        assert_eq!(
            (filters("ingress"), filters("egress")),
            (1, 1),
            "they stay, and are replaced at a restart"
        );
    }
    let mut dataplane = sandbox.open_with(Method::Tcx).expect("a dataplane");
    dataplane.set_edges(&look(), dataplane::now());
    assert_eq!((filters("ingress"), filters("egress")), (0, 0), "one method at a time");
    assert_eq!(attached("pod1", TcAttachType::Ingress).len(), 1);
    drop(dataplane);
    let mut dataplane = sandbox.open_with(Method::Clsact).expect("a dataplane");
    dataplane.set_edges(&look(), dataplane::now());
    drop(dataplane);
    assert_eq!(cleanup(&sandbox.pin()).expect("removed").filtered_devices, 1);
    let output = Command::new("tc")
        .args(["qdisc", "show", "dev", "pod1"])
        .output()
        .expect("tc(8)");
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("clsact"),
        "the queueing discipline was ours"
    );
}
