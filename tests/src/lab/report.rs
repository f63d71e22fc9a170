//! What a lab can tell about a scenario that failed.

use std::{fmt::Write as _, fs, net::SocketAddr};

use anyhow::Result;

use super::{Family, Lab, Protocol, address};

/// A request that failed, for `proxy-agent trace`.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) from: String,
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
}

impl Lab {
    /// Tables, counters, logs and rules of every node, and the trace of the last request that failed.
    pub fn report(&self) -> String {
        let mut report = format!("===== lab {}\n", self.estate.prefix());
        for node in self.nodes() {
            let _ = writeln!(report, "===== node {}", node.name());
            for command in ["status", "services", "flows"] {
                let answer = self.ask_agent(node.name(), command, &["-o", "json"]);
                section(&mut report, &format!("proxy-agent {command}"), answer);
            }
            section(
                &mut report,
                "nft list ruleset",
                node.namespace().tool("nft", &["list", "ruleset"], ""),
            );
            section(
                &mut report,
                "ip -s link",
                node.namespace().tool("ip", &["-s", "link"], ""),
            );
            section(
                &mut report,
                "agent log",
                fs::read_to_string(self.agent_log(node.name())).map_err(Into::into),
            );
        }
        if let Some(Request { from, protocol, to }) = &*self.last_failure.lock().expect("nobody panics here") {
            let title = format!("proxy-agent trace: {protocol} from {from} to {to}");
            section(&mut report, &title, self.trace(from, *protocol, *to));
        }
        report
    }

    /// What `proxy-agent trace` says of a request from a pod, a node or `outside`, as JSON.
    pub fn trace(&self, from: &str, protocol: Protocol, to: SocketAddr) -> Result<String> {
        let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
        let protocol = protocol.to_string().to_lowercase();
        let (node, role, addresses) = match self.pods().iter().find(|pod| pod.name() == from) {
            Some(pod) => (pod.node(), "pod", pod.addresses()),
            None if from == "outside" => (self.nodes()[0].name(), "uplink", address::OUTSIDE),
            None => (from, "host", self.node(from).addresses()),
        };
        let (source, to) = (addresses.of(family).to_string(), to.to_string());
        let arguments = [
            "--from",
            role,
            "--protocol",
            &protocol,
            "--source",
            &source,
            "--destination",
            &to,
        ];
        self.ask_agent(node, "trace", &[&arguments[..], &["-o", "json"]].concat())
    }
}

fn section(report: &mut String, title: &str, body: Result<String>) {
    let body = body.unwrap_or_else(|error| format!("(not available: {error:#})"));
    let _ = writeln!(report, "----- {title}\n{}", body.trim_end());
}
