//! Services and EndpointSlices at the API server become answers in a pod.

use anyhow::{Result, ensure};
use proxy_tests::{lab::Connection, require_root};
use serde_json::json;

use crate::cluster::{cluster, expect_answers, frontends, web};

/// behaviour.md 8.13: in both families.
#[test]
fn services_of_the_api_server_are_served_and_followed() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let one = web(lab, &["web-1"]);
        cluster.apply(&one)?;
        let _agent = cluster.start_agent()?;
        cluster.wait_for_plan()?;
        expect_answers(lab, &one, &["web-1"])?;

        // Another endpoint takes over: connections stay, new ones move.
        let (_, tcp) = frontends(&one)[0];
        let mut connection = lab.namespace("client").run(|| Connection::open(tcp))?;
        ensure!(connection.ask()?.backend == "web-1");
        let other = web(lab, &["web-2"]);
        cluster.apply(&other)?;
        cluster.wait_for_plan()?;
        for _ in 0..5 {
            expect_answers(lab, &other, &["web-2"])?;
        }
        ensure!(connection.ask()?.backend == "web-1", "the connection moved");

        cluster.delete(&other)?;
        cluster.wait_for_plan()?;
        ensure!(lab.tcp_request("client", tcp).is_err(), "a deleted Service answers");

        // Deletion is no end: the same Service may come back.
        cluster.apply(&one)?;
        cluster.wait_for_plan()?;
        expect_answers(lab, &one, &["web-1"])
    })
}

/// behaviour.md 1.1
#[test]
fn a_service_given_to_another_proxy_is_gone_until_it_is_given_back() -> Result<()> {
    require_root!();
    cluster(|cluster| {
        let lab = cluster.lab;
        let web = web(lab, &["web-1", "web-2"]);
        cluster.apply(&web)?;
        let _agent = cluster.start_agent()?;
        let mut labelled = web.service();
        labelled.metadata.labels =
            Some([("service.kubernetes.io/service-proxy-name".to_owned(), String::new())].into());
        cluster.server.apply(&labelled);
        let mut manifest = serde_json::to_value(&labelled)?;
        manifest["metadata"]["labels"] = json!(labelled.metadata.labels);
        lab.write_manifest("default-web.yaml", &manifest.to_string())?;
        cluster.wait_for_plan()?;
        ensure!(
            cluster.snapshot()?.iter().all(|entry| !entry.starts_with("services_")),
            "it is still served"
        );
        cluster.apply(&web)?;
        cluster.wait_for_plan()?;
        expect_answers(lab, &web, &["web-1", "web-2"])
    })
}
