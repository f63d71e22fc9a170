//! The lab itself: without a proxy its pods reach each other, and nothing of it stays.

use std::{fs, net::SocketAddr, process::Command};

use anyhow::{Result, ensure};
use proxy_tests::{
    lab::{Connection, Family, Lab, Load, Protocol, standing},
    require_root,
};

/// From `client` to `near` on its node and `far` on the other one, every protocol and family.
fn everything_is_reachable(lab: &Lab) -> Result<()> {
    for name in ["near", "far"] {
        lab.serve(name, 8080)?;
        for family in Family::ALL {
            for protocol in Protocol::ALL {
                let to = lab.pod(name).addresses().with_port(family, 8080);
                let answer = lab.request("client", protocol, to)?;
                ensure!(answer.backend == name, "{protocol} {family}: {answer:?}");
                ensure!(
                    answer.peer.ip() == lab.pod("client").addresses().of(family),
                    "{protocol} {family}: {answer:?}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn pods_reach_each_other() -> Result<()> {
    require_root!();
    Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
        .run(|lab| everything_is_reachable(lab))
}

#[test]
fn pods_reach_each_other_through_strict_nodes() -> Result<()> {
    require_root!();
    let strict = Lab::builder()
        .node("node-a", &["client", "near"])
        .node("node-b", &["far"])
        .outside()
        .strict();
    strict.run(|lab| {
        everything_is_reachable(lab)?;
        lab.serve("outside", 80)?;
        for family in Family::ALL {
            let answer = lab.tcp_request("client", proxy_tests::lab::address::OUTSIDE.with_port(family, 80))?;
            ensure!(
                answer.peer.ip() == lab.node("node-a").addresses().of(family),
                "not masqueraded: {answer:?}"
            );
        }
        // Nobody opened this way: the forward chain must not let it through.
        let refused = lab.namespace("outside").run(|| {
            let to = lab.pod("near").addresses().with_port(Family::V4, 8080);
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300))
        });
        ensure!(refused.is_err(), "a strict node let a connection from outside through");
        Ok(())
    })
}

#[test]
fn bulk_transfers_are_checked() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near"]).run(|lab| {
        lab.serve("near", 8080)?;
        lab.set_offloads(false)?;
        let to = lab.pod("near").addresses().with_port(Family::V6, 8080);
        lab.namespace("client").run(|| {
            let mut connection = Connection::open(to)?;
            connection.pull(100_000)?;
            connection.push(100_000)?;
            Ok(())
        })
    })
}

#[test]
fn a_pod_without_its_device_is_lost_until_it_is_plugged_again() -> Result<()> {
    require_root!();
    Lab::builder().node("node-a", &["client", "near"]).run(|lab| {
        lab.serve("near", 8080)?;
        let to: SocketAddr = lab.pod("near").addresses().with_port(Family::V4, 8080);
        let load = Load::start(lab.namespace("client"), 1, &[(Protocol::Tcp, to)]);
        load.wait_for(10)?;
        load.stop().expect_no_loss()?;
        lab.unplug("near")?;
        ensure!(lab.tcp_request("client", to).is_err());
        lab.plug("near")?;
        lab.tcp_request("client", to)?;
        Ok(())
    })
}

/// Everything on the machine that carries a lab's prefix.
fn traces(prefix: &str) -> Vec<String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path().display().to_string())
            .collect::<Vec<_>>()
    };
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found = names("/run");
    found.extend(names("/run/netns"));
    found.extend(mounts.lines().map(str::to_owned));
    found.retain(|name| name.contains(prefix));
    found
}

#[test]
fn nothing_stays_after_a_panic() -> Result<()> {
    require_root!();
    let mut prefix = String::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let lab = Lab::builder().node("node-a", &["client"]).build().expect("a lab");
        prefix = lab
            .directory()
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        lab.serve("client", 8080).expect("a server");
        assert!(!traces(&prefix).is_empty());
        panic!("as a failing test does");
    }));
    ensure!(panicked.is_err());
    ensure!(traces(&prefix).is_empty(), "left behind: {:?}", traces(&prefix));
    Ok(())
}

/// Set in the process that is to be killed: the file it tells its lab's directory in.
const ROLE: &str = "PROXY_LAB_TEST_VICTIM";

/// Built by a process of its own (this very test binary), which is killed before it can clean up.
#[test]
fn the_next_lab_removes_what_a_killed_process_left() -> Result<()> {
    require_root!();
    if std::env::var_os(ROLE).is_some() {
        let lab = Lab::builder().node("node-a", &["client"]).build()?;
        fs::write(std::env::var(ROLE)?, lab.directory().display().to_string())?;
        // The parent kills this process; the deadline is for the case that the parent was killed first.
        std::thread::sleep(std::time::Duration::from_mins(1));
        return Ok(());
    }
    let note = std::env::temp_dir().join(format!("lab-victim-{}", std::process::id()));
    let test = "the_next_lab_removes_what_a_killed_process_left";
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", test])
        .env(ROLE, &note)
        .spawn()?;
    let directory = proxy_tests::lab::wait_until(
        "the other process has built its lab",
        proxy_tests::lab::PATIENCE,
        || fs::read_to_string(&note).ok().filter(|text| !text.is_empty()),
    );
    victim.kill()?;
    victim.wait()?;
    let directory = directory?;
    fs::remove_file(&note)?;
    ensure!(
        standing()
            .iter()
            .any(|lab| lab.directory().display().to_string() == directory)
    );
    drop(Lab::builder().node("node-a", &[]).build()?);
    let prefix = directory.trim_start_matches("/run/");
    ensure!(traces(prefix).is_empty(), "left behind: {:?}", traces(prefix));
    Ok(())
}
