//! Endpoints change behind frontends that are used from outside: conditions, policies, hints, affinity.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{
        Builder, Family, FrontendKind, Lab, Load, LoadReport, PATIENCE, Policy, Protocol, Service, State, UdpClient,
        wait_until,
    },
    require_root,
};

use super::{
    POD_PORT, PORT,
    outside::{expose, frontends, start_agents},
};

/// Two pods that are to be replaced, and two that will, one of each on either node.
fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "old-1", "new-1"])
        .node("node-b", &["old-2", "new-2"])
        .outside()
}

/// The next step of a rollout, once both nodes have taken it; then some more requests, of which none may fail.
fn step(lab: &Lab, load: &Load, service: &Service) -> Result<LoadReport> {
    lab.apply(service)?;
    lab.settle_everywhere()?;
    // Requests under way while the step was taken may have fallen on either side of it.
    load.wait_for(24)?;
    load.take().expect_no_loss()?;
    load.wait_for(120)?;
    let report = load.take();
    report.expect_no_loss()?;
    Ok(report)
}

/// Every pod is replaced by a new one that is ready before the old one begins to end: no connection fails meanwhile. A pod that
/// is about to end gets no new connection while another is ready, and still serves where it is the only one left
/// (behaviour.md 2.6, 2.7).
fn rolling_update(policy: Policy) -> Result<()> {
    cluster().run(|lab| {
        for pod in ["new-1", "new-2"] {
            lab.serve(pod, POD_PORT)?;
        }
        let old = expose(lab, "web", 1, &["old-1", "old-2"])?.external_policy(policy);
        lab.apply(&old)?;
        let _agents = start_agents(lab)?;
        let mut targets = frontends(lab, &old);
        targets.retain(|(protocol, _)| *protocol == Protocol::Tcp);
        let load = Load::start(lab.namespace("outside"), 2, &targets);
        let member = |service: Service, name| {
            let pod = lab.pod(name);
            service.member(name, pod.node(), pod.addresses())
        };
        step(lab, &load, &old)?;

        let ending = old
            .state("old-1", State::Terminating)
            .state("old-2", State::Terminating);
        let report = step(lab, &load, &ending).context("only pods that are about to end")?;
        let expected: &[&str] = if policy == Policy::Local {
            &["old-1"]
        } else {
            &["old-1", "old-2"]
        };
        ensure!(report.answered.keys().eq(expected), "{:?}", report.answered.keys());

        let both = member(member(ending, "new-1"), "new-2");
        let report = step(lab, &load, &both).context("new pods beside old ones")?;
        let expected: &[&str] = if policy == Policy::Local {
            &["new-1"]
        } else {
            &["new-1", "new-2"]
        };
        ensure!(report.answered.keys().eq(expected), "{:?}", report.answered.keys());

        let new = both.without("old-1").without("old-2");
        lab.apply(&new)?;
        lab.settle_everywhere()?;
        lab.stop_serving("old-1");
        lab.stop_serving("old-2");
        step(lab, &load, &new).context("new pods alone")?;
        load.stop().expect_no_loss()
    })
}

#[test]
pub(super) fn a_rolling_update_loses_no_request_under_policy_cluster() -> Result<()> {
    require_root!();
    rolling_update(Policy::Cluster)
}

#[test]
pub(super) fn a_rolling_update_loses_no_request_under_policy_local() -> Result<()> {
    require_root!();
    rolling_update(Policy::Local)
}

/// An endpoint that is no longer ready loses its clients, and does not get them back when it is again.
#[test]
pub(super) fn rule_6_4_affinity_ends_with_the_endpoint() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["old-1", "old-2"])?.affinity(Duration::from_hours(1));
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for family in Family::ALL {
            let to = service.frontend_of(FrontendKind::NodePort, family, "tcp", lab.node("node-a"));
            let first = lab.tcp_request("outside", to)?.backend;
            lab.apply(&service.clone().state(&first, State::Unready))?;
            lab.settle_everywhere()?;
            let second = lab.tcp_request("outside", to)?.backend;
            ensure!(second != first, "{family}: {first} is not ready");
            lab.apply(&service)?;
            lab.settle_everywhere()?;
            for _ in 0..8 {
                let now = lab.tcp_request("outside", to)?.backend;
                ensure!(now == second, "{family}: back from {second} to {now}");
            }
        }
        Ok(())
    })
}

/// Clients use the endpoints that are hinted for the zone of the node they come in by, whatever the frontend.
#[test]
pub(super) fn rule_2_5_zone_hints_choose_among_endpoints() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["old-1", "old-2"])?;
        let service = service.hints("old-1", &["west"], &[]).hints("old-2", &["east"], &[]);
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        for (zone, backend) in [("west", "old-1"), ("east", "old-2")] {
            lab.apply_node("node-a", Some(zone))?;
            lab.settle("node-a")?;
            for (protocol, to) in frontends(lab, &service).repeat(2) {
                let answer = lab.request("outside", protocol, to)?;
                ensure!(answer.backend == backend, "{zone}, {protocol} {to}: {answer:?}");
            }
            let answer = lab.request("client", Protocol::Tcp, service.frontend(Family::V6, PORT))?;
            ensure!(answer.backend == backend, "{zone}: {answer:?}");
        }
        Ok(())
    })
}

/// A client that goes on from the same port must not be sent to a pod that serves no more (behaviour.md 7.3).
#[test]
fn rule_7_3_datagrams_leave_an_endpoint_that_serves_no_more() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = expose(lab, "web", 1, &["old-1", "old-2"])?;
        lab.apply(&service)?;
        let _agents = start_agents(lab)?;
        let mut all = frontends(lab, &service);
        all.retain(|(protocol, _)| *protocol == Protocol::Udp);
        for (_, to) in all {
            let mut socket = lab.namespace("outside").run(|| UdpClient::bind(0, to))?;
            let first = socket.ask(to)?.backend;
            ensure!(socket.ask(to)?.backend == first, "{to}: not the same flow");
            lab.apply(&service.clone().state(&first, State::Terminating))?;
            lab.settle_everywhere()?;
            // What still serves keeps its flows (7.4).
            ensure!(socket.ask(to)?.backend == first, "{to}: {first} still serves");
            lab.apply(&service.clone().without(&first))?;
            lab.settle_everywhere()?;
            // The flows are gone through after the frontends are written (7.8).
            wait_until(&format!("{to} leaves {first}"), PATIENCE, || {
                let then = socket.ask(to).map(|answer| answer.backend);
                then.map_or_else(|error| Some(Err(error)), |then| (then != first).then_some(Ok(())))
            })??;
            lab.apply(&service)?;
            lab.settle_everywhere()?;
        }
        Ok(())
    })
}
