//! What this process may do: an agent that is started as it was may do the same.

use std::fs;

use super::Findings;

/// Capabilities by their bits (include/uapi/linux/capability.h), and what is not to be had without.
const NEEDED: [(u32, &str, &str); 3] = [
    (39, "CAP_BPF", "tables and programs can't be made or read"),
    (12, "CAP_NET_ADMIN", "programs can't be attached to devices"),
    (
        38,
        "CAP_PERFMON",
        "the verifier refuses what the programs do with packets",
    ),
];

/// Stands for [`NEEDED`] but for `CAP_NET_ADMIN`.
const CAP_SYS_ADMIN: u32 = 21;

pub(super) fn examine() -> Findings {
    let mut findings = Findings::of("process");
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective(&status) else {
        findings.warning(
            "capabilities",
            "/proc/self/status doesn't tell",
            "it isn't known what an agent may do here",
            "mount /proc",
        );
        return findings;
    };
    let has = |bit: u32| effective >> bit & 1 == 1;
    for (bit, name, without) in NEEDED {
        if has(bit) || (name != "CAP_NET_ADMIN" && has(CAP_SYS_ADMIN)) {
            findings.ok(name, "present");
        } else {
            findings.problem(
                name,
                "missing",
                without,
                "run as root, or add it to securityContext.capabilities (manifests/base/daemonset.yaml)",
            );
        }
    }
    findings
}

/// The effective capabilities in the text of /proc/self/status (proc(5)).
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read() {
        let status = "Name:\tcat\nCapPrm:\t0000000000000000\nCapEff:\t000000c000001000\nCapBnd:\t000001ffffffffff\n";
        let effective = effective(status).unwrap();
        assert!(NEEDED.iter().all(|(bit, _, _)| effective >> bit & 1 == 1));
        assert_eq!(effective >> CAP_SYS_ADMIN & 1, 0);
        assert_eq!(super::effective("Name:\tcat\n"), None);
    }
}
