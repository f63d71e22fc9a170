//! Bad manifests: each is named by object, field and reason, and the rest goes on being served.

use std::fs;

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Family, Lab, Service, address},
    require_root,
};
use serde_json::Value;

use crate::{
    cluster::{NODE, expect_answers, frontends, lab, load, web},
    log::Log,
    tables,
};

#[test]
fn each_mistake_is_named_and_the_rest_is_served() -> Result<()> {
    require_root!();
    lab(|lab| {
        let web = web(lab, &["web-1", "web-2"]);
        lab.apply(&web)?;
        let broken = [
            (
                "invalid.yaml",
                "apiVersion: v1\nkind: [\n",
                &["invalid.yaml document 1: "][..],
            ),
            (
                "unknown.yaml",
                "apiVersion: v1\nkind: Service\nmetadata: {name: unknown}\n\
                 spec: {clusterIp: 10.96.0.90, ports: [{port: 80}]}\n",
                &["unknown.yaml document 1 (Service unknown): spec.clusterIp: unknown field; did you mean"],
            ),
            (
                "address.yaml",
                "apiVersion: v1\nkind: Service\nmetadata: {name: address}\n\
                 spec: {clusterIP: 10.96.0.300, clusterIPs: [10.96.0.300], ports: [{port: 80}]}\n",
                &["Service default/address: spec.clusterIPs[0]: ", "10.96.0.300"],
            ),
            (
                "slice.yaml",
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {name: slice, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\n\
                 endpoints: [{addresses: [10.244.1.999]}]\nports: [{name: http, port: 80}]\n",
                &[
                    "EndpointSlice default/slice: endpoints[0].addresses[0]: ",
                    "10.244.1.999",
                ],
            ),
        ];
        for (file, text, _) in &broken {
            lab.write_manifest(file, text)?;
        }
        fs::create_dir(lab.manifests().join("folder.yaml"))?;
        let log = Log::from_now(lab, NODE);
        let _agent = lab.start_agent(NODE)?;
        for (_, _, parts) in &broken {
            log.wait_for(&[&["WARN"], *parts].concat())?;
        }
        log.wait_for(&["WARN", "folder.yaml: can't be read: it is a directory"])?;
        tables::wait_for_plan(lab, NODE)?;
        expect_answers(lab, &web, &["web-1", "web-2"])?;

        // The same while the agent runs, under load; what is repaired is said to be.
        let load = load(lab, &web);
        for (file, _, parts) in &broken {
            fs::remove_file(lab.manifests().join(file))?;
            log.wait_for(&[&["no longer: "], *parts].concat())?;
        }
        let log = Log::from_now(lab, NODE);
        fs::create_dir(lab.manifests().join("other.yaml"))?;
        log.wait_for(&["WARN", "other.yaml: can't be read: it is a directory"])?;
        for (file, text, parts) in &broken {
            lab.write_manifest(file, text)?;
            log.wait_for(&[&["WARN"], *parts].concat())?;
            ensure!(log.count(&[&["WARN"], *parts].concat()) == 1, "said twice: {parts:?}");
        }
        tables::wait_for_plan(lab, NODE)?;
        load.wait_for(50)?;
        load.stop().expect_no_loss()
    })
}

/// A file with a Service of this age and its EndpointSlices.
fn aged(lab: &Lab, service: &Service, created: &str) -> Result<String> {
    let mut object = serde_json::to_value(service.service())?;
    object["metadata"]["creationTimestamp"] = Value::from(created);
    let slices = Family::ALL.map(|family| service.slice(family));
    let file = format!("{}.json", service.key().1);
    lab.write_manifest(
        &file,
        &format!(
            "{object}\n{}\n{}",
            serde_json::to_string(&slices[0])?,
            serde_json::to_string(&slices[1])?
        ),
    )?;
    Ok(file)
}

#[test]
fn of_two_services_with_one_address_the_older_is_served() -> Result<()> {
    require_root!();
    lab(|lab| {
        let service = |name: &str, pod: &str| {
            Service::new("default", name, address::cluster(80))
                .port("http", proxy_tests::lab::Protocol::Tcp, 80, crate::cluster::PORT)
                .pods(&[lab.pod(pod)])
        };
        // Younger, but first by name and in the directory.
        let (older, younger) = (service("zebra", "web-1"), service("ant", "web-2"));
        let older_file = aged(lab, &older, "2026-01-01T00:00:00Z")?;
        aged(lab, &younger, "2026-02-01T00:00:00Z")?;
        let log = Log::from_now(lab, NODE);
        let _agent = lab.start_agent(NODE)?;
        log.wait_for(&[
            "WARN",
            "Service default/ant: spec.clusterIPs",
            "10.96.0.80:80/TCP belongs to Service default/zebra, which is older",
        ])?;
        tables::wait_for_plan(lab, NODE)?;
        let expect = |pod: &str| -> Result<()> {
            for family in Family::ALL {
                let answer = lab.tcp_request("client", older.frontend(family, 80))?;
                ensure!(answer.backend == pod, "{answer:?}");
            }
            Ok(())
        };
        expect("web-1")?;
        fs::remove_file(lab.manifests().join(older_file))?;
        log.wait_for(&["no longer: Service default/ant: spec.clusterIPs"])?;
        tables::wait_for_plan(lab, NODE)?;
        expect("web-2")
    })
}

/// behaviour.md 9.1: what a broken file held is not known after a restart, so it is not taken for gone.
#[test]
fn a_file_that_is_broken_at_a_restart_takes_nothing_away() -> Result<()> {
    require_root!();
    lab(|lab| {
        let before = web(lab, &["web-1"]);
        lab.apply(&before)?;
        let first = lab.start_agent(NODE)?;
        let written = tables::snapshot(lab, NODE)?;
        let load = load(lab, &before);
        load.wait_for(50)?;
        first.kill()?;
        lab.write_manifest("default-web.yaml", "apiVersion: v1\nkind: [\n")?;
        let log = Log::from_now(lab, NODE);
        let _second = lab.start_agent(NODE)?;
        log.wait_for(&["WARN", "not all Services could be read", "stays"])?;
        log.wait_for(&["ready"])?;
        ensure!(tables::snapshot(lab, NODE)? == written, "the tables changed");
        load.wait_for(50)?;
        lab.apply(&web(lab, &["web-2"]))?;
        tables::wait_for_plan(lab, NODE)?;
        load.wait_for(50)?;
        load.stop().expect_no_loss()?;
        // From now on, what the files say counts again.
        lab.delete(&before)?;
        tables::wait_for_plan(lab, NODE)?;
        let (protocol, frontend) = frontends(&before)[0];
        ensure!(
            lab.request("client", protocol, frontend).is_err(),
            "a Service without a file answers"
        );
        Ok(())
    })
}
