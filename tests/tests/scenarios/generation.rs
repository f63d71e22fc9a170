//! Tables of another size or layout, or broken ones, under load: an agent takes over from them, and nobody notices.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Agent, AgentOptions, Connection, Family, FrontendKind, Lab, Load, PATIENCE, Protocol, Service, UdpClient,
        other_agent_binary, wait_until,
    },
    require_root, skip,
};

use super::{PORT, outside};

/// How long an agent may take until nothing is left of the tables before: it loads its programs twice in that time.
const TAKEOVER: Duration = Duration::from_mins(1);
/// One client port for UDP, which goes on all the time: one flow.
const UDP_PORT: u16 = 20_053;

/// A cluster under load: by the Service's cluster address from a pod, and from outside by all others, masqueraded.
struct Scene<'a> {
    lab: &'a Lab,
    service: Service,
    loads: Vec<Load>,
    /// Open all the time
    connections: Vec<Connection>,
    udp: (UdpClient, SocketAddr),
    /// Packets counted for the Service so far
    counted: u64,
}

impl<'a> Scene<'a> {
    fn set(lab: &'a Lab) -> Result<(Self, Agent)> {
        Self::set_with(lab, &[])
    }

    /// With further arguments for the agent.
    fn set_with(lab: &'a Lab, arguments: &[&str]) -> Result<(Self, Agent)> {
        let service = outside::expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&service)?;
        let agent = lab.start_agent_with("node-a", lab.cluster_options(arguments)?)?;
        let [v4, v6] = Family::ALL.map(|family| service.frontend(family, PORT));
        let inside: Vec<_> = [v4, v6]
            .into_iter()
            .flat_map(|to| Protocol::ALL.map(|protocol| (protocol, to)))
            .collect();
        let frontends = outside::frontends(lab, &service);
        let node_ports =
            Family::ALL.map(|family| service.frontend_of(FrontendKind::NodePort, family, "tcp", lab.node("node-a")));
        let connect = |(from, to)| lab.namespace(from).run(|| Connection::open(to));
        let connections = [
            ("client", v4),
            ("client", v6),
            ("outside", node_ports[0]),
            ("outside", node_ports[1]),
        ]
        .into_iter()
        .map(connect)
        .collect::<Result<Vec<_>, _>>()?;
        let udp = lab.namespace("client").run(|| UdpClient::bind(UDP_PORT, v4))?;
        let scene = Self {
            lab,
            loads: vec![
                Load::start(lab.namespace("client"), 1, &inside),
                Load::start(lab.namespace("outside"), 1, &frontends),
            ],
            service,
            connections,
            udp: (udp, v4),
            counted: 0,
        };
        Ok((scene, agent))
    }

    /// Starts an agent, and waits until it has taken over what there was.
    fn start(&mut self, arguments: &[&str], binary: Option<PathBuf>) -> Result<Agent> {
        let options = AgentOptions {
            binary,
            ..self.lab.cluster_options(arguments)?
        };
        let agent = self.lab.start_agent_with("node-a", options)?;
        let pins = self.lab.pin_directory("node-a");
        wait_until("nothing is left of the tables before", TAKEOVER, || {
            if let Err(error) = self.look() {
                return Some(Err(error));
            }
            let generations = fs::read_dir(&pins).ok()?.flatten();
            let previous = generations.map(|generation| generation.path().join("previous"));
            (!previous.into_iter().any(|previous| previous.exists())).then_some(Ok(()))
        })??;
        self.look()?;
        Ok(agent)
    }

    /// Every open connection answers.
    fn ask(&mut self) -> Result<()> {
        for connection in &mut self.connections {
            connection.ask().context("a connection from before")?;
        }
        let (udp, to) = &mut self.udp;
        udp.ask(*to).context("a UDP flow from before")?;
        Ok(())
    }

    /// So it does, and counters have gone on.
    fn look(&mut self) -> Result<()> {
        self.ask()?;
        let listing = self
            .lab
            .listing("node-a", "services", &["--service", &self.service.full_name()])?;
        let frontends = listing["services"].as_array().context("no list `services`")?;
        let counted = frontends
            .iter()
            .filter_map(|frontend| frontend["packets"].as_u64())
            .max();
        let counted = counted.context("no counters")?;
        ensure!(
            counted >= self.counted,
            "counters went back from {} to {counted}",
            self.counted
        );
        self.counted = counted;
        Ok(())
    }

    /// Lets requests pass.
    fn wait(&self) -> Result<()> {
        self.loads.iter().try_for_each(|load| load.wait_for(60))
    }

    /// Nothing was lost, no segment either.
    fn end(self) -> Result<()> {
        for load in self.loads {
            load.stop().expect_no_loss()?;
        }
        ["client", "outside"]
            .into_iter()
            .try_for_each(|client| self.lab.namespace(client).expect_no_loss())
    }
}

