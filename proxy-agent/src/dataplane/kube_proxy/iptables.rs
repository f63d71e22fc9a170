//! The chains of kube-proxy's iptables and IPVS modes, in each variant of iptables and each family.

use std::{fmt::Write as _, fs, io, process::Command};

use anyhow::{Context as _, Result};
use netlink_packet_netfilter::NetfilterProtoFamily;

use super::{nftables, remove::run};

/// What the names of kube-proxy's chains begin with.
pub(super) const PREFIX: &str = "KUBE-";
/// Those that are kubelet's, which makes them anew if they are missing (`pkg/kubelet/kubelet_network_linux.go`).
const OF_KUBELET: [&str; 3] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY", "KUBE-FIREWALL"];
/// The chain that every mode with iptables has in table `nat`.
const MARKER: &str = "KUBE-SERVICES";

/// One of the commands that come with iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Variant {
    /// `iptables` or `ip6tables`
    command: &'static str,
    /// `legacy` or `nft`
    name: &'static str,
    /// Which kernel tables it has made, where that is cheap to see
    names: Option<&'static str>,
    family: NetfilterProtoFamily,
}

const VARIANTS: [Variant; 4] = [
    Variant {
        command: "iptables",
        name: "nft",
        names: None,
        family: NetfilterProtoFamily::IPv4,
    },
    Variant {
        command: "ip6tables",
        name: "nft",
        names: None,
        family: NetfilterProtoFamily::IPv6,
    },
    Variant {
        command: "iptables",
        name: "legacy",
        names: Some("/proc/thread-self/net/ip_tables_names"),
        family: NetfilterProtoFamily::IPv4,
    },
    Variant {
        command: "ip6tables",
        name: "legacy",
        names: Some("/proc/thread-self/net/ip6_tables_names"),
        family: NetfilterProtoFamily::IPv6,
    },
];

impl Variant {
    fn full_name(self) -> String {
        format!("{}-{}", self.command, self.name)
    }

    /// Whether kube-proxy's rules are there.
    fn is_present(self) -> io::Result<bool> {
        if self.names.is_none() {
            return nftables::has_chain(self.family, "nat", MARKER);
        }
        if !self.may_be_in_use()? {
            return Ok(false);
        }
        // Without the command nobody can tell, and nobody here has made the rules.
        let saved = self.tool("save").map(|tool| run(&tool, &[], ""));
        Ok(saved.is_some_and(|saved| saved.is_ok_and(|text| text.contains(&format!("\n:{MARKER} ")))))
    }

