//! What `trace` says is wrong, and what to do about it, when a packet is not forwarded.

use std::{fs, process::Command};

use serde::Deserialize;
use tempfile::TempDir;

#[derive(Debug, Deserialize)]
struct Told {
    verdict: String,
    decisions: Vec<String>,
    advice: Option<Advice>,
}

#[derive(Debug, Deserialize)]
struct Advice {
    cause: String,
    fix: Vec<String>,
}

impl Told {
    /// The cause, if this is in one of the fixes.
    fn cause_with(&self, fix: &str) -> &str {
        let advice = self.advice.as_ref().unwrap_or_else(|| panic!("no advice: {self:?}"));
        assert!(
            advice.fix.iter().any(|line| line.contains(fix)),
            "no {fix:?} in {advice:?}"
        );
        &advice.cause
    }
}

fn service(spec: &str, status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{namespace: shop, name: web}}\nspec: {{clusterIPs: [10.96.0.10, 'fd00:96::10'], \
         {spec}}}\nstatus: {{{status}}}\n---\n"
    )
}

/// With the LoadBalancer address 198.51.100.1.
fn load_balancer(spec: &str) -> String {
    service(
        &format!("type: LoadBalancer, {spec}"),
        "loadBalancer: {ingress: [{ip: 198.51.100.1}]}",
    )
}

const HTTP: &str = "ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]";

fn slice(ports: &str, endpoints: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{namespace: shop, name: web-1, labels: \
         {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: {ports}\nendpoints: {endpoints}\n---\n"
    )
}

/// Endpoints of port `http`.
fn http_slice(endpoints: &str) -> String {
    slice("[{name: http, port: 8080}]", endpoints)
}

const RANGE: &str = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/16]}\n";

/// What is told of a packet to `destination`, with these objects.
fn told(objects: &[&str], packet: [&str; 4], more: &[&str]) -> Told {
    told_in(&directory(&(objects.concat() + RANGE)), packet, more)
}

/// Where an agent finds these objects.
fn directory(objects: &str) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("objects.yaml"), objects).expect("a file");
    directory
}

