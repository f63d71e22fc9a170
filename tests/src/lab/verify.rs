//! Whether the tables of a node hold what is planned: asked when an agent is ended with its scenario, so that every scenario
//! ends with tables that equal the plan.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proxy_agent::{
    cli::input::InputArgs,
    dataplane::{
        audit::{self, Difference, Severity, Wanted},
        kernel,
        network::NetworkWatch,
        pin::PinDirectory,
    },
};

use super::{Agent, Lab, Namespace};

/// How long an agent may take to write what was applied last.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the agents of a lab left wrong when they were ended.
pub(super) type Findings = Arc<Mutex<Vec<String>>>;

/// What it takes to compare the tables of a node with what its agent plans.
#[derive(Debug)]
pub(super) struct Verifier {
    namespace: Namespace,
    pin: PathBuf,
    input: InputArgs,
    findings: Findings,
}

impl Verifier {
    /// Looks until the tables hold the plan; what differs all the time is a finding of the lab.
    pub(super) fn verify(&self) {
        if let Err(error) = self.wait_for_plan() {
            let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
            findings.push(format!("{}: {error:#}", self.namespace.name()));
        }
    }

    fn wait_for_plan(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let differences = self.namespace.run(|| self.differences())?;
            if differences.is_empty() {
                return Ok(());
            }
            let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
            ensure!(
                Instant::now() < deadline,
                "the tables differ from the plan:\n{}",
                told.join("\n")
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What matters to packets. That nothing leaks shows where nobody has to wait for it: in the tests of the programmer.
    fn differences(&self) -> Result<Vec<Difference>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let local = runtime
            .block_on(async { NetworkWatch::open()?.network().await })?
            .local_addresses();
        let local: Vec<_> = local.into_iter().collect();
        let planned = runtime.block_on(Box::pin(self.input.plan_once(None, &local, PATIENCE)))?;
        let wanted = Wanted {
            frontends: &planned.frontends,
            node: &planned.node,
            devices: None,
        };
        let tables = kernel::open(&PinDirectory::new(&self.pin))?;
        let mut differences = audit::differences(&tables, &wanted)?;
        differences.retain(|difference| difference.severity == Severity::Wrong);
        Ok(differences)
    }
}

impl Lab {
    /// What compares the tables of a node with what an agent with these arguments plans.
    pub(super) fn verifier(&self, node: &str, pin: PathBuf, arguments: &[String]) -> Result<Verifier> {
        let mut input = InputArgs {
            manifests: Some(self.manifests()),
            node_name: Some(node.to_owned()),
            config: None,
            node_addresses: Vec::new(),
        };
        let values = arguments.iter().skip(1);
        for (flag, value) in arguments.iter().zip(values) {
            match flag.as_str() {
                "--config" => input.config = Some(value.into()),
                "--node-address" => input.node_addresses.push(value.parse().context("a node's address")?),
                _ => {}
            }
        }
        Ok(Verifier {
            namespace: Namespace::open(self.node(node).namespace().name())?,
            pin,
            input,
            findings: Arc::clone(&self.findings),
        })
    }

    /// What the agents left wrong that were ended so far.
    ///
    /// # Errors
    /// If it is anything.
    pub(super) fn expect_no_findings(&self) -> Result<()> {
        let findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(findings.is_empty(), "{}", findings.join("\n"));
        Ok(())
    }

    /// Compares the tables of a node with what its agent plans, by `proxy-agent status --verify`, and gives what that prints.
    ///
    /// # Errors
    /// They differ, or can't be read.
    pub fn verify(&self, agent: &Agent) -> Result<String> {
        let manifests = self.manifests();
        let options = agent.options();
        let objects = match &options.kubeconfig {
            Some(kubeconfig) => ["--kubeconfig".to_owned(), kubeconfig.display().to_string()],
            None => ["--manifests".to_owned(), manifests.display().to_string()],
        };
        let mut arguments = vec!["--verify", "--node-name", agent.node(), &objects[0], &objects[1]];
        for pair in options.arguments.windows(2) {
            if matches!(pair[0].as_str(), "--config" | "--node-address") {
                arguments.extend(pair.iter().map(String::as_str));
            }
        }
        self.ask_agent(agent.node(), "status", &arguments)
    }
}