    /// Whether the kernel has tables of it at all; the commands would make them.
    fn may_be_in_use(self) -> io::Result<bool> {
        let Some(names) = self.names else {
            let tables = ["nat", "filter", "mangle", "raw"];
            for table in tables {
                let families = nftables::tables_of(table)?;
                let wanted = if self.family == NetfilterProtoFamily::IPv4 {
                    "ip"
                } else {
                    "ip6"
                };
                if families.iter().any(|family| family == wanted) {
                    return Ok(true);
                }
            }
            return Ok(false);
        };
        match fs::read_to_string(names) {
            Ok(text) => Ok(!text.trim().is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The command that does this, by whichever name it is installed.
    fn tool(self, what: &str) -> Option<String> {
        let says = |command: &str| {
            let output = Command::new(command).arg("--version").output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let own = format!("{}-{what}", self.full_name());
        if says(&own).is_some() {
            return Some(own);
        }
        let plain = format!("{}-{what}", self.command);
        let kind = if self.name == "nft" { "(nf_tables)" } else { "(legacy)" };
        says(&plain)?.contains(kind).then_some(plain)
    }
}

/// The variants that have kube-proxy's rules.
pub(super) fn present() -> io::Result<Vec<String>> {
    let mut present = Vec::new();
    for variant in VARIANTS {
        if variant.is_present()? {
            present.push(variant.full_name());
        }
    }
    Ok(present)
}

/// Removes kube-proxy's chains and what leads to them; tells of each variant how many.
pub(super) fn remove() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for variant in VARIANTS {
        if !variant.may_be_in_use()? {
            continue;
        }
        let name = variant.full_name();
        let Some(save) = variant.tool("save") else {
            if variant.is_present()? {
                anyhow::bail!("{name}-save is not installed, but kube-proxy's chains are there");
            }
            continue;
        };
        let Some(removal) = removal(&run(&save, &[], "")?) else {
            continue;
        };
        let restore = variant
            .tool("restore")
            .with_context(|| format!("{name}-restore is not installed"))?;
        run(&restore, &["--noflush", "--wait", "5"], &removal.script)?;
        removed.push(format!(
            "{} chains and {} rules of {name}",
            removal.chains, removal.rules
        ));
    }
    Ok(removed)
}

/// What to feed `iptables-restore --noflush`.
#[derive(Debug, PartialEq, Eq)]
struct Removal {
    script: String,
    /// Chains that go
    chains: usize,
    /// Rules of other chains that lead to them
    rules: usize,
}

/// Finds kube-proxy's chains in what `iptables-save` says; `None` if there are none.
fn removal(saved: &str) -> Option<Removal> {
    const FITS: &str = "a string takes everything";
    let mut removal = Removal {
        script: String::new(),
        chains: 0,
        rules: 0,
    };
    for table in saved.split("\n*").map(|table| table.trim_start_matches('*')) {
        let name = table.lines().next().unwrap_or_default();
        let chains = table.lines().filter_map(|line| line.strip_prefix(':'));
        let chains: Vec<&str> = chains
            .filter_map(|chain| chain.split_whitespace().next())
            .filter(|chain| is_kube_proxys(chain))
            .collect();
        if chains.is_empty() {
            continue;
        }
        let rules = table.lines().filter_map(|line| line.strip_prefix("-A "));
        let rules: Vec<&str> = rules
            .filter(|rule| !is_kube_proxys(rule.split_whitespace().next().unwrap_or_default()))
            .filter(|rule| target(rule).is_some_and(is_kube_proxys))
            .collect();
        writeln!(removal.script, "*{name}").expect(FITS);
        for chain in &chains {
            // Declared anew it is empty.
            writeln!(removal.script, ":{chain} - [0:0]").expect(FITS);
        }
        for rule in &rules {
            writeln!(removal.script, "-D {rule}").expect(FITS);
        }
        for chain in &chains {
            writeln!(removal.script, "-X {chain}").expect(FITS);
        }
        removal.script.push_str("COMMIT\n");
        removal.chains += chains.len();
        removal.rules += rules.len();
    }
    (removal.chains > 0).then_some(removal)
}

fn is_kube_proxys(chain: &str) -> bool {
    chain.starts_with(PREFIX) && !OF_KUBELET.contains(&chain)
}

/// Where a rule leads. Comments, which are quoted if they have blanks, may say anything.
fn target(rule: &str) -> Option<&str> {
    let mut quoted = false;
    let mut words = rule.split(' ').filter(move |word| {
        let was_quoted = quoted;
        quoted ^= word.matches('"').count() % 2 == 1;
        !was_quoted && !word.starts_with('"')
    });
    words.find(|word| ["-j", "-g"].contains(word))?;
    words.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
# Generated by iptables-save
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [1:2]
:OUTPUT ACCEPT [0:0]
:CNI-X - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m comment --comment \"not -j KUBE-SERVICES\" -j CNI-X
-A OUTPUT -g KUBE-SERVICES
-A OUTPUT -j CNI-X
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-ABC
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment rules -j KUBE-FORWARD
COMMIT
";

    #[test]
    fn chains_of_kube_proxy_go_and_what_leads_to_them() {
        let removal = removal(SAVED).expect("there are some");
        let expected = "\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-D OUTPUT -g KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-ABC
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment rules -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
";
        assert_eq!(removal.script, expected);
        assert_eq!((removal.chains, removal.rules), (3, 3));
    }

    #[test]
    fn nothing_of_kube_proxy_is_nothing_to_do() {
        assert_eq!(removal(""), None);
        assert_eq!(removal("*mangle\n:KUBE-KUBELET-CANARY - [0:0]\nCOMMIT\n"), None);
    }
}
