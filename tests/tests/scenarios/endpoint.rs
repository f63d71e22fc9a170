//! Endpoints come and go while Services are used.

use anyhow::{Result, bail, ensure};
use proxy_tests::{
    lab::{Builder, Connection, Family, Lab, Load, Protocol, Service},
    require_root,
};

use super::{PORT, serve};

const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "web-1"])
        .node("node-b", &["web-2", "web-3"])
}

/// A connection that fell on a given pod.
fn connection_to(lab: &Lab, service: &Service, family: Family, pod: &str) -> Result<Connection> {
    lab.namespace("client").run(|| {
        for _ in 0..200 {
            let mut connection = Connection::open(service.frontend(family, PORT))?;
            if connection.ask()?.backend == pod {
                return Ok(connection);
            }
        }
        bail!("none of 200 connections reached {pod}")
    })
}

/// Requests over one protocol and both families.
fn load_on(lab: &Lab, service: &Service, protocol: Protocol) -> Load {
    let targets = Family::ALL.map(|family| (protocol, service.frontend(family, PORT)));
    Load::start(lab.namespace("client"), 1, &targets)
}

/// New connections move at once, established TCP stays to the end (behaviour.md 7.1).
#[test]
fn a_removed_endpoint_gets_no_new_connection_and_keeps_the_old_ones() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &PODS)?;
        let _agents = lab.start_agents()?;
        let mut open = Vec::new();
        for family in Family::ALL {
            for pod in ["web-1", "web-3"] {
                open.push((pod, connection_to(lab, &service, family, pod)?));
            }
        }
        let load = load_on(lab, &service, Protocol::Tcp);
        load.wait_for(200)?;

        let service = service.without("web-1").without("web-3");
        lab.apply(&service)?;
        lab.wait_for_service_everywhere(&service)?;
        // Those under way when the endpoints went may have fallen on them.
        load.wait_for(8)?;
        load.take().expect_no_loss()?;
        load.wait_for(500)?;
        let report = load.stop();
        report.expect_no_loss()?;
        ensure!(report.answered.keys().eq(["web-2"]), "{:?}", report.answered.keys());

        for (pod, connection) in &mut open {
            for _ in 0..20 {
                ensure!(connection.ask()?.backend == *pod);
            }
            connection.push(100_000)?;
        }
        Ok(())
    })
}

#[test]
fn an_added_endpoint_gets_its_share_and_no_request_is_lost() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let all = serve(lab, "web", 1, &PODS)?;
        let one = all.clone().without("web-2").without("web-3");
        lab.apply(&one)?;
        let _agents = lab.start_agents()?;
        let datagrams = load_on(lab, &all, Protocol::Udp);
        let load = load_on(lab, &all, Protocol::Tcp);
        for _ in 0..5 {
            for service in [&all, &one] {
                lab.apply(service)?;
                lab.wait_for_service_everywhere(service)?;
                load.wait_for(8)?;
                load.take().expect_no_loss()?;
                load.wait_for(200)?;
                let report = load.take();
                report.expect_no_loss()?;
                ensure!(
                    report.answered.keys().map(String::as_str).eq(service.members()),
                    "{:?}",
                    report.answered.keys()
                );
            }
        }
        load.stop().expect_no_loss()?;
        datagrams.stop().expect_no_loss()?;
        lab.namespace("client").expect_no_loss()
    })
}

#[test]
fn a_deleted_service_is_served_no_more_and_a_new_one_is() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let old = serve(lab, "old", 1, &["web-1"])?;
        let _agents = lab.start_agents()?;
        lab.tcp_request("client", old.frontend(Family::V4, PORT))?;
        lab.delete(&old)?;
        let new = serve(lab, "new", 2, &["web-2"])?;
        lab.wait_for_service_everywhere(&new)?;
        lab.wait_for_service_everywhere(&old.without("web-1"))?;
        lab.tcp_request("client", new.frontend(Family::V6, PORT))?;
        let gone = address_of_old();
        ensure!(lab.tcp_request("client", gone).is_err(), "{gone} is still served");
        Ok(())
    })
}

fn address_of_old() -> std::net::SocketAddr {
    proxy_tests::lab::address::cluster(1).with_port(Family::V4, PORT)
}