/// Issue 4, section 2: growing a table keeps the flows in it; and so does making it smaller again.
#[test]
pub(super) fn a_flow_table_grows_and_shrinks_under_load() -> Result<()> {
    require_root!();
    outside::cluster().run(|lab| {
        let (mut scene, mut agent) = Scene::set(lab)?;
        for size in [1_048_576_u32, 65_536] {
            scene.wait()?;
            agent.terminate()?;
            scene.wait()?;
            agent = scene.start(&["--flow-table-size", &size.to_string()], None)?;
            let status = lab.listing("node-a", "status", &[])?;
            let tables = status["tables"].as_array().context("no list `tables`")?;
            let flows = tables.iter().find(|table| table["name"] == "flows_v4");
            ensure!(flows.is_some_and(|flows| flows["max_entries"] == size), "{status}");
            scene.wait()?;
        }
        scene.end()
    })
}

/// An upgrade to a build with another layout, and back; agents get these arguments.
fn upgrade_and_back(arguments: &[&str]) -> Result<()> {
    let other = match other_agent_binary() {
        Ok(other) => other,
        Err(obstacle) => skip!("{obstacle}"),
    };
    outside::cluster().run(|lab| {
        let (mut scene, mut agent) = Scene::set_with(lab, arguments)?;
        for (binary, kill) in [(Some(other), false), (None, true)] {
            scene.wait()?;
            if kill {
                agent.kill()?;
            } else {
                agent.terminate()?;
            }
            scene.wait()?;
            agent = scene.start(arguments, binary)?;
            scene.wait()?;
        }
        scene.end()
    })
}

/// Issue 4, section 3: an upgrade to a build with another layout of its tables, and back.
#[test]
pub(super) fn another_layout_and_back_under_load() -> Result<()> {
    require_root!();
    upgrade_and_back(&[])
}

/// The same where programs are filters, and count by endpoint, too: heirs are largest with that.
#[test]
fn another_layout_and_back_with_clsact() -> Result<()> {
    require_root!();
    upgrade_and_back(&["--attach", "clsact", "--metrics-endpoints=on"])
}

/// Issue 4, section 3: an agent that is killed while it takes over, wherever it is; the next one goes on.
#[test]
fn agents_killed_while_they_take_over_lose_nothing() -> Result<()> {
    require_root!();
    outside::cluster().run(|lab| {
        let (mut scene, mut agent) = Scene::set(lab)?;
        for (round, requests) in [1, 20, 40, 80].into_iter().enumerate() {
            agent.kill()?;
            let mut options = lab.cluster_options(&[])?;
            let size = ["262144", "131072"][round % 2];
            options
                .arguments
                .extend(["--flow-table-size".to_owned(), size.to_owned()]);
            let killed = lab.spawn_agent("node-a", options)?;
            scene.loads[0].wait_for(requests)?;
            killed.kill()?;
            scene.ask()?;
            agent = scene.start(&["--flow-table-size", size], None)?;
        }
        scene.wait()?;
        scene.end()
    })
}

/// Issue 4, section 3: a corrupted pin directory, with a table's pin lost, another's taken by a foreign map; then with a table
/// that is lost for good.
#[test]
fn a_corrupted_pin_directory_loses_nothing() -> Result<()> {
    require_root!();
    outside::cluster().run(|lab| {
        let (mut scene, agent) = Scene::set(lab)?;
        scene.wait()?;
        agent.terminate()?;
        let pin = |table| lab.pinned_table("node-a", table);
        for table in ["flows_v6", "service_names"] {
            fs::remove_file(pin(table)?)?;
        }
        fs::rename(pin("affinity_v4")?, pin("services_v4")?)?;
        let agent = scene.start(&[], None)?;
        scene.wait()?;
        agent.terminate()?;
        let names = pin("service_names")?;
        let version = names.ancestors().nth(2).context("a pin is below its version")?;
        fs::remove_file(version.join("spare/service_names"))?;
        fs::remove_file(names)?;
        // Nobody knows any more whose the counters are.
        scene.counted = 0;
        let _agent = scene.start(&[], None)?;
        scene.wait()?;
        scene.end()
    })
}

/// Issue 4, section 3: the second agent refuses, and the first goes on.
#[test]
fn a_second_agent_refuses() -> Result<()> {
    require_root!();
    outside::cluster().run(|lab| {
        let (mut scene, agent) = Scene::set(lab)?;
        let mut second = lab.spawn_agent("node-a", lab.cluster_options(&[])?)?;
        second.expect_differences();
        let status = wait_until("the second agent ends", PATIENCE, || second.ended().transpose())??;
        ensure!(!status.success(), "the second agent ended with {status}");
        let log = fs::read_to_string(lab.agent_log("node-a"))?;
        let message = format!("another agent (process {}) uses", agent.pid());
        ensure!(log.contains(&message), "no `{message}` in {log}");
        scene.wait()?;
        scene.look()?;
        scene.end()
    })
}
