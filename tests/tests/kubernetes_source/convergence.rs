//! Whatever happens to an API server, what it says in the end is what is served in the end; and until then never nothing, nor
//! a part (issue 4, 3; behaviour.md 9.1).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use proptest::{prelude::*, test_runner::TestCaseError};
use proxy_agent::{
    config::ProxyConfig,
    dataplane::{
        audit::{self, Difference, Wanted},
        memory::Memory,
        programmer::Programmer,
        table::Table as _,
    },
    model::{Model, ObjectName},
    plan::{Frontend, NodePlan, PlanContext, Planner, Update},
    source::{
        Change, Event,
        kubernetes::{Kubernetes, Tuning},
    },
};
use proxy_tests::api_server::{ApiServer, Gone, Mangle, Resource, Saved};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    runtime::Runtime,
    sync::mpsc::{self, Receiver},
    time::timeout,
};

use super::{harness::NODE_NAME, node, started};

/// Much faster than in a cluster, and in many pages.
const TUNING: Tuning = Tuning {
    longest_pause: Duration::from_millis(20),
    list_again: Duration::from_millis(20),
    page_size: 2,
};

/// How long convergence may take. Only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// The Service that is there all the time.
const ANCHOR: &str = "anchor";

#[derive(Clone, Debug)]
enum Step {
    /// A Service and its endpoints come or change
    Serve { service: u8, endpoint: u8 },
    /// A Service goes, and its endpoints, if it is there
    Withdraw(u8),
    /// Its endpoints alone
    Endpoint { service: u8, endpoint: u8 },
    /// There is another range of cluster addresses
    Ranges(u8),
    /// Every request fails with this status
    Fail(u16),
    /// A kind is not to be read
    Forbid(Resource),
    /// The second page of every list comes too late
    ForgetPages,
    /// Something happens to the events of watches
    Mangle(Mangle),
    /// Answers take a moment
    Slow,
    /// Everything works again
    Recover,
    /// All connections break
    Drop,
    /// All watches end with an error
    Expire,
    /// All watches end in order
    End,
    /// History is forgotten
    Compact(Gone),
    /// A snapshot is taken of etcd
    Save,
    /// etcd is restored from the last one
    Restore,
    /// The agent takes in what there is
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // 10.96.0.1 is the API server's own.
    let (service, endpoint) = (|| 2..6u8, || 1..6u8);
    let resource = || prop_oneof![Just(Resource::Services), Just(Resource::EndpointSlices)];
    let mangle = prop_oneof![Just(Mangle::Lose), Just(Mangle::Duplicate), Just(Mangle::Reverse)];
    let step = prop_oneof![
        8 => (service(), endpoint()).prop_map(|(service, endpoint)| Step::Serve { service, endpoint }),
        3 => service().prop_map(Step::Withdraw),
        6 => (service(), endpoint()).prop_map(|(service, endpoint)| Step::Endpoint { service, endpoint }),
        1 => (1..4u8).prop_map(Step::Ranges),
        2 => prop_oneof![Just(500u16), Just(429), Just(503), Just(401)].prop_map(Step::Fail),
        1 => resource().prop_map(Step::Forbid),
        1 => Just(Step::ForgetPages),
        2 => mangle.prop_map(Step::Mangle),
        1 => Just(Step::Slow),
        4 => Just(Step::Recover),
        2 => Just(Step::Drop),
        1 => Just(Step::Expire),
        1 => Just(Step::End),
        2 => prop_oneof![Just(Gone::Status), Just(Gone::Event)].prop_map(Step::Compact),
        3 => Just(Step::Save),
        2 => Just(Step::Restore),
        8 => Just(Step::Look),
    ];
    proptest::collection::vec(step, 1..30)
}

fn service(name: &str, number: u8) -> Value {
    let address = format!("10.96.0.{number}");
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": address, "clusterIPs": [address], "ports": [{"port": 80}]},
    })
}

fn slice(service: &str, endpoint: u8) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service},
        },
        "ports": [{"name": "", "port": 8080}],
        "endpoints": [{"addresses": [format!("10.244.0.{endpoint}")]}],
    })
}

/// An agent, but for its devices: source, model, plan, and tables in memory.
struct Agent {
    runtime: Runtime,
    events: Receiver<Event>,
    model: Model,
    planner: Planner,
    programmer: Programmer,
    memory: Memory,
    /// Something has been written
    has_written: bool,
    directory: TempDir,
}

type Plan = BTreeMap<ObjectName, Vec<Frontend>>;

