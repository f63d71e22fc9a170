//! The configurations that clusters have, and wrong ones.

use proxy_common::layout::Timeouts;

use super::*;
use crate::model::Family;

fn with(lines: &str) -> Result<ProxyConfig> {
    ProxyConfig::parse(&format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{lines}"
    ))
}

fn error(lines: &str) -> String {
    format!("{:#}", with(lines).unwrap_err())
}

fn cluster_ranges() -> LocalTraffic {
    LocalTraffic::ClusterCidr(
        ["10.244.0.0/16", "fd00:10:244::/56"]
            .map(|range| range.parse().unwrap())
            .into(),
    )
}

/// What kubeadm writes into the ConfigMap `kube-proxy`: each field there is, most of them with the zero of their type.
#[test]
fn rule_8_9_what_kubeadm_writes_is_understood() {
    let expected = ProxyConfig {
        local_traffic: cluster_ranges(),
        masquerade_all: true,
        kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
        without_meaning: vec!["iptables.masqueradeBit".to_owned()],
        ..ProxyConfig::default()
    };
    assert_eq!(
        ProxyConfig::parse(include_str!("examples/kubeadm.yaml")).unwrap(),
        expected
    );
}

/// What kind has kubeadm write.
#[test]
fn rule_8_9_what_kind_writes_is_understood() {
    let expected = ProxyConfig {
        local_traffic: cluster_ranges(),
        kubeconfig: Some("/var/lib/kube-proxy/kubeconfig.conf".into()),
        without_meaning: ["conntrack.tcpBeLiberal", "iptables.minSyncPeriod", "mode"]
            .map(str::to_owned)
            .into(),
        ..ProxyConfig::default()
    };
    assert_eq!(
        ProxyConfig::parse(include_str!("examples/kind.yaml")).unwrap(),
        expected
    );
}

/// What `kube-proxy --write-config-to` says of the flags that k3s and RKE2 start it with: each field there is, with its default
/// where no flag says otherwise. All that means nothing here is told at once.
#[test]
fn rule_8_9_what_kube_proxy_writes_with_all_defaults_is_understood() {
    let config = ProxyConfig::parse(include_str!("examples/written.yaml")).unwrap();
    let mut timeouts = Timeouts::DEFAULT;
    config
        .flow_timeouts
        .iter()
        .for_each(|timeout| timeout.apply(&mut timeouts));
    assert_eq!(timeouts.tcp_established, Timeouts::ticks(86_400));
    let without_meaning = [
        "clientConnection.burst",
        "clientConnection.contentType",
        "clientConnection.qps",
        "configSyncPeriod",
        "conntrack.min",
        "iptables.localhostNodePorts",
        "iptables.masqueradeBit",
        "iptables.minSyncPeriod",
        "ipvs.syncPeriod",
        "logging.flushFrequency",
        "mode",
        "nftables.masqueradeBit",
        "nftables.minSyncPeriod",
        "nftables.syncPeriod",
    ];
    let expected = ProxyConfig {
        hostname_override: Some("server-0".to_owned()),
        local_traffic: LocalTraffic::ClusterCidr(vec!["10.42.0.0/16".parse().unwrap()]),
        metrics_bind_address: Some("127.0.0.1:10249".parse().unwrap()),
        healthz_bind_address: Some("127.0.0.1:10256".parse().unwrap()),
        kubeconfig: Some("/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig".into()),
        oom_score_adj: Some(-999),
        flow_timeouts: config.flow_timeouts.clone(),
        without_meaning: without_meaning.map(str::to_owned).into(),
        ..ProxyConfig::default()
    };
    assert_eq!(config, expected);
}

/// Each field that a KubeProxyConfiguration may have is known, as is what becomes of it: docs/configuration.md lists all.
#[test]
fn rule_8_9_each_field_is_documented() {
    let document = include_str!("../../../docs/configuration.md");
    for field in file::KubeProxyConfiguration::fields() {
        assert!(document.contains(&format!("`{field}`")), "{field}");
    }
}

