//! Others that serve Services: kube-proxy and what it left, and CNIs that do it themselves.

use std::{fs, path::Path};

use super::{Findings, Severity};
use crate::dataplane::kube_proxy;

/// What tells that a CNI serves Services itself: the beginning of a program's name, which the kernel cuts to 15 characters.
const PROGRAMS: [(&str, &str, &str); 2] = [
    (
        "cil_sock",
        "Cilium's socket load balancing (kube-proxy replacement)",
        "install Cilium with kubeProxyReplacement: false and socketLB.enabled: false",
    ),
    (
        "calico_connect",
        "Calico's eBPF dataplane with its connect-time load balancing",
        "set bpfEnabled: false in the FelixConfiguration",
    ),
];

/// The same, by the name of a device; with how sure that is.
const DEVICES: [(Severity, &str, &str, &str); 3] = [
    (
        Severity::Problem,
        "bpfin.cali",
        "Calico's eBPF dataplane",
        "set bpfEnabled: false in the FelixConfiguration",
    ),
    (
        Severity::Problem,
        "kube-dummy-if",
        "kube-router's service proxy (IPVS)",
        "run kube-router with --run-service-proxy=false, then `kube-router --cleanup-config`",
    ),
    (
        // AntreaProxy may be off.
        Severity::Warning,
        "antrea-gw0",
        "Antrea; its AntreaProxy serves ClusterIPs to pods in Open vSwitch",
        "set antreaProxy.enable: false in antrea-agent.conf",
    ),
];

pub(super) fn examine() -> Findings {
    let mut findings = Findings::of("rivals");
    kube_proxy(&mut findings);
    cni(&mut findings);
    findings
}

fn kube_proxy(findings: &mut Findings) {
    match running(Path::new("/proc")) {
        Some(process) => findings.problem(
            "kube-proxy",
            format!("runs as process {process}"),
            "what this proxy leaves alone it translates by its rules, which it writes again when they are removed",
            "delete its DaemonSet (kubectl -n kube-system delete daemonset kube-proxy); docs/migration.md goes step by step",
        ),
        None => findings.ok("kube-proxy", "no such process in this process namespace"),
    }
    match kube_proxy::leftovers() {
        Ok(leftovers) if leftovers.is_empty() => findings.ok("kube-proxy's rules", "none"),
        Ok(leftovers) => {
            let list: Vec<String> = leftovers.iter().map(ToString::to_string).collect();
            findings.warning(
                "kube-proxy's rules",
                list.join(", "),
                "they go on translating what this proxy leaves alone, to endpoints of then",
                kube_proxy::ADVICE,
            );
        }
        Err(error) => findings.warning(
            "kube-proxy's rules",
            format!("can't be looked for: {error}"),
            "some may be left",
            "run with CAP_NET_ADMIN",
        ),
    }
}

/// The process id of a kube-proxy, below a mount of procfs.
fn running(proc: &Path) -> Option<u32> {
    let entries = fs::read_dir(proc).ok()?;
    let processes = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut found: Vec<u32> = processes
        .filter(|process| {
            let name = fs::read_to_string(proc.join(process.to_string()).join("comm"));
            name.is_ok_and(|name| name.trim_end() == "kube-proxy")
        })
        .collect();
    found.sort_unstable();
    found.first().copied()
}

fn cni(findings: &mut Findings) {
    let before = findings.list.len();
    for (severity, device, what, fix) in DEVICES {
        if nix::net::if_::if_nametoindex(device).is_ok() {
            rival(findings, severity, &format!("device {device}"), what, fix);
        }
    }
    // Listing takes CAP_SYS_ADMIN; the devices tell without.
    let programs = aya::programs::loaded_programs().map_while(Result::ok);
    let names: Vec<String> = programs
        .filter_map(|program| program.name_as_str().map(str::to_owned))
        .collect();
    for (prefix, what, fix) in PROGRAMS {
        if let Some(name) = names.iter().find(|name| name.starts_with(prefix)) {
            rival(findings, Severity::Problem, &format!("program {name}"), what, fix);
        }
    }
    if findings.list.len() == before {
        findings.ok("CNI", "none that is known to serve Services itself");
    }
}

fn rival(findings: &mut Findings, severity: Severity, found: &str, what: &str, fix: &str) {
    findings.bad(
        severity,
        "CNI",
        format!("{found}: {what}"),
        "two proxies serve the same packets: which one does depends on who comes first",
        fix,
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_kube_proxy_is_found_by_its_name() {
        let proc = tempfile::tempdir().unwrap();
        for (process, name) in [("1", "systemd\n"), ("77", "kube-proxy\n"), ("self", "kube-proxy\n")] {
            let directory = proc.path().join(process);
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("comm"), name).unwrap();
        }
        assert_eq!(running(proc.path()), Some(77));
        fs::write(proc.path().join("77/comm"), "kube-proxy-lik\n").unwrap();
        assert_eq!(running(proc.path()), None);
    }
}
