//! The cluster of tests/kind/cluster.yaml, from its creation to its end.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{PATIENCE, tools::Tools};
use crate::{process, workspace};

/// Its name, which is part of its nodes' names.
const NAME: &str = "proxy";
/// Where the workload is.
pub(super) const NAMESPACE: &str = "proxy-test";

/// A cluster; removed when dropped, unless it is to be kept.
pub(super) struct Cluster {
    /// What it takes
    pub(super) tools: Tools,
    kubeconfig: PathBuf,
    is_kept: bool,
}

impl Cluster {
    /// Makes it.
    ///
    /// # Errors
    /// There is one of its name already, or kind says why.
    pub(super) fn create(tools: Tools, is_kept: bool) -> Result<Self> {
        let clusters = process::output(tools.kind().args(["get", "clusters"]))?;
        ensure!(
            clusters.lines().all(|name| name != NAME),
            "there is a cluster `{NAME}` already: `kind delete cluster --name {NAME}` removes it"
        );
        let directory = workspace::target().join("kind");
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        // From here on it is to be removed, however far it came.
        let cluster = Self {
            tools,
            kubeconfig: directory.join("kubeconfig"),
            is_kept,
        };
        step(
            cluster
                .tools
                .kind()
                .args(["create", "cluster", "--config"])
                .arg(workspace::root().join("tests/kind/cluster.yaml"))
                .arg("--kubeconfig")
                .arg(&cluster.kubeconfig),
        )?;
        Ok(cluster)
    }

    /// Brings the image to the nodes.
    pub(super) fn load(&self, archive: &Path) -> Result<()> {
        step(
            self.tools
                .kind()
                .args(["load", "image-archive", "--name", NAME])
                .arg(archive),
        )
    }

    /// Deploys the proxy as docs/deploy.md says, and waits until it serves: names are found only by Services.
    pub(super) fn deploy(&self) -> Result<()> {
        let overlay = workspace::root().join("manifests/kind");
        step(self.kubectl().args(["apply", "--kustomize"]).arg(overlay))?;
        self.wait_for_rollout("kube-system", "daemonset/proxy-agent")?;
        step(
            self.kubectl()
                .args(["wait", "--for=condition=Ready", "nodes", "--all", &timeout()]),
        )?;
        self.wait_for_rollout("kube-system", "deployment/coredns")
    }

    /// Starts who serves and who asks.
    pub(super) fn start_workload(&self) -> Result<()> {
        step(self.kubectl().args(["create", "namespace", NAMESPACE]))?;
        // Pods take it for granted, but those without a Deployment are made before it is.
        let account = [
            "wait",
            "--for=create",
            "serviceaccount/default",
            "--namespace",
            NAMESPACE,
        ];
        step(self.kubectl().args(account).arg(timeout()))?;
        let workload = workspace::root().join("tests/kind/workload");
        step(
            self.kubectl()
                .args(["apply", "--namespace", NAMESPACE, "--filename"])
                .arg(workload),
        )?;
        self.wait_for_rollout(NAMESPACE, "deployment/web")?;
        let pods = [
            "wait",
            "--for=condition=Ready",
            "pods",
            "--all",
            "--namespace",
            NAMESPACE,
        ];
        step(self.kubectl().args(pods).arg(timeout()))
    }

    /// Waits until all pods of a workload are of its last template, and ready.
    pub(super) fn wait_for_rollout(&self, namespace: &str, workload: &str) -> Result<()> {
        let arguments = ["rollout", "status", workload, "--namespace", namespace];
        step(self.kubectl().args(arguments).arg(timeout()))
    }

    /// kubectl for this cluster and no other.
    pub(super) fn kubectl(&self) -> Command {
        let mut command = self.tools.kubectl();
        command.arg("--kubeconfig").arg(&self.kubeconfig);
        command
    }

    /// A field of an object, by kubectl's JSONPath.
    pub(super) fn field(&self, namespace: &str, object: &str, path: &str) -> Result<String> {
        let path = format!("jsonpath={path}");
        let arguments = ["get", object, "--namespace", namespace, "--output", &path];
        process::output(self.kubectl().args(arguments))
    }

    /// Where its kubeconfig is.
    pub(super) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// kind's own collection: what the nodes, the kubelets and all containers logged.
    pub(super) fn export_logs(&self, directory: &Path) -> Result<()> {
        step(
            self.tools
                .kind()
                .args(["export", "logs", "--name", NAME])
                .arg(directory),
        )
    }
}

/// Runs a command, and says which.
fn step(command: &mut Command) -> Result<()> {
    process::step(&process::typed(command));
    process::run(command)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_kept {
            eprintln!("the cluster stays: export KUBECONFIG={}", self.kubeconfig.display());
        } else if let Err(error) = step(self.tools.kind().args(["delete", "cluster", "--name", NAME])) {
            eprintln!("{error:#}");
        }
    }
}

fn timeout() -> String {
    format!("--timeout={}s", PATIENCE.as_secs())
}