#[test]
fn rule_8_9_fields_have_their_meaning() {
    let config = with(
        "hostnameOverride: Node-A\nbindAddress: 192.0.2.7\nmode: nftables\nnftables: {masqueradeAll: true, syncPeriod: 90s}\n\
         detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\nnodePortAddresses: [192.0.2.0/24]\n\
         metricsBindAddress: 0.0.0.0:9\nhealthzBindAddress: '::1'\nbindAddressHardFail: true\noomScoreAdj: -5\n\
         clientConnection: {kubeconfig: /etc/kubeconfig}\nlogging: {format: json, verbosity: 4}",
    );
    let expected = ProxyConfig {
        hostname_override: Some("node-a".to_owned()),
        bind_address: Some("192.0.2.7".parse().unwrap()),
        local_traffic: LocalTraffic::BridgeInterface("cni0".to_owned()),
        node_port_addresses: NodePortAddresses::Ranges(vec!["192.0.2.0/24".parse().unwrap()]),
        masquerade_all: true,
        metrics_bind_address: Some("0.0.0.0:9".parse().unwrap()),
        healthz_bind_address: Some("[::1]:10256".parse().unwrap()),
        bind_address_hard_fail: true,
        kubeconfig: Some("/etc/kubeconfig".into()),
        sync_period: Duration::from_secs(90),
        oom_score_adj: Some(-5),
        logging: Logging {
            verbosity: 4,
            is_json: true,
        },
        without_meaning: vec!["mode".to_owned()],
        ..ProxyConfig::default()
    };
    assert_eq!(config.unwrap(), expected);
    assert_eq!(with("").unwrap(), ProxyConfig::default());
    assert_eq!(with("nodePortAddresses: [primary]").unwrap(), ProxyConfig::default());
}

/// The sections of the other modes mean nothing.
#[test]
fn rule_8_9_a_section_is_that_of_its_mode() {
    let both = "iptables: {masqueradeAll: true, syncPeriod: 1m}\nnftables: {masqueradeAll: true, syncPeriod: 2m}\n\
                ipvs: {syncPeriod: 3m}\n";
    for (mode, period, without_meaning) in [
        (
            "",
            60,
            &["ipvs.syncPeriod", "nftables.masqueradeAll", "nftables.syncPeriod"][..],
        ),
        (
            "iptables",
            60,
            &[
                "ipvs.syncPeriod",
                "mode",
                "nftables.masqueradeAll",
                "nftables.syncPeriod",
            ],
        ),
        (
            "ipvs",
            180,
            &[
                "iptables.syncPeriod",
                "mode",
                "nftables.masqueradeAll",
                "nftables.syncPeriod",
            ],
        ),
        (
            "nftables",
            120,
            &[
                "iptables.masqueradeAll",
                "iptables.syncPeriod",
                "ipvs.syncPeriod",
                "mode",
            ],
        ),
    ] {
        let config = with(&format!("{both}mode: '{mode}'")).unwrap();
        assert_eq!(config.sync_period, Duration::from_secs(period), "{mode}");
        assert_eq!(config.without_meaning, without_meaning, "{mode}");
        assert!(config.masquerade_all, "{mode}");
    }
}

#[test]
fn rule_3_6_words_stand_for_ranges() {
    let addresses = |lines: &str| with(lines).unwrap().node_port_addresses;
    let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        addresses("nodePortAddresses: [all]"),
        NodePortAddresses::Ranges(parse(&["0.0.0.0/0", "::/0"]))
    );
    assert_eq!(
        addresses("nodePortAddresses: [primary, localhost]"),
        NodePortAddresses::PrimaryAnd(parse(&["127.0.0.0/8", "::1/128"]))
    );
    assert_eq!(
        addresses("nodePortAddresses: [192.0.2.0/24, primary]"),
        NodePortAddresses::PrimaryAnd(parse(&["192.0.2.0/24"]))
    );
    assert!(error("nodePortAddresses: [secondary]").starts_with("nodePortAddresses: \"secondary\""));
}

