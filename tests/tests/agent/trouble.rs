//! An API server in trouble: the agent says so, the node goes on forwarding, and all is made good afterwards.

use std::time::Duration;

use anyhow::{Result, ensure};
use proxy_tests::{
    api_server::{Gone, Resource},
    require_root,
};

use crate::cluster::{cluster, expect_answers, load, web};

#[test]
fn lost_watches_are_resumed_without_a_lost_request() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let mut pods = [["web-1"], ["web-2"]].into_iter().cycle();
        let mut next = || web(lab, &pods.next().expect("it never ends"));
        let first = next();
        cluster.apply(&first)?;
        let _agent = cluster.start_agent()?;
        let load = load(lab, &first);

        for gone in [Gone::Status, Gone::Event] {
            // The cluster is quiet between one trouble and the next: a list that is complete ends the pauses of the last.
            cluster.server.wait_for_watches(Resource::ALL.len());
            let log = cluster.log();
            cluster.server.fail(500);
            cluster.server.drop_watches();
            log.wait_for(&["WARN", "watch services: http://", "answers 500"])?;
            log.wait_for(&["WARN", "watch endpointslices: http://", "answers 500"])?;
            cluster.apply(&next())?;
            cluster.server.compact(gone);
            cluster.server.allow_all();
            cluster.wait_for_plan()?;
            log.wait_for(&["no longer: watch services"])?;
        }

        cluster.server.wait_for_watches(Resource::ALL.len());
        cluster.apply(&next())?;
        cluster.wait_for_plan()?;
        cluster.server.expire_watches();
        cluster.apply(&next())?;
        cluster.wait_for_plan()?;

        cluster.server.wait_for_watches(Resource::ALL.len());
        cluster.server.delay(Duration::from_millis(300));
        cluster.server.drop_watches();
        cluster.apply(&next())?;
        cluster.wait_for_plan()?;
        cluster.server.allow_all();

        load.wait_for(50)?;
        load.stop().expect_no_loss()
    })
}

#[test]
fn a_server_that_is_gone_or_forbids_is_named_and_takes_nothing_away() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let first = web(lab, &["web-1"]);
        cluster.apply(&first)?;
        // Not there yet when the agent starts.
        cluster.server.stop();
        let log = cluster.log();
        let _agent = cluster.spawn_agent()?;
        let address = cluster.server.address().to_string();
        for kind in ["services", "endpointslices", "nodes"] {
            log.wait_for(&[
                "WARN",
                &format!("watch {kind}: can't reach http://{address}"),
                "check the kubeconfig's server",
            ])?;
        }
        cluster.restart_server()?;
        log.wait_for(&["ready"])?;
        cluster.wait_for_plan()?;
        expect_answers(lab, &first, &["web-1"])?;

        // Away for a while.
        let load = load(lab, &first);
        load.wait_for(50)?;
        let log = cluster.log();
        cluster.server.stop();
        log.wait_for(&["WARN", "watch services: can't reach", "Connection refused"])?;
        let written = cluster.snapshot()?;
        load.wait_for(100)?;
        ensure!(
            cluster.snapshot()? == written,
            "an absent API server changed the tables"
        );
        let second = web(lab, &["web-2"]);
        cluster.apply(&second)?;
        cluster.restart_server()?;
        cluster.wait_for_plan()?;
        log.wait_for(&["no longer: watch services"])?;

        // Permissions taken away.
        let log = cluster.log();
        cluster.server.forbid(Resource::Services);
        cluster.server.drop_watches();
        log.wait_for(&[
            "WARN",
            "watch services: forbidden: give the ServiceAccount list and watch on services",
        ])?;
        load.wait_for(100)?;
        // The other kinds go on.
        let both = web(lab, &["web-1", "web-2"]);
        cluster.apply(&both)?;
        cluster.wait_for_plan()?;
        let api = proxy_tests::lab::Service::new("default", "api", proxy_tests::lab::address::cluster(81))
            .port("http", proxy_tests::lab::Protocol::Tcp, 80, crate::cluster::PORT)
            .pods(&[lab.pod("web-1")]);
        cluster.apply(&api)?;
        cluster.server.allow_all();
        cluster.wait_for_plan()?;
        ensure!(
            log.count(&["WARN", "watch services: forbidden"]) == 1,
            "it repeats itself"
        );
        load.stop().expect_no_loss()
    })
}
