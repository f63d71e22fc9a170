//! Settings of the kernel that matter to the proxy, below /proc/sys.

use std::{fs, path::Path};

use super::{Findings, Severity};

/// Reads settings; a test has its own.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

pub(super) fn examine(node_ports: &[u16]) -> Findings {
    judge(node_ports, &|name| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        Some(text.trim().to_owned())
    })
}

fn judge(node_ports: &[u16], read: Read<'_>) -> Findings {
    let mut findings = Findings::of("settings");
    forwarding(&mut findings, read);
    rest(&mut findings, read);
    conntrack(&mut findings, read);
    ports(&mut findings, node_ports, read);
    findings
}

fn forwarding(findings: &mut Findings, read: Read<'_>) {
    // Every cluster has IPv4 or IPv6; which, isn't known here.
    for (name, family, severity) in [
        ("net/ipv4/ip_forward", "IPv4", Severity::Problem),
        ("net/ipv6/conf/all/forwarding", "IPv6", Severity::Warning),
    ] {
        match read(name).as_deref() {
            Some("0") => findings.bad(
                severity,
                name,
                "off",
                format!("the node forwards no {family} packets, neither from nor to pods"),
                format!("sysctl -w {name}=1, and in /etc/sysctl.d to stay, unless the cluster has no {family}"),
            ),
            Some(_) => findings.ok(name, "on"),
            // A kernel without the family.
            None => findings.ok(name, format!("there is no {family} here")),
        }
    }
}

fn rest(findings: &mut Findings, read: Read<'_>) {
    let name = "net/ipv4/conf/all/route_localnet";
    if read(name).as_deref() == Some("1") {
        findings.warning(
            name,
            "1, as kube-proxy sets it",
            "this proxy doesn't need it, and without kube-proxy's rules machines on the same wire reach what listens on 127.0.0.1",
            format!("sysctl -w {name}=0, unless the CNI needs it"),
        );
    } else {
        findings.ok(name, "off");
    }
    // The middle of the node sees real addresses on both sides, which strict filtering lets through.
    if let Some(filter) = read("net/ipv4/conf/all/rp_filter") {
        findings.ok("net/ipv4/conf/all/rp_filter", format!("{filter}; any will do"));
    }
    // A kernel without an interpreter doesn't have it.
    if read("net/core/bpf_jit_enable").as_deref() == Some("0") {
        findings.warning(
            "net/core/bpf_jit_enable",
            "0",
            "programs are interpreted: each packet costs several times as much",
            "sysctl -w net/core/bpf_jit_enable=1",
        );
    }
}

/// The stack and its conntrack still see every connection but those that XDP forwards.
fn conntrack(findings: &mut Findings, read: Read<'_>) {
    let number = |name: &str| read(name)?.parse::<u64>().ok();
    let (Some(count), Some(max)) = (
        number("net/netfilter/nf_conntrack_count"),
        number("net/netfilter/nf_conntrack_max"),
    ) else {
        findings.ok("net/netfilter/nf_conntrack_max", "no connection tracking here");
        return;
    };
    let found = format!("{count} of {max}");
    if max > 0 && count >= max / 10 * 9 {
        findings.warning(
            "net/netfilter/nf_conntrack_max",
            found,
            "at the limit the kernel drops first packets, whatever this proxy does with them",
            format!("sysctl -w net/netfilter/nf_conntrack_max={}", max.saturating_mul(2)),
        );
    } else {
        findings.ok("net/netfilter/nf_conntrack_max", found);
    }
}

/// The node's own connections get their ports from a range. An answer to one of a nodePort's number looks like a request.
fn ports(findings: &mut Findings, node_ports: &[u16], read: Read<'_>) {
    let name = "net/ipv4/ip_local_port_range";
    let Some(range) = read(name) else { return };
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (Some(first), Some(last)) = (ends.next(), ends.next()) else {
        return;
    };
    let reserved = read("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let is_open = |port: &&u16| (first..=last).contains(*port) && !is_listed(&reserved, **port);
    match node_ports.iter().find(is_open) {
        Some(port) => findings.warning(
            name,
            format!("{first} to {last}, with nodePort {port} in it"),
            "a process of the node may get that port for a connection, whose answers then go to the Service",
            format!("sysctl -w net/ipv4/ip_local_reserved_ports={port}, or keep the ranges apart"),
        ),
        None => findings.ok(name, format!("{first} to {last}, without nodePorts")),
    }
}

/// Whether a list such as `8080,9000-9100` has a port.
fn is_listed(list: &str, port: u16) -> bool {
    let mut parts = list.split(',').filter(|part| !part.is_empty());
    parts.any(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&port),
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings that are worse than ok.
    fn bad(node_ports: &[u16], settings: &[(&str, &str)]) -> Vec<(String, Severity)> {
        let read = |name: &str| {
            let found = settings.iter().find(|(own, _)| *own == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let findings = judge(node_ports, &read).list.into_iter();
        findings
            .filter(|finding| finding.severity != Severity::Ok)
            .map(|finding| (finding.subject, finding.severity))
            .collect()
    }

    #[test]
    fn a_usual_node_is_fine() {
        let usual = [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/route_localnet", "0"),
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/core/bpf_jit_enable", "1"),
            ("net/netfilter/nf_conntrack_count", "1200"),
            ("net/netfilter/nf_conntrack_max", "131072"),
            ("net/ipv4/ip_local_port_range", "32768\t60999"),
        ];
        assert_eq!(bad(&[30080, 32767], &usual), []);
        assert_eq!(bad(&[30080], &[]), [], "a setting that isn't there");
    }

    #[test]
    fn each_bad_setting_is_found() {
        for (name, value, severity) in [
            ("net/ipv4/ip_forward", "0", Severity::Problem),
            ("net/ipv6/conf/all/forwarding", "0", Severity::Warning),
            ("net/ipv4/conf/all/route_localnet", "1", Severity::Warning),
            ("net/core/bpf_jit_enable", "0", Severity::Warning),
            ("net/ipv4/ip_local_port_range", "15000 64000", Severity::Warning),
        ] {
            assert_eq!(bad(&[30080], &[(name, value)]), [(name.to_owned(), severity)]);
        }
        let nearly_full = [
            ("net/netfilter/nf_conntrack_count", "950"),
            ("net/netfilter/nf_conntrack_max", "1000"),
        ];
        assert_eq!(bad(&[], &nearly_full).len(), 1);
        let reserved = [
            ("net/ipv4/ip_local_port_range", "15000 64000"),
            ("net/ipv4/ip_local_reserved_ports", "8080,30000-32767"),
        ];
        assert_eq!(bad(&[30080], &reserved), []);
    }
}
