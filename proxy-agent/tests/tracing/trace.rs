//! Runs `proxy-agent trace`.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use serde::Deserialize;

/// What `trace` prints (design.md 7), but for the text for people.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Traced {
    pub(crate) verdict: String,
    pub(crate) service: Option<String>,
    pub(crate) candidates: Vec<SocketAddr>,
    pub(crate) backend: Option<SocketAddr>,
    pub(crate) masquerade: bool,
}

impl Traced {
    /// What is printed of a packet that is not forwarded.
    pub(crate) fn unforwarded(verdict: &str, service: Option<String>) -> Self {
        Self {
            verdict: verdict.to_owned(),
            service,
            candidates: Vec::new(),
            backend: None,
            masquerade: false,
        }
    }
}

/// Traces packets through what a configuration makes of the manifests.
pub(crate) struct Tracer {
    pub(crate) manifests: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) node_addresses: Vec<String>,
}

impl Tracer {
    /// What becomes of a packet.
    pub(crate) fn trace(&self, packet: &[String]) -> Traced {
        let output = self.command(packet).output().expect("the agent runs");
        assert!(
            output.status.success(),
            "{}: {}",
            self.typed(packet),
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The command line, without the directories' names.
    pub(crate) fn typed(&self, packet: &[String]) -> String {
        let config = std::fs::read_to_string(&self.config).expect("a file");
        format!("proxy-agent trace {}\n{config}", packet.join(" "))
    }

    fn command(&self, packet: &[String]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_proxy-agent"));
        command
            .args(["trace", "--node-name", "node-a", "-o", "json", "--manifests"])
            .arg(&self.manifests)
            .arg("--config")
            .arg(&self.config)
            .args(
                self.node_addresses
                    .iter()
                    .flat_map(|address| ["--node-address", address]),
            )
            .args(packet);
        command
    }
}
