//! The hooks of sockets: how long they stay, whom they serve, and where they find the cgroups.

use std::{
    fs::{self, File},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Answer, Family, FrontendKind, Lab, Load, PATIENCE, Policy, Protocol, RequestError, Service, agent_binary,
        wait_until,
    },
    require_root,
};
use serde_json::Value;

use super::{
    PORT,
    host::{Way, ask_every_way, loopback},
    outside::{NODE_PORT, cluster, expose, start_agents},
};

/// What `status` says of the hooks of node-a: whose sockets are served, and how many hooks are attached.
fn hooks(lab: &Lab) -> Result<(String, usize)> {
    let status = lab.listing("node-a", "status", &[])?;
    let sockets = &status["sockets"];
    let mode = sockets["mode"].as_str().context("a mode")?;
    let attached = sockets["attached"].as_array().context("a list of hooks")?;
    Ok((mode.to_owned(), attached.len()))
}

/// A request of a process on node-a.
fn ask(lab: &Lab, way: Way, to: SocketAddr) -> Result<Answer, RequestError> {
    lab.namespace("node-a").run(|| way.ask(to))
}

/// The hooks outlive the agent; the next one takes them over without a call lost; `cleanup` removes them.
#[test]
fn hooks_stay_until_the_cleanup() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&service)?;
        let options = lab.cluster_options(&[])?;
        let mut agent = lab.start_agent_with("node-a", options.clone())?;
        ensure!(hooks(lab)? == ("host".to_owned(), 8), "{:?}", hooks(lab)?);
        let targets: Vec<_> = [Protocol::Tcp, Protocol::Udp]
            .into_iter()
            .flat_map(|protocol| Family::ALL.map(|family| (protocol, service.frontend(family, PORT))))
            .chain([(Protocol::Tcp, loopback(Family::V4, NODE_PORT + 1))])
            .collect();
        let load = Load::start(lab.namespace("node-a"), 2, &targets);
        load.wait_for(50)?;
        agent.kill()?;
        load.wait_for(100)?;
        agent = lab.start_agent_with("node-a", options)?;
        load.wait_for(100)?;
        agent.terminate()?;
        load.wait_for(100)?;
        load.stop().expect_no_loss()?;
        ensure!(hooks(lab)? == ("host".to_owned(), 8), "{:?}", hooks(lab)?);
        lab.ask_agent("node-a", "cleanup", &[])?;
        for family in Family::ALL {
            let outcome = ask(lab, Way::Tcp, loopback(family, NODE_PORT + 1));
            ensure!(outcome.is_err(), "after the cleanup: {outcome:?}");
        }
        Ok(())
    })
}

/// `--socket-lb=off` detaches what an agent before has attached; pods are served all the same.
#[test]
fn socket_lb_off_serves_no_process() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&service)?;
        let at_loopback = loopback(Family::V4, NODE_PORT + 1);
        let agent = lab.start_agent_with("node-a", lab.cluster_options(&[])?)?;
        ask(lab, Way::Tcp, at_loopback)?;
        agent.terminate()?;
        let _agent = lab.start_agent_with("node-a", lab.cluster_options(&["--socket-lb=off"])?)?;
        wait_until("the hooks are gone", PATIENCE, || {
            hooks(lab)
                .is_ok_and(|hooks| hooks == ("off".to_owned(), 0))
                .then_some(())
        })?;
        let outcome = ask(lab, Way::Tcp, at_loopback);
        ensure!(outcome.as_ref().is_err_and(RequestError::is_refused), "{outcome:?}");
        for family in Family::ALL {
            lab.tcp_request("client", service.frontend(family, PORT))?;
        }
        Ok(())
    })
}

