//! Asking Services in the cluster.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::cluster::{Cluster, NAMESPACE};
use crate::process;

/// How long it may take until what was changed is served.
const SETTLING: Duration = Duration::from_secs(30);

/// Exit statuses of curl.
const REFUSED: i32 = 7;
const TIMED_OUT: i32 = 28;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Client<'a> {
    /// A pod of the workload
    Pod(&'a str),
    /// A node, for another's addresses: a machine outside
    Node(&'a str),
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With this answer
    Answer(String),
    /// Refused at once
    Refused,
    /// Without any answer
    Silence,
}

impl Client<'_> {
    /// A command where it is.
    fn command(self, cluster: &Cluster) -> Command {
        match self {
            Self::Pod(pod) => {
                let mut command = cluster.kubectl();
                command.args(["exec", "--namespace", NAMESPACE, pod, "--"]);
                command
            }
            Self::Node(node) => cluster.tools.in_node(node),
        }
    }

    /// What a URL is answered with.
    pub(super) fn get(self, cluster: &Cluster, url: &str) -> Result<Outcome> {
        let mut command = self.command(cluster);
        // IPv6 addresses in URLs have brackets, which --globoff leaves alone.
        command.args(["curl", "--silent", "--show-error", "--globoff", "--max-time", "4", url]);
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| process::typed(&command))?;
        Ok(match output.status.code() {
            Some(0) => Outcome::Answer(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            Some(REFUSED) => Outcome::Refused,
            Some(TIMED_OUT) => Outcome::Silence,
            _ => bail!(
                "`{}`: {}",
                process::typed(&command),
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        })
    }

    /// Asks until it ends as expected.
    ///
    /// # Errors
    /// It ends otherwise for too long.
    pub(super) fn expect(
        self,
        cluster: &Cluster,
        url: &str,
        is_expected: impl Fn(&Outcome) -> bool,
    ) -> Result<Outcome> {
        let start = Instant::now();
        loop {
            let outcome = self.get(cluster, url)?;
            if is_expected(&outcome) {
                return Ok(outcome);
            }
            ensure!(start.elapsed() < SETTLING, "{self:?}: {url}: {outcome:?}");
            thread::sleep(Duration::from_millis(500));
        }
    }

    /// Asks until there is an answer, and returns it.
    pub(super) fn answer(self, cluster: &Cluster, url: &str) -> Result<String> {
        match self.expect(cluster, url, |outcome| matches!(outcome, Outcome::Answer(_)))? {
            Outcome::Answer(answer) => Ok(answer),
            other => bail!("{url}: {other:?}"),
        }
    }

    /// The answers to so many requests, one after the other, each by a connection of its own. All must be answered.
    pub(super) fn answers(self, cluster: &Cluster, url: &str, count: u32) -> Result<Vec<String>> {
        self.answer(cluster, url)?;
        let script = format!(
            "for i in $(seq {count}); do curl --silent --show-error --globoff --fail --max-time 4 '{url}' || exit 1; echo; done"
        );
        let answers = process::output(self.command(cluster).args(["sh", "-c", &script]))?;
        Ok(answers.lines().map(str::to_owned).collect())
    }

    /// The answer to a datagram, sent until there is one.
    pub(super) fn datagram(self, cluster: &Cluster, address: &str, port: u16) -> Result<String> {
        let script = format!(
            "for i in $(seq 10); do echo hostname | nc -w 1 -u {address} {port} | grep . && exit; done; exit 1"
        );
        process::output(self.command(cluster).args(["sh", "-c", &script])).map(|answer| answer.trim().to_owned())
    }

    /// Asks on and on, until [`Load::stop`].
    pub(super) fn load(self, cluster: &Cluster, url: &str) -> Result<Load> {
        let script = format!(
            "rm -f /tmp/stop; good=0; bad=0
             while [ ! -e /tmp/stop ]; do
                 if curl --silent --globoff --fail --max-time 4 --output /dev/null '{url}'
                 then good=$((good + 1)); else bad=$((bad + 1)); fi
             done
             echo $good $bad"
        );
        let child = self
            .command(cluster)
            .args(["sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Load {
            child,
            stop: {
                let mut command = self.command(cluster);
                command.args(["touch", "/tmp/stop"]);
                command
            },
        })
    }
}

/// Requests that go on.
pub(super) struct Load {
    child: Child,
    stop: Command,
}

impl Load {
    /// Ends them; returns how many were answered, and how many not.
    pub(super) fn stop(mut self) -> Result<(u32, u32)> {
        process::run(&mut self.stop)?;
        let output = self.child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let mut counts = said.split_whitespace().map(str::parse);
        match (counts.next(), counts.next()) {
            (Some(Ok(good)), Some(Ok(bad))) => Ok((good, bad)),
            _ => bail!("the requests ended with {} and said {said:?}", output.status),
        }
    }
}
