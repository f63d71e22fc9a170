//! Nothing is written before Services and EndpointSlices have both been listed (behaviour.md 9.1).

use anyhow::{Result, ensure};
use proxy_tests::{
    api_server::{Resource, Verb},
    lab::{Agent, Family},
    require_root,
};

use crate::{
    cluster::{Cluster, cluster, expect_answers, load, web},
    log::Log,
};

/// Starts an agent that gets Services but no EndpointSlices, and waits until it has taken in the Services.
fn start_with_half_the_input(cluster: &Cluster<'_>) -> Result<(Agent, Log)> {
    cluster.server.forbid(Resource::EndpointSlices);
    let log = cluster.log();
    let asked = cluster.server.requests().len();
    let agent = cluster.spawn_agent()?;
    cluster
        .server
        .wait_for_requests("the Services are listed, and watched from there", |requests| {
            let new = &requests[asked..];
            new.iter()
                .any(|request| request.resource == Resource::Services && matches!(request.verb, Verb::Watch { .. }))
        });
    log.wait_for(&[
        "watch endpointslices: forbidden",
        "list and watch on endpointslices",
        "manifests/base/rbac.yaml",
    ])?;
    // What the agent takes in, it takes in in order: this comes after the Services.
    cluster.server.fail(418);
    log.wait_for(&["watch endpointslices:", "answers 418"])?;
    Ok((agent, log))
}

#[test]
fn nothing_is_written_before_both_lists_are_complete() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let web = web(cluster.lab, &["web-1", "web-2"]);
        cluster.apply(&web)?;
        let (_agent, log) = start_with_half_the_input(cluster)?;
        ensure!(
            cluster.snapshot()?.is_empty(),
            "written from half the input: {:#?}",
            cluster.snapshot()?
        );
        ensure!(log.count(&["ready"]) == 0, "ready with half the input");
        cluster.server.allow_all();
        log.wait_for(&["no longer: watch endpointslices"])?;
        cluster.wait_for_plan()?;
        log.wait_for(&["ready"])?;
        ensure!(
            log.count(&["WARN", "watch endpointslices: forbidden"]) == 1,
            "it repeats itself"
        );
        expect_answers(cluster.lab, &web, &["web-1", "web-2"])
    })
}

#[test]
fn what_an_earlier_agent_wrote_stays_until_both_lists_are_complete() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let before = web(cluster.lab, &["web-1"]);
        cluster.apply(&before)?;
        let earlier = cluster.start_agent()?;
        cluster.wait_for_plan()?;
        let written = cluster.snapshot()?;
        let load = load(cluster.lab, &before);
        load.wait_for(50)?;
        earlier.kill()?;
        // Changed while no agent runs.
        let after = web(cluster.lab, &["web-2"]);
        cluster.apply(&after)?;
        let (_agent, _log) = start_with_half_the_input(cluster)?;
        ensure!(
            cluster.snapshot()? == written,
            "changed: {:#?}\nfrom {written:#?}",
            cluster.snapshot()?
        );
        load.wait_for(200)?;
        cluster.server.allow_all();
        cluster.wait_for_plan()?;
        load.wait_for(50)?;
        load.stop().expect_no_loss()?;
        // TCP only: a UDP port that the load has used may lead to the endpoint it led to then.
        for family in Family::ALL {
            let answer = cluster.lab.tcp_request("client", after.frontend(family, 80))?;
            ensure!(answer.backend == "web-2", "{answer:?}");
        }
        Ok(())
    })
}