/// With `--socket-lb=all` a pod is translated at its socket: no flow is made. Where it matters who the pod is, its packets are
/// served as ever.
#[test]
fn socket_lb_all_serves_pods_at_their_sockets() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near", "far"])?;
        lab.apply(&service)?;
        let _agents = lab.start_agents_with(&lab.cluster_options(&["--socket-lb=all"])?)?;
        ensure!(hooks(lab)? == ("all".to_owned(), 8), "{:?}", hooks(lab)?);
        let client = lab.pod("client").addresses();
        for family in Family::ALL {
            let as_itself = |answer: &Answer| client.both().contains(&answer.peer.ip());
            ask_every_way(lab, "client", service.frontend(family, PORT), as_itself)?;
        }
        let flows = lab.flow_count("node-a")?;
        ensure!(flows == 0, "{flows} flows of translated sockets");
        for family in Family::ALL {
            // The client is masqueraded: its packets are.
            let to = service.frontend_of(FrontendKind::ExternalIp, family, "tcp", lab.node("node-a"));
            ask_every_way(lab, "client", to, |answer| lab.node("node-a").holds(answer.peer.ip()))?;
            // And so are processes of the host.
            ask_every_way(lab, "node-a", to, |answer| lab.node("node-a").holds(answer.peer.ip()))?;
            // The loopback address of a pod is its own.
            let outcome = lab
                .namespace("client")
                .run(|| Way::Tcp.ask(loopback(family, NODE_PORT + 1)));
            ensure!(outcome.as_ref().is_err_and(RequestError::is_refused), "{outcome:?}");
        }
        ensure!(lab.flow_count("node-a")? > 0);
        Ok(())
    })
}

/// A container that the agent of node-a runs in: cgroup and mount namespaces of its own. `mounts` is run in them first, with `$root`
/// the root of the cgroup2 hierarchy outside.
struct Container(Child);

impl Container {
    fn start(lab: &Lab, log: &str, mounts: &str) -> Result<Self> {
        let script = format!(
            "root=$(awk '/ - cgroup2 /{{ print $5; exit }}' /proc/self/mountinfo) && {mounts} && exec \"$0\" \"$@\""
        );
        let log = File::create(lab.directory().join(log))?;
        let mut command = Command::new("unshare");
        command
            .args(["--cgroup", "--mount", "sh", "-e", "-c", &script])
            .arg(agent_binary()?)
            .args(["run", "--node-name", "node-a", "--manifests"])
            .arg(lab.manifests())
            .arg("--pin-dir")
            .arg(lab.pin_directory("node-a"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = lab.namespace("node-a").run(|| command.spawn()).context("unshare")?;
        lab.adopt(&child)?;
        Ok(Self(child))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Hides all cgroup hierarchies, and mounts the part that a container sees.
const OWN_PART: &str = "umount --recursive --lazy /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup";

/// A container sees its own part of the cgroups where a host has the root. The agent takes the host's, wherever that is mounted;
/// where it isn't, it says what to mount, and serves all but the host's processes.
#[test]
fn containers_need_the_hosts_cgroups() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["near"])?;
        lab.apply(&service)?;
        let served = |from: &str| {
            wait_until(&format!("{from} is served"), PATIENCE, || {
                lab.tcp_request(from, service.frontend(Family::V4, PORT)).ok()
            })
        };
        let container = Container::start(lab, "without.log", OWN_PART)?;
        served("client")?;
        let log = lab.directory().join("without.log");
        wait_until("the agent says what to mount", PATIENCE, || {
            let text = fs::read_to_string(&log).ok()?;
            (text.contains("only a part of the cgroup2 hierarchy") && text.contains("--cgroup")).then_some(())
        })?;
        ensure!(hooks(lab)? == ("off".to_owned(), 0), "{:?}", hooks(lab)?);
        drop(container);

        let place = lab.directory().join("cgroup of the host");
        fs::create_dir(&place)?;
        let mounts = format!("mount --bind \"$root\" '{}' && {OWN_PART}", place.display());
        let _container = Container::start(lab, "with.log", &mounts)?;
        served("node-a")?;
        ask_every_way(lab, "node-a", loopback(Family::V6, NODE_PORT + 1), |answer| {
            answer.backend == "near"
        })
    })
}

/// behaviour.md 4.3, 5.6: of two agents on one machine each serves its own network.
#[test]
fn each_agent_serves_its_own_network() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service: Service = expose(lab, "web", 1, &["near", "far"])?.internal_policy(Policy::Local);
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for (node, backend) in [("node-a", "near"), ("node-b", "far")] {
            for family in Family::ALL {
                let to = service.frontend(family, PORT);
                ask_every_way(lab, node, to, |answer| answer.backend == backend)?;
            }
        }
        let of: Value = lab.listing("node-b", "status", &[])?;
        ensure!(
            of["sockets"]["host_addresses"][0] == lab.node("node-b").addresses().v4.to_string(),
            "{of}"
        );
        Ok(())
    })
}
