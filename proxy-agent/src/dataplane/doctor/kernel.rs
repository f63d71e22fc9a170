//! What the kernel can do: tried out, as distributions carry features back.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::{
    maps::MapType,
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{is_map_supported, is_program_supported},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::Findings;
use crate::dataplane::{object, raw, sockets};

/// The loopback device, which is everywhere.
const LOOPBACK: &str = "lo";

pub(super) fn examine() -> Findings {
    let mut findings = Findings::of("kernel");
    version(&mut findings);
    types(&mut findings);
    order(&mut findings);
    batches(&mut findings);
    sockets_of_processes(&mut findings);
    findings
}

fn version(findings: &mut Findings) {
    let release = nix::sys::utsname::uname().map_or_else(
        |_| "unknown".to_owned(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    match parse_version(&release) {
        Some(version) if version < (5, 12) => findings.problem(
            "version",
            &release,
            "kernels before 5.12 lack what the programs need",
            "use Linux 6.6 or newer",
        ),
        _ => findings.ok("version", &release),
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        findings.ok("BTF", "/sys/kernel/btf/vmlinux");
    } else {
        findings.warning(
            "BTF",
            "no /sys/kernel/btf/vmlinux",
            "no kernel without it is tested",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF",
        );
    }
}

/// The first two numbers of a release.
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Kinds of programs and maps, each by making a small one.
fn types(findings: &mut Findings) {
    let without = "use a kernel with it";
    let rights = "run as root, or with CAP_BPF and CAP_NET_ADMIN (see `process`)";
    for (kind, name, use_of_it) in [
        (ProgramType::SchedClassifier, "sched_cls programs", "nothing is served"),
        (
            ProgramType::CgroupSockAddr,
            "cgroup_sock_addr programs",
            "processes of the host are not served",
        ),
        (ProgramType::Xdp, "xdp programs", "--xdp is of no use"),
    ] {
        match is_program_supported(kind) {
            Ok(true) => findings.ok(name, "supported"),
            Ok(false) if kind == ProgramType::SchedClassifier => {
                findings.problem(name, "not supported", use_of_it, without);
            }
            Ok(false) => findings.warning(name, "not supported", use_of_it, without),
            Err(error) => findings.problem(name, format!("can't be tried: {}", chain(&error)), use_of_it, rights),
        }
    }
    for (kind, name) in [
        (MapType::Hash, "hash maps"),
        (MapType::LruHash, "LRU hash maps"),
        (MapType::PerCpuArray, "per-CPU array maps"),
        (MapType::LpmTrie, "LPM trie maps"),
    ] {
        match is_map_supported(kind) {
            Ok(true) => findings.ok(name, "supported"),
            Ok(false) => findings.problem(name, "not supported", "nothing is served", without),
            Err(error) => findings.problem(
                name,
                format!("can't be tried: {}", chain(&error)),
                "nothing is served",
                rights,
            ),
        }
    }
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => findings.ok("ring buffers", "supported"),
        Ok(false) | Err(_) => findings.warning(
            "ring buffers",
            "not supported",
            "the programs can't tell of single packets (--program-log)",
            without,
        ),
    }
}

/// An error with its reasons.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(reason) = source {
        text = format!("{text}: {reason}");
        source = reason.source();
    }
    text
}

fn order(findings: &mut Findings) {
    match SchedClassifier::query_tcx(LOOPBACK, TcAttachType::Ingress) {
        Ok(_) => findings.ok("tcx", "supported: programs of several owners run in an order"),
        Err(error) if object::os_error(&error) == Some(libc::EPERM) => findings.ok(
            "tcx",
            "can't be asked for without CAP_SYS_ADMIN; the agent tries it, and takes clsact filters without it",
        ),
        Err(_) => findings.warning(
            "tcx",
            "not supported",
            "programs are attached by clsact filters, where another owner's filter may end a packet's way before ours",
            "use Linux 6.6 or newer",
        ),
    }
}

/// Tables are read some thousand entries a system call.
fn batches(findings: &mut Findings) {
    let tried = raw::BytesMap::of_one_value(8).and_then(|map| map.scan(&mut |_, _| {}));
    match tried {
        Ok(()) => findings.ok("batch look-ups", "supported"),
        Err(error) => findings.problem(
            "batch look-ups",
            format!("refused: {error}"),
            "the agent can't read its tables",
            "use Linux 5.12 or newer, and run with CAP_BPF",
        ),
    }
}

fn sockets_of_processes(findings: &mut Findings) {
    let cookie = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(io::Error::from)
        .and_then(|socket| raw::netns_cookie(socket.as_fd()));
    match cookie {
        Ok(_) => findings.ok("network namespace cookies", "supported"),
        Err(error) => findings.warning(
            "network namespace cookies",
            format!("refused: {error}"),
            "processes of the host can't be told from those of pods: their sockets are not served",
            "use Linux 5.14 or newer",
        ),
    }
    match sockets::can_abort() {
        Ok(true) => findings.ok("ending of sockets", "supported"),
        Ok(false) => findings.warning(
            "ending of sockets",
            "not supported",
            "connected UDP sockets of processes stay with an endpoint that serves no more",
            "use a kernel built with CONFIG_INET_DIAG_DESTROY and CONFIG_INET_UDP_DIAG",
        ),
        Err(error) => findings.warning(
            "ending of sockets",
            format!("can't be tried: {error}"),
            "connected UDP sockets of processes may stay with an endpoint that serves no more",
            "run with CAP_NET_ADMIN",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_whatever_distributions_append() {
        assert_eq!(parse_version("6.18.44-fc-v657"), Some((6, 18)));
        assert_eq!(parse_version("5.15.0-1051-aws"), Some((5, 15)));
        assert_eq!(parse_version("6.6+"), Some((6, 6)));
        assert_eq!(parse_version("unknown"), None);
    }
}
