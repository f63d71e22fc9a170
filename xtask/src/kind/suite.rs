//! Kubernetes' own end-to-end tests of Services.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::cluster::Cluster;
use crate::{process, workspace};

/// All of the suite but what takes a cloud, breaks nodes, or is about kube-proxy's own process.
const SKIP: &str = r"\[Disruptive\]|\[Feature:|\[Serial\]|\[Slow\]|kube-proxy";

/// Runs the suite.
pub(super) fn run(cluster: &Cluster, suite: &Path) -> Result<()> {
    let mut command = Command::new(suite);
    command
        .arg(r"--ginkgo.focus=\[sig-network\] Services")
        .arg(format!("--ginkgo.skip={SKIP}"))
        .args(["--ginkgo.timeout=2h", "--provider=skeleton", "--num-nodes=2"])
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig())
        .arg("--report-dir")
        .arg(workspace::target().join("kind/e2e"));
    process::step(&process::typed(&command));
    process::run(&mut command)
}
