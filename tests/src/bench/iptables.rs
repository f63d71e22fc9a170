//! A workload as the iptables mode of kube-proxy lays it out (`pkg/proxy/iptables/proxier.go`): one list of all Services,
//! which a new connection walks until its Service is found.

use std::fmt::Write as _;

use super::workload::{Service, Workload};
use crate::lab::kube_proxy::iptables_frame;

/// The `nat` and `filter` tables as `iptables-restore` reads them.
pub(super) fn render(workload: Workload, pod_network: &str) -> String {
    let (mut chains, mut list, mut rules) = (String::new(), String::new(), String::new());
    for (
        number,
        Service {
            name,
            frontend,
            endpoints,
        },
    ) in workload.services().enumerate()
    {
        let (address, port) = (frontend.ip(), frontend.port());
        let service = format!("KUBE-SVC-{number:016}");
        let comment = |what: &str| format!("-m comment --comment \"bench/{name}:http{what}\"");
        writeln!(chains, ":{service} - [0:0]").expect(FITS);
        writeln!(
            list,
            "-A KUBE-SERVICES -d {address}/32 -p tcp {} -m tcp --dport {port} -j {service}",
            comment(" cluster IP")
        )
        .expect(FITS);
        writeln!(
            rules,
            "-A {service} ! -s {pod_network} -d {address}/32 -p tcp {} -m tcp --dport {port} -j KUBE-MARK-MASQ",
            comment(" cluster IP")
        )
        .expect(FITS);
        for (index, endpoint) in endpoints.iter().enumerate() {
            let chain = format!("KUBE-SEP-{:016}", 2 * number + index);
            // The last endpoint takes what the others left.
            let chance = if index == 0 {
                "-m statistic --mode random --probability 0.50000000000 "
            } else {
                ""
            };
            writeln!(chains, ":{chain} - [0:0]").expect(FITS);
            writeln!(
                rules,
                "-A {service} {} {chance}-j {chain}\n\
                 -A {chain} -s {}/32 {} -j KUBE-MARK-MASQ\n\
                 -A {chain} -p tcp {} -m tcp -j DNAT --to-destination {endpoint}",
                comment(&format!(" -> {endpoint}")),
                endpoint.ip(),
                comment(""),
                comment("")
            )
            .expect(FITS);
        }
    }
    iptables_frame(&chains, &list, &rules)
}

const FITS: &str = "a string takes everything";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_every_service_and_nodeports_last() {
        let rules = render(super::super::workload::tests::small(), "10.244.0.0/16");
        let list: Vec<_> = rules
            .lines()
            .filter(|line| line.starts_with("-A KUBE-SERVICES"))
            .collect();
        assert_eq!(list.len(), 4);
        assert!(list[1].starts_with("-A KUBE-SERVICES -d 10.96.0.2/32 -p tcp"));
        assert!(list[3].ends_with("-j KUBE-NODEPORTS"));
        assert_eq!(rules.matches("--to-destination").count(), 6);
        assert_eq!(rules.matches("--mode random").count(), 3);
    }
}