fn told_in(directory: &TempDir, [from, protocol, source, destination]: [&str; 4], more: &[&str]) -> Told {
    let output = Command::new(env!("CARGO_BIN_EXE_proxy-agent"))
        .args(["trace", "--node-name", "node-a", "-o", "json", "--manifests"])
        .arg(directory.path())
        .args(["--node-address", "172.30.0.1", "--from", from, "--protocol", protocol])
        .args(["--source", source, "--destination", destination])
        .args(more)
        .output()
        .expect("the agent runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

const FROM_POD: [&str; 4] = ["pod", "tcp", "10.244.0.5", "10.96.0.10:80"];
/// From another machine to the LoadBalancer address.
const FROM_OUTSIDE: [&str; 4] = ["uplink", "tcp", "192.0.2.50", "198.51.100.1:80"];

/// behaviour.md 4.1, 2.10, 1.12: each way in which a Service has no endpoint is another fault.
#[test]
fn rule_4_1_why_there_is_no_endpoint_is_told() {
    let web = service(HTTP, "");
    let cases = [
        (String::new(), "has no EndpointSlice", "kube-controller-manager"),
        (slice("[]", "[]"), "its selector matches no pod", "--show-labels"),
        (
            slice("[{name: web, port: 8080}]", "[{addresses: [10.244.1.1]}]"),
            "have 1 endpoint, but no port named \"http\"/TCP: they have one named \"web\" (TCP)",
            "must be the name of a port of the pods' containers",
        ),
        (
            slice(
                "[{name: http, port: 8080, protocol: UDP}]",
                "[{addresses: [10.244.1.1]}]",
            ),
            "they have one named \"http\" (UDP)",
            "with the same protocol",
        ),
        (
            http_slice(
                "[{addresses: [10.244.1.1], conditions: {ready: false, serving: false}}, \
                  {addresses: [10.244.1.2], conditions: {ready: false, serving: true}}, \
                  {addresses: [10.244.1.3], nodeName: node-a, conditions: {ready: false, serving: false, terminating: true}}]",
            ),
            "no endpoint of Service shop/web is ready: 10.244.1.1:8080 (not ready), 10.244.1.2:8080 (serving, not \
             ready), 10.244.1.3:8080 (terminating, here)",
            "readiness probe",
        ),
    ];
    for (slices, cause, fix) in cases {
        let told = told(&[&web, &slices], FROM_POD, &[]);
        assert_eq!(told.verdict, "reject", "{told:?}");
        assert!(told.cause_with(fix).contains(cause), "{told:?}");
    }
    let other_family = told(
        &[&web, &http_slice("[{addresses: [10.244.1.1]}]")],
        ["pod", "tcp", "fd00:244::5", "[fd00:96::10]:80"],
        &[],
    );
    assert!(
        other_family.cause_with("spec.ipFamilies").contains("none of IPv6"),
        "{other_family:?}"
    );
}

/// behaviour.md 4.2, 4.3
#[test]
fn rule_4_2_a_local_policy_without_local_endpoints_is_told() {
    let web = load_balancer(
        "internalTrafficPolicy: Local, externalTrafficPolicy: Local, ports: [{name: http, port: 80, nodePort: 30080}]",
    );
    let elsewhere = http_slice("[{addresses: [10.244.1.1], nodeName: node-b}]");
    let internal = told(&[&web, &elsewhere], FROM_POD, &[]);
    assert_eq!(internal.verdict, "drop");
    assert_eq!(
        internal.cause_with("internalTrafficPolicy: Cluster"),
        "internalTrafficPolicy of Service shop/web is Local, and no endpoint is on this node (there are 10.244.1.1:8080)"
    );
    let external = told(&[&web, &elsewhere], FROM_OUTSIDE, &[]);
    assert!(
        external
            .cause_with("healthCheckNodePort")
            .starts_with("externalTrafficPolicy of Service shop/web is Local"),
        "{external:?}"
    );
    // Nothing tells this node that the client is a pod (5.6).
    let pod = told(
        &[&web, &elsewhere],
        ["pod", "tcp", "10.244.0.5", "198.51.100.1:80"],
        &[],
    );
    assert!(
        pod.cause_with("clusterCIDR").starts_with("externalTrafficPolicy"),
        "{pod:?}"
    );
    let unready = http_slice(
        "[{addresses: [10.244.1.1], nodeName: node-b}, {addresses: [10.244.0.1], nodeName: node-a, conditions: {ready: false}}]",
    );
    let external = told(&[&web, &unready], FROM_OUTSIDE, &[]);
    assert!(
        external
            .cause_with("DaemonSet")
            .contains("the endpoints on this node are not ready: 10.244.0.1:8080"),
        "{external:?}"
    );
}

/// behaviour.md 3.10
#[test]
fn rule_3_10_a_refused_source_is_told() {
    let spec = "loadBalancerSourceRanges: [203.0.113.0/24, 192.0.2.0/28], ports: [{name: http, port: 80}]";
    let told = told(&[&load_balancer(spec)], FROM_OUTSIDE, &[]);
    assert_eq!(told.verdict, "drop");
    assert_eq!(
        told.cause_with("a range that holds 192.0.2.50"),
        "192.0.2.50 is in none of the loadBalancerSourceRanges of Service shop/web: 192.0.2.0/28, 203.0.113.0/24"
    );
    assert!(
        told.decisions
            .iter()
            .any(|line| line == "192.0.2.50 is not in the Service's loadBalancerSourceRanges"),
        "{told:?}"
    );
}

/// behaviour.md 4.6, 4.7, 4.9: what is asked for that isn't there, and what is there.
#[test]
fn rule_4_6_ports_and_addresses_that_are_not_there_are_told() {
    let web = load_balancer(HTTP);
    let tell = |protocol, destination| told(&[&web], ["pod", protocol, "10.244.0.5", destination], &[]);
    let port = tell("tcp", "10.96.0.10:81");
    assert_eq!(
        port.cause_with("add the port to the Service"),
        "Service shop/web has no port 81/TCP: it has 53/UDP (dns), 80/TCP (http)"
    );
    assert_eq!(port.verdict, "reject");
    let ping = tell("icmp", "10.96.0.10");
    assert!(
        ping.cause_with("53/UDP (dns), 80/TCP (http)").contains("answer a ping"),
        "{ping:?}"
    );
    let unallocated = tell("tcp", "10.96.0.11:80");
    assert_eq!(
        unallocated.cause_with("kubectl get services -A"),
        "10.96.0.11 belongs to no Service that this node serves, though it is in a ServiceCIDR"
    );
    let other_port = tell("tcp", "198.51.100.1:81");
    assert_eq!(other_port.verdict, "pass");
    assert!(
        other_port.cause_with("use one of these ports").starts_with(
            "198.51.100.1 is the LoadBalancer address of Service shop/web, for 53/UDP (dns), 80/TCP (http) only"
        ),
        "{other_port:?}"
    );
    let unknown = tell("tcp", "198.51.100.2:80");
    assert_eq!(
        unknown.cause_with("service-proxy-name"),
        "198.51.100.2 belongs to no Service that this node serves"
    );
}

/// behaviour.md 3.6, 3.8
#[test]
fn rule_3_6_where_and_what_node_ports_are_is_told() {
    let spec = "type: NodePort, ports: [{name: http, port: 80, nodePort: 30080}]";
    let web = service(spec, "");
    let directory = directory(&web);
    let config = directory.path().join("config");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nnodePortAddresses: [172.30.0.0/16]\n";
    fs::write(&config, text).expect("a file");
    let config = config.to_str().expect("UTF-8");
    let more = ["--config", config, "--node-address", "172.31.0.1"];
    let tell = |protocol, destination| told_in(&directory, ["uplink", protocol, "192.0.2.50", destination], &more);
    let elsewhere = tell("tcp", "172.31.0.1:30080");
    assert_eq!(
        elsewhere.cause_with("nodePortAddresses"),
        "nodePort 30080 of Service shop/web is not served at 172.31.0.1: it is at 172.30.0.1 only"
    );
    let protocol = tell("udp", "172.30.0.1:30080");
    assert_eq!(
        protocol.cause_with("use that protocol"),
        "nodePort 30080 of Service shop/web is one of TCP, not of UDP"
    );
    let nobody = tell("tcp", "172.30.0.1:30081");
    assert!(
        nobody
            .cause_with("kubectl get services -A")
            .starts_with("no Service has the nodePort 30081/TCP")
    );
    // The node's own servers are no business of the proxy.
    assert!(tell("tcp", "172.30.0.1:22").advice.is_none());
}

/// The way of a packet that is forwarded, in the order in which the datapath decides.
#[test]
fn every_decision_is_told_in_order() {
    let spec = "sessionAffinity: ClientIP, externalTrafficPolicy: Local, loadBalancerSourceRanges: [192.0.2.0/24], ports: \
                [{name: http, port: 80}]";
    let slice = http_slice("[{addresses: [10.244.0.7], nodeName: node-a}]");
    let told = told(&[&load_balancer(spec), &slice], FROM_OUTSIDE, &[]);
    assert_eq!(told.verdict, "forward");
    assert!(told.advice.is_none());
    assert_eq!(
        told.decisions,
        [
            "no flow with these addresses and ports is known",
            "198.51.100.1:80/TCP is the LoadBalancer of shop/web:http",
            "192.0.2.50 is in the Service's loadBalancerSourceRanges",
            "192.0.2.50 is not in a range of pods' addresses",
            "192.0.2.50 is none of this node's addresses",
            "the endpoints for this client are those of traffic policy Local: 1",
            "session affinity remembers no endpoint of 192.0.2.50",
            "endpoint 1 of the list is drawn: 10.244.0.7:8080",
            "the endpoint sees the client's address",
        ]
    );
}
