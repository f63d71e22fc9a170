//! The tools that a cluster takes, and whether they work here.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::workspace;

/// What runs containers, kind, and kubectl.
#[derive(Debug)]
pub(super) struct Tools {
    engine: PathBuf,
    is_podman: bool,
    kind: PathBuf,
    kubectl: PathBuf,
}

impl Tools {
    /// Those on the PATH.
    ///
    /// # Errors
    /// Why there can be no cluster here.
    pub(super) fn find() -> Result<Self, String> {
        let (engine, is_podman) = engine()?;
        let tool = |name: &str, from: &str| {
            workspace::find_program(name).ok_or_else(|| format!("{name} is not installed: see {from}"))
        };
        Ok(Self {
            engine,
            is_podman,
            kind: tool("kind", "https://kind.sigs.k8s.io/docs/user/quick-start/#installation")?,
            kubectl: tool("kubectl", "https://kubernetes.io/docs/tasks/tools/")?,
        })
    }

    /// A command in a node, which is a container.
    pub(super) fn in_node(&self, node: &str) -> Command {
        let mut command = limited(&self.engine);
        command.args(["exec", node]);
        command
    }

    /// kind.
    pub(super) fn kind(&self) -> Command {
        let mut command = Command::new(&self.kind);
        if self.is_podman {
            command.env("KIND_EXPERIMENTAL_PROVIDER", "podman");
        }
        command
    }

    /// kubectl.
    pub(super) fn kubectl(&self) -> Command {
        limited(&self.kubectl)
    }
}

/// A command that ends, whatever happens (coreutils): after those that have a limit of their own, which say more.
fn limited(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    let limit = super::PATIENCE + Duration::from_secs(30);
    command.arg(limit.as_secs().to_string()).arg(program);
    command
}

/// The engine that works, and whether it is podman.
fn engine() -> Result<(PathBuf, bool), String> {
    let mut reasons = Vec::new();
    for name in ["docker", "podman"] {
        let Some(engine) = workspace::find_program(name) else {
            reasons.push(format!("{name} is not installed"));
            continue;
        };
        // `info` fails where the client has no server.
        let mut info = limited(&engine);
        info.arg("info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match info.status() {
            Ok(status) if status.success() => return Ok((engine, name == "podman")),
            Ok(status) => reasons.push(format!("`{name} info` fails ({status})")),
            Err(error) => reasons.push(format!("`{name} info`: {error}")),
        }
    }
    Err(format!("no container engine: {}", reasons.join(", ")))
}
