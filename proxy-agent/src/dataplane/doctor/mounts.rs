//! The file systems that the agent needs.

use std::path::Path;

use super::Findings;
use crate::dataplane::{cgroup, pin::PinDirectory};

pub(super) fn examine(pin: &PinDirectory, cgroup: Option<&Path>) -> Findings {
    let mut findings = Findings::of("mounts");
    match pin.check_file_system() {
        Ok(()) => findings.ok("bpffs", format!("{} is on one", pin.root().display())),
        Err(error) => findings.problem(
            "bpffs",
            format!("{error:#}"),
            "nothing can be pinned: an agent doesn't start",
            "mount -t bpf bpf /sys/fs/bpf; in a container the host's, with mountPropagation: HostToContainer",
        ),
    }
    match cgroup::directory(cgroup) {
        Ok(root) => findings.ok("cgroup2", root.display().to_string()),
        Err(error) => findings.warning(
            "cgroup2",
            format!("{error:#}"),
            "processes of the host reach no Service (--socket-lb)",
            "mount it, or name the host's with --cgroup",
        ),
    }
    findings
}
