//! The commands that people type: they must show what is, and work on any machine.

use std::process::{Command, Output};

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Builder, Family, Lab, Protocol, Standing},
    require_root,
};

use super::{PORT, serve};

fn cluster() -> Builder {
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
}

/// `cargo xtask demo` and `lab` hand over to this program.
fn proxy_lab(arguments: &[&str]) -> Result<(Output, String)> {
    let output = Command::new(env!("CARGO_BIN_EXE_proxy-lab")).args(arguments).output()?;
    let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    Ok((output, text))
}

#[test]
fn the_demo_shows_the_main_job() -> Result<()> {
    require_root!();
    let (output, text) = proxy_lab(&["demo"])?;
    ensure!(output.status.success(), "{}: {text}", output.status);
    for words in [
        "web-3 gone",
        "agent on node-a killed",
        "none lost",
        "10.96.0.53:53",
        "[fd00:10:96::80]:80",
    ] {
        ensure!(text.contains(words), "no {words:?} in {text}");
    }
    Ok(())
}

#[test]
fn a_lab_stands_until_it_is_taken_down() -> Result<()> {
    require_root!();
    let name = format!("t{}", std::process::id());
    let (output, text) = proxy_lab(&["lab", "up", "--name", &name])?;
    let standing = Standing::find(&name);
    let processes = standing.as_ref().map(|lab| lab.processes().len());
    let again = proxy_lab(&["lab", "up", "--name", &name]);
    let (down, down_text) = proxy_lab(&["lab", "down", "--name", &name])?;
    ensure!(output.status.success() && text.contains("nsenter"), "{text}");
    ensure!(processes == Some(3), "two agents and the servers: {processes:?}");
    ensure!(!again?.0.status.success(), "a second lab took the place of the first");
    ensure!(down.status.success(), "{down_text}");
    ensure!(Standing::find(&name).is_none());
    Ok(())
}

/// What `trace` says of a packet is what becomes of it.
#[test]
fn trace_agrees_with_what_happens() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["near", "far"])?;
        let _agents = lab.start_agents()?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let frontend = service.frontend(family, PORT);
                let answer = lab.request("client", protocol, frontend)?;
                let trace = lab.trace("client", protocol, frontend)?;
                let trace: serde_json::Value = serde_json::from_str(&trace)?;
                let backend = lab
                    .pod(&answer.backend)
                    .addresses()
                    .with_port(family, super::POD_PORT)
                    .to_string();
                let candidates = trace["candidates"].as_array().map(Vec::as_slice).unwrap_or_default();
                ensure!(trace["verdict"] == "forward" && trace["masquerade"] == false, "{trace}");
                ensure!(
                    candidates.len() == 2 && candidates.iter().any(|candidate| *candidate == backend),
                    "{trace}"
                );
            }
        }
        Ok(())
    })
}

/// A scenario that fails says what a reader needs to find out why.
#[test]
fn the_report_explains_a_failed_request() -> Result<()> {
    require_root!();
    cluster().run(|lab| {
        let service = serve(lab, "web", 1, &["near"])?;
        let _agents = lab.start_agents()?;
        lab.stop_serving("near");
        let frontend = service.frontend(Family::V4, PORT);
        let refused = lab.tcp_request("client", frontend);
        ensure!(
            refused.as_ref().is_err_and(proxy_tests::lab::RequestError::is_refused),
            "{refused:?}"
        );
        let report = lab.report();
        for words in [
            "proxy-agent trace: TCP from client to 10.96.0.1:80",
            "\"backend\": \"10.244.1.11:8080\"",
            "\"client\": \"10.244.1.10:",
            "===== node node-b",
            "veth-client",
        ] {
            ensure!(report.contains(words), "no {words:?} in {report}");
        }
        Ok(())
    })
}