impl Agent {
    fn start(server: &ApiServer) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (sender, events) = mpsc::channel(64);
        let source = Self::source(server, &directory, &runtime);
        runtime.spawn(source.run(sender));
        let memory = Memory::default();
        let programmer = Programmer::load(memory.tables(), Duration::ZERO).expect("readable");
        Self {
            runtime,
            events,
            model: Model::new(NODE_NAME),
            planner: Planner::default(),
            programmer,
            memory,
            has_written: false,
            directory,
        }
    }

    fn source(server: &ApiServer, directory: &TempDir, runtime: &Runtime) -> Kubernetes {
        let kubeconfig = server.kubeconfig(directory.path()).expect("a kubeconfig");
        let source = runtime.block_on(Kubernetes::new(Some(&kubeconfig), NODE_NAME.to_owned()));
        source.expect("the kubeconfig is usable").with_tuning(TUNING)
    }

    /// Takes in what comes within a moment, and writes it.
    fn look(&mut self) -> Result<(), TestCaseError> {
        let moment = Duration::from_millis(5);
        let next = |agent: &mut Self| {
            agent
                .runtime
                .block_on(async { timeout(moment, agent.events.recv()).await })
        };
        while let Ok(event) = next(self) {
            let event = event.expect("the source never ends by itself");
            if let Event::Service(Change::Replace(services)) = &event {
                prop_assert!(
                    services.iter().any(|service| service.name.name == ANCHOR),
                    "a part of a list was told: {services:?}"
                );
            }
            self.model.apply(event);
            self.write()?;
        }
        Ok(())
    }

    /// As the agent does.
    fn write(&mut self) -> Result<(), TestCaseError> {
        let Some(changes) = self.model.take_changes() else {
            return Ok(());
        };
        match self.planner.update(&self.model, &changes) {
            Update::Everything(plan) => self.programmer.replace(plan, Duration::ZERO),
            Update::Services(plan) => self.programmer.apply(plan, Duration::ZERO),
        }
        self.has_written = true;
        prop_assert_eq!(self.programmer.problems(), vec![]);
        let served = self.memory.v4.services.entries().expect("readable");
        let anchor = served
            .iter()
            .find(|(key, _)| key.address == [10, 96, 0, 100] && key.port == 80);
        prop_assert!(
            anchor.is_some_and(|(_, value)| value.cluster_count == 1),
            "what is there all the time was not served for a moment: {served:?}"
        );
        Ok(())
    }

    fn node(&self) -> NodePlan {
        NodePlan::new(&ProxyConfig::default(), &self.model, &[], &[])
    }

    fn differences(&mut self, frontends: &Plan, node: &NodePlan) -> Vec<Difference> {
        self.programmer.set_node(self.node(), Duration::ZERO);
        let wanted = Wanted {
            frontends,
            node,
            devices: None,
        };
        let mut differences = audit::differences(&self.memory.tables(), &wanted).expect("readable");
        // No time passes here.
        differences.retain(|difference| difference.severity == audit::Severity::Wrong);
        differences
    }

    /// What an agent plans that starts now.
    fn planned_afresh(&self, server: &ApiServer) -> (Plan, NodePlan) {
        let source = Self::source(server, &self.directory, &self.runtime);
        let mut model = Model::new(NODE_NAME);
        for event in self
            .runtime
            .block_on(Box::pin(source.list(PATIENCE)))
            .expect("the server is well")
        {
            model.apply(event);
        }
        let frontends = Planner::new(PlanContext::default()).plan_everything(&model);
        (frontends, NodePlan::new(&ProxyConfig::default(), &model, &[], &[]))
    }
}

fn take(step: &Step, server: &mut ApiServer, agent: &mut Agent, saved: &mut Saved) -> Result<(), TestCaseError> {
    let name = |service: u8| format!("s{service}");
    match *step {
        Step::Serve {
            service: number,
            endpoint,
        } => {
            server.apply(service(&name(number), number));
            server.apply(slice(&name(number), endpoint));
        }
        Step::Endpoint { service, endpoint } => server.apply(slice(&name(service), endpoint)),
        Step::Withdraw(service) => {
            _ = server.remove(Resource::Services, "default", &name(service));
            _ = server.remove(Resource::EndpointSlices, "default", &format!("{}-1", name(service)));
        }
        Step::Ranges(number) => server.apply(super::service_range(
            &format!("more-{number}"),
            &format!("10.{}.0.0/16", 96 + number),
        )),
        Step::Fail(status) => server.fail(status),
        Step::Forbid(resource) => server.forbid(resource),
        Step::ForgetPages => server.forget_pages(),
        Step::Mangle(mangle) => server.mangle(mangle),
        Step::Slow => server.delay(Duration::from_millis(10)),
        Step::Recover => server.allow_all(),
        Step::Drop => server.drop_watches(),
        Step::Expire => server.expire_watches(),
        Step::End => server.end_watches(),
        Step::Compact(gone) => server.compact(gone),
        Step::Save => *saved = server.save().expect("a snapshot"),
        Step::Restore => server.restore(*saved).expect("the port is free again"),
        Step::Look => agent.look()?,
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn any_trouble_ends_in_the_tables_of_a_fresh_start(steps in steps()) {
        let mut server = started();
        server.apply(node(NODE_NAME));
        server.apply(service(ANCHOR, 100));
        server.apply(slice(ANCHOR, 9));
        let mut saved = server.save().expect("a snapshot");
        let mut agent = Agent::start(&server);
        for step in &steps {
            take(step, &mut server, &mut agent, &mut saved)?;
        }
        server.allow_all();
        let (frontends, node) = agent.planned_afresh(&server);
        let deadline = Instant::now() + PATIENCE;
        loop {
            agent.look()?;
            let differences = agent.differences(&frontends, &node);
            if agent.has_written && differences.is_empty() {
                break;
            }
            prop_assert!(Instant::now() < deadline, "it doesn't converge: {differences:#?}");
            // As each does after five minutes at most.
            server.end_watches();
        }
    }
}