/// behaviour.md 8.4, 8.7: without a word of it, metrics are for this node and health is for all.
#[test]
fn rule_8_7_addresses_have_defaults() {
    let default = with("").unwrap();
    assert_eq!(default.metrics_address(), "127.0.0.1:10249".parse().unwrap());
    assert_eq!(default.healthz_address(), "0.0.0.0:10256".parse().unwrap());
    let v6 = with("bindAddress: '2001:db8::7'").unwrap();
    assert_eq!(v6.metrics_address(), "[::1]:10249".parse().unwrap());
    let other = with("metricsBindAddress: 192.0.2.7\nhealthzBindAddress: 192.0.2.7:8").unwrap();
    assert_eq!(other.metrics_address(), "192.0.2.7:10249".parse().unwrap());
    assert_eq!(other.healthz_address(), "192.0.2.7:8".parse().unwrap());
}

#[test]
fn rule_7_10_conntrack_timeouts_are_those_of_flows() {
    let config = with(
        "conntrack: {tcpEstablishedTimeout: 2h0m0s, tcpCloseWaitTimeout: 30m, udpTimeout: 0s, udpStreamTimeout: 250s}",
    )
    .unwrap();
    assert!(config.without_meaning.is_empty(), "{:?}", config.without_meaning);
    let mut timeouts = Timeouts::DEFAULT;
    config
        .flow_timeouts
        .iter()
        .for_each(|timeout| timeout.apply(&mut timeouts));
    let expected = Timeouts {
        tcp_established: Timeouts::ticks(7200),
        tcp_half_closed: Timeouts::ticks(1800),
        udp_established: Timeouts::ticks(250),
        ..Timeouts::DEFAULT
    };
    assert_eq!(timeouts, expected);
    assert!(error("conntrack: {udpTimeout: soon}").starts_with("conntrack.udpTimeout: \"soon\""));
}

#[test]
fn rule_3_6_a_family_without_a_range_is_open() {
    let open = |lines: &str| with(lines).unwrap().node_port_addresses.open_families();
    assert_eq!(open("nodePortAddresses: [192.0.2.0/24]"), [Family::V6]);
    assert_eq!(open("nodePortAddresses: ['2001:db8::/32']"), [Family::V4]);
    assert_eq!(open("nodePortAddresses: [192.0.2.0/24, '::/0']"), []);
    assert_eq!(open("nodePortAddresses: [primary]"), []);
    assert_eq!(open(""), []);
}

#[test]
fn errors_name_the_field() {
    assert!(error("clusterCidr: 10.0.0.0/8").contains("clusterCidr"));
    assert!(error("clusterCIDR: 10.0.0.0/8,x").starts_with("clusterCIDR: \"x\" is no address range"));
    assert!(error("bindAddress: nowhere").starts_with("bindAddress: \"nowhere\" is no IP address"));
    assert!(error("metricsBindAddress: here").starts_with("metricsBindAddress: \"here\" is no address to listen at"));
    assert!(error("healthzBindAddress: ':7'").starts_with("healthzBindAddress: \":7\" is no address to listen at"));
    assert!(error("mode: kernelspace").starts_with("mode: \"kernelspace\""));
    assert!(error("detectLocalMode: NodeCidr").starts_with("detectLocalMode: \"NodeCidr\" is unknown"));
    assert!(error("detectLocalMode: BridgeInterface").starts_with("detectLocal.bridgeInterface: missing"));
    assert!(error("conntrack: {maxPerCore: many}").starts_with("conntrack.maxPerCore: "));
    assert!(error("conntrack: {maxPerCpu: 1}").starts_with("conntrack.maxPerCpu: unknown field"));
    assert!(
        error("logging: {options: {json: {split: true}}}").starts_with("logging.options.json.split: unknown field")
    );
    assert!(error("logging: {format: xml}").starts_with("logging.format: \"xml\""));
    assert!(error("oomScoreAdj: 1001").starts_with("oomScoreAdj: 1001"));
    assert!(error("iptables: {syncPeriod: often}").starts_with("iptables.syncPeriod: \"often\""));
    let other = ProxyConfig::parse("apiVersion: v1\nkind: Service")
        .unwrap_err()
        .to_string();
    assert_eq!(
        other,
        "this is v1 Service, not kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration"
    );
}
