//! Agents come and go; the node serves on.

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{PATIENCE, wait_until},
    require_root,
};

use crate::cluster::{NODE, cluster, load, web};

#[test]
fn an_agent_that_ends_or_is_killed_costs_no_request() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let one = web(lab, &["web-1"]);
        cluster.apply(&one)?;
        let first = cluster.start_agent()?;
        let load = load(lab, &one);
        load.wait_for(50)?;

        let log = cluster.log();
        first.terminate()?;
        log.wait_for(&["what is programmed goes on forwarding"])?;
        load.wait_for(50)?;
        let both = web(lab, &["web-1", "web-2"]);
        cluster.apply(&both)?;
        let second = cluster.start_agent()?;
        cluster.wait_for_plan()?;

        load.wait_for(50)?;
        second.kill()?;
        load.wait_for(50)?;
        cluster.apply(&web(lab, &["web-2"]))?;
        let _third = cluster.start_agent()?;
        cluster.wait_for_plan()?;
        load.wait_for(50)?;
        let report = load.stop();
        report.expect_no_loss()?;
        ensure!(report.answered.len() == 2, "answers of {:?}", report.answered.keys());
        Ok(())
    })
}

/// Loading and verifying the programs takes a while; a wish to end that comes meanwhile is not lost, and no failure.
#[test]
fn an_agent_ends_in_peace_while_it_starts() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        cluster.start_agent()?.terminate()?;
        for _ in 0..3 {
            let agent = cluster.spawn_agent()?;
            wait_until("the agent has the pin directory", PATIENCE, || {
                let status = cluster.lab.listing(NODE, "status", &[]).ok()?;
                (status["agent"]["process"] == agent.pid()).then_some(())
            })?;
            agent.terminate()?;
        }
        Ok(())
    })
}

#[test]
fn a_second_agent_leaves_the_pin_directory_to_the_first() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let web = web(lab, &["web-1"]);
        cluster.apply(&web)?;
        let first = cluster.start_agent()?;
        let written = cluster.snapshot()?;
        let load = load(lab, &web);
        let log = cluster.log();
        let mut second = cluster.spawn_agent()?;
        let status = wait_until("the second agent ends", PATIENCE, || second.ended().transpose())??;
        ensure!(status.code() == Some(1), "it ended with {status}");
        log.wait_for(&[
            &format!("error: another agent (process {}) uses", first.pid()),
            &lab.pin_directory(first.node()).display().to_string(),
            "stop it or choose another --pin-dir",
        ])?;
        ensure!(cluster.snapshot()? == written, "the second agent changed the tables");
        load.wait_for(50)?;
        load.stop().expect_no_loss()
    })
}
