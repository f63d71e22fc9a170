//! A network namespace, and running code in it.

use std::{
    fs::{self, File},
    io, panic,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use super::{command::run, wait_until};

/// Where `ip netns` keeps its names.
const DIRECTORY: &str = "/run/netns";

/// A named network namespace, open: it can be entered as long as this value lives.
///
/// Only the network namespace is ever entered: `ip netns exec` would swap /sys as well and hide bpffs and cgroupfs.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
    cgroup: Option<PathBuf>,
}

impl Namespace {
    /// Makes a namespace with loopback up, and without waiting for duplicate address detection on later devices.
    pub(super) fn create(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name], "")?;
        let namespace = Self::open(name)?;
        namespace.sysctl(&[
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv6/conf/lo/disable_ipv6", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ])?;
        namespace.ip("link set lo up\n")?;
        Ok(namespace)
    }

    /// Opens a namespace that exists.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let path = PathBuf::from(DIRECTORY).join(name);
        let file = File::open(&path).with_context(|| format!("network namespace {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
            cgroup: None,
        })
    }

    /// Has those who enter join a cgroup as well.
    pub(super) fn in_cgroup(self, cgroup: Option<PathBuf>) -> Self {
        Self { cgroup, ..self }
    }

    /// The cgroup that those who enter join, if there is one.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// Its name, as `ip netns list` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as `nsenter --net=` takes it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(DIRECTORY).join(&self.name)
    }

    /// Moves the calling thread into the namespace, and its cgroup, for good; processes it starts are born there.
    pub fn enter(&self) -> Result<()> {
        if let Some(cgroup) = &self.cgroup {
            // "0" is the thread that writes.
            fs::write(cgroup.join("cgroup.threads"), "0").with_context(|| format!("joining {}", cgroup.display()))?;
        }
        setns(&self.file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering namespace {}", self.name))
    }

    /// Runs a closure in the namespace, on a thread of its own.
    ///
    /// # Panics
    /// When the closure does, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let outcome = thread::scope(|scope| {
            let thread = thread::Builder::new().name(self.name.clone()).spawn_scoped(scope, || {
                self.enter().expect("a namespace that is open can be entered");
                body()
            });
            thread.expect("a thread can be started").join()
        });
        outcome.unwrap_or_else(|cause| panic::resume_unwind(cause))
    }

    /// Runs many `ip` commands, one a line.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.run(|| super::command::ip_batch(lines))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Runs a tool in the namespace and returns what it printed.
    pub fn tool(&self, program: &str, arguments: &[&str], input: &str) -> Result<String> {
        self.run(|| run(program, arguments, input))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Writes settings below /proc/sys/net, which is that of the writing thread's namespace.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.run(|| {
            for (key, value) in settings {
                let path = format!("/proc/sys/net/{key}");
                fs::write(&path, value).with_context(|| format!("{path} = {value}"))?;
            }
            Ok(())
        })
    }

    /// TCP segments sent again in this namespace since it exists: a packet lost on the way shows here, even where the
    /// request got its answer in the end (RFC 4022, tcpRetransSegs).
    pub fn retransmissions(&self) -> Result<u64> {
        self.counter("Tcp:", "RetransSegs")
    }

    /// Fails if a TCP segment from here was lost: sent again, and not because it was only late. A busy machine has a segment
    /// sent again for that (a tail loss probe, RFC 8985, 7); its receiver says so, for it has it twice (DSACK, RFC 2883).
    pub fn expect_no_loss(&self) -> Result<()> {
        // The receiver's word may still be on its way.
        const PATIENCE: Duration = Duration::from_secs(2);
        let lost = || -> Result<u64> {
            let late = self.counter("TcpExt:", "TCPDSACKRecv")? + self.counter("TcpExt:", "TCPDSACKOfoRecv")?;
            Ok(self.retransmissions()?.saturating_sub(late))
        };
        let waited = wait_until("every segment has arrived that was sent", PATIENCE, || {
            lost().map_or_else(|error| Some(Err(error)), |lost| (lost == 0).then_some(Ok(())))
        });
        waited.with_context(|| {
            lost().map_or_else(|error| error.to_string(), |lost| format!("{}: {lost} lost", self.name))
        })?
    }

    /// Further paths of Multipath TCP connections that this namespace's kernel opened by itself, and that were answered.
    pub fn joined_paths(&self) -> Result<u64> {
        self.counter("MPTcpExt:", "MPJoinSynAckRx")
    }

    /// Packets with a wrong checksum that this namespace's stack received, all protocols and both families.
    pub fn checksum_errors(&self) -> Result<u64> {
        let counters = [
            ("Tcp:", "InCsumErrors"),
            ("Udp:", "InCsumErrors"),
            ("IpExt:", "InCsumErrors"),
        ];
        let v4_and_tcp = counters
            .into_iter()
            .map(|(table, name)| self.counter(table, name))
            .sum::<Result<u64>>()?;
        let v6 = self.run(|| fs::read_to_string("/proc/thread-self/net/snmp6"))?;
        let errors = v6.lines().filter_map(|line| line.split_once(char::is_whitespace));
        let errors = errors.filter(|(name, _)| name.ends_with("InCsumErrors"));
        Ok(v4_and_tcp
            + errors
                .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
                .sum::<u64>())
    }

    /// A counter of proc(5) net/snmp or net/netstat: pairs of lines, names and values, that start with the table's name.
    fn counter(&self, table: &str, name: &str) -> Result<u64> {
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = self.run(|| Ok::<_, io::Error>(read("snmp")? + &read("netstat")?))?;
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(table));
        let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        let mut columns = names.split_whitespace().zip(values.split_whitespace());
        let (_, count) = columns
            .find(|(found, _)| *found == name)
            .with_context(|| format!("this kernel counts no {table} {name}"))?;
        count.parse().with_context(|| format!("{table} {name} = {count}"))
    }
}

/// Removes the namespaces whose names start with a prefix, and with them every device in them.
pub(super) fn remove_all(prefix: &str) -> Result<()> {
    let lines: Vec<String> = names(prefix).map(|name| format!("netns del {name}\n")).collect();
    if lines.is_empty() {
        return Ok(());
    }
    let outcome = run("ip", &["-force", "-batch", "-"], &lines.concat());
    // Another process may remove the same ones at the same time: what counts is that they are gone.
    if names(prefix).next().is_none() {
        Ok(())
    } else {
        outcome.map(drop)
    }
}

fn names(prefix: &str) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(move |name| name.starts_with(prefix))
}
