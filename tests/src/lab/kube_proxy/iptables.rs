//! The iptables mode (`pkg/proxy/iptables/proxier.go`): one list of all Services, which a new connection walks until its Service
//! is found.

use std::fmt::Write as _;

use super::{FITS, Reach, Rules};
use crate::lab::Family;

/// The `nat` and `filter` tables as `iptables-restore` reads them: with the chains of Services, the list of what leads to them,
/// and their rules.
pub fn frame(chains: &str, list: &str, rules: &str) -> String {
    format!(
        "*filter\n\
         :KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
         :KUBE-PROXY-FIREWALL - [0:0]\n:KUBE-SERVICES - [0:0]\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A INPUT -j KUBE-NODEPORTS\n\
         -A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A INPUT -j KUBE-FIREWALL\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A FORWARD -j KUBE-FORWARD\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL\n\
         -A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES\n\
         -A OUTPUT -j KUBE-FIREWALL\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :KUBE-MARK-MASQ - [0:0]\n:KUBE-NODEPORTS - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-SERVICES - [0:0]\n{chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
         {list}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         {rules}COMMIT\n"
    )
}

/// The rules of a family.
pub(super) fn render(rules: &Rules, family: Family) -> String {
    let (mut chains, mut list, mut body) = (String::new(), String::new(), String::new());
    let ports = rules.ports.iter().filter(|port| port.family == family);
    for (number, port) in ports.enumerate() {
        let protocol = port.protocol.to_string().to_lowercase();
        let [service, external] = ["SVC", "EXT"].map(|kind| format!("KUBE-{kind}-{number:016}"));
        writeln!(chains, ":{service} - [0:0]\n:{external} - [0:0]").expect(FITS);
        writeln!(
            body,
            "-A {external} -m comment --comment \"masquerade traffic for {} external destinations\" -j KUBE-MARK-MASQ\n\
             -A {external} -j {service}",
            port.name
        )
        .expect(FITS);
        for (reach, frontend) in &port.frontends {
            let (address, frontend) = (frontend.ip(), frontend.port());
            let to_port = format!("-p {protocol} -m {protocol} --dport {frontend}");
            match reach {
                Reach::Cluster => writeln!(list, "-A KUBE-SERVICES -d {address} {to_port} -j {service}"),
                Reach::External => writeln!(list, "-A KUBE-SERVICES -d {address} {to_port} -j {external}"),
                Reach::NodePort => writeln!(body, "-A KUBE-NODEPORTS {to_port} -j {external}"),
            }
            .expect(FITS);
        }
        for (index, endpoint) in port.endpoints.iter().enumerate() {
            let chain = format!("KUBE-SEP-{number:08}{index:08}");
            let left = port.endpoints.len() - index;
            // The last endpoint takes what the others left.
            let chance = match left {
                1 => String::new(),
                left => format!(
                    "-m statistic --mode random --probability {:.11} ",
                    1.0 / f64::from(u32::try_from(left).expect("a short list"))
                ),
            };
            writeln!(chains, ":{chain} - [0:0]").expect(FITS);
            writeln!(
                body,
                "-A {service} {chance}-j {chain}\n\
                 -A {chain} -s {} -j KUBE-MARK-MASQ\n\
                 -A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {endpoint}",
                endpoint.ip()
            )
            .expect(FITS);
        }
    }
    frame(&chains, &list, &body)
}
