//! The `plan` command (design.md 7).

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use tempfile::TempDir;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec: {anything: goes}
---
apiVersion: v1
kind: List
items:
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {namespace: shop, name: web-4, labels: {kubernetes.io/service-name: web}}
  addressType: IPv4
  ports: [{name: http, port: 8080}]
  endpoints: [{addresses: [10.0.0.2]}, {addresses: [10.0.0.1]}]
- apiVersion: discovery.k8s.io/v1
  kind: EndpointSlice
  metadata: {namespace: shop, name: web-6, labels: {kubernetes.io/service-name: web}}
  addressType: IPv6
  ports: [{name: http, port: 8080}]
  endpoints: [{addresses: ['fd00::1']}]
";

struct Outcome {
    success: bool,
    stdout: String,
    stderr: String,
}

fn plan(directory: &Path, arguments: &[&str]) -> Outcome {
    let output = Command::new(env!("CARGO_BIN_EXE_proxy-agent"))
        .args(["plan", "--node-name", "node-a", "--manifests"])
        .arg(directory)
        .args(arguments)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the agent runs");
    Outcome {
        success: output.status.success(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        fs::write(directory.path().join(name), text).expect("a file");
    }
    directory
}

fn frontend(port_name: &str, protocol: &str, address: &str, port: u16, cluster: &Value) -> Value {
    json!({
        "namespace": "shop", "service": "web", "port_name": port_name, "protocol": protocol, "kind": "ClusterIP",
        "address": address, "port": port, "cluster": cluster, "local": null,
        "has_endpoints": cluster.as_array().is_some_and(|list| !list.is_empty()),
    })
}

#[test]
fn json_is_what_design_md_7_promises() {
    let directory = directory(&[("web.yaml", SERVICE)]);
    let outcome = plan(directory.path(), &["--node-address", "192.0.2.1", "-o", "json"]);
    let expected = json!({"frontends": [
        frontend("dns", "UDP", "10.96.0.10", 53, &json!([])),
        frontend("dns", "UDP", "fd00:96::10", 53, &json!([])),
        frontend("http", "TCP", "10.96.0.10", 80, &json!(["10.0.0.1:8080", "10.0.0.2:8080"])),
        frontend("http", "TCP", "fd00:96::10", 80, &json!(["[fd00::1]:8080"])),
    ]});
    assert_eq!(serde_json::from_str::<Value>(&outcome.stdout).expect("JSON"), expected);
    assert_eq!((outcome.success, outcome.stderr.as_str()), (true, ""));
    let yaml = plan(directory.path(), &["-o", "yaml"]).stdout;
    assert_eq!(serde_yaml_ng::from_str::<Value>(&yaml).expect("YAML"), expected);
}

const EVERY_KIND: &str = "
apiVersion: v1
kind: Service
metadata: {namespace: shop, name: web}
spec:
  type: LoadBalancer
  clusterIPs: [10.96.0.10, 'fd00:96::10']
  externalIPs: [192.0.2.1]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [172.30.0.0/16]
  ports: [{name: http, port: 80, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: shop, name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.2], nodeName: node-b}, {addresses: [10.0.0.1], nodeName: node-a}]
";

#[test]
fn json_has_every_kind_and_null_for_what_is_not_used() {
    let directory = directory(&[("web.yaml", EVERY_KIND)]);
    let outcome = plan(directory.path(), &["--node-address", "172.30.0.1", "-o", "json"]);
    let row = |kind: &str, address: Value, port: u16, cluster: Value, local: Value| {
        let has_endpoints = [&cluster, &local]
            .iter()
            .any(|list| list.as_array().is_some_and(|list| !list.is_empty()));
        json!({
            "namespace": "shop", "service": "web", "port_name": "http", "protocol": "TCP", "kind": kind,
            "address": address, "port": port, "cluster": cluster, "local": local, "has_endpoints": has_endpoints,
        })
    };
    let (all, here) = (json!(["10.0.0.1:8080", "10.0.0.2:8080"]), json!(["10.0.0.1:8080"]));
    let expected = json!({"frontends": [
        row("ClusterIP", json!("10.96.0.10"), 80, Value::Null, here.clone()),
        row("ClusterIP", json!("fd00:96::10"), 80, Value::Null, json!([])),
        row("ExternalIP", json!("192.0.2.1"), 80, all.clone(), here.clone()),
        row("LoadBalancer", json!("198.51.100.1"), 80, all.clone(), here.clone()),
        row("NodePort", Value::Null, 30080, json!([]), json!([])),
        row("NodePort", Value::Null, 30080, all, here),
    ]});
    assert_eq!(serde_json::from_str::<Value>(&outcome.stdout).expect("JSON"), expected);
    assert_eq!((outcome.success, outcome.stderr.as_str()), (true, ""));
}

#[test]
fn the_table_says_whom_a_frontend_admits_hides_and_keeps() {
    let directory = directory(&[("web.yaml", EVERY_KIND)]);
    let table = plan(directory.path(), &["--node-address", "172.30.0.1"]).stdout;
    let row = |kind: &str| {
        let line = table
            .lines()
            .find(|line| line.contains(kind))
            .expect("a row of each kind");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        row("LoadBalancer"),
        "shop/web:http LoadBalancer 198.51.100.1:80/TCP 172.30.0.0/16 10.0.0.1:8080 10.0.0.1:8080 this host 10800 s"
    );
    assert_eq!(
        row("ExternalIP"),
        "shop/web:http ExternalIP 192.0.2.1:80/TCP all 10.0.0.1:8080 10.0.0.1:8080 this host 10800 s"
    );
}

#[test]
fn the_table_says_what_happens_without_endpoints() {
    let directory = directory(&[("web.yaml", SERVICE)]);
    let table = plan(directory.path(), &[]).stdout;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        [
            "SERVICE",
            "KIND",
            "FRONTEND",
            "SOURCES",
            "CLUSTER",
            "LOCAL",
            "MASQUERADED",
            "AFFINITY"
        ]
    );
    assert_eq!(
        rows[1],
        [
            "shop/web:dns",
            "ClusterIP",
            "10.96.0.10:53/UDP",
            "all",
            "none:",
            "reject",
            "-",
            "-",
            "-"
        ]
    );
    assert_eq!(
        rows[3],
        [
            "shop/web:http",
            "ClusterIP",
            "10.96.0.10:80/TCP",
            "all",
            "10.0.0.1:8080",
            "-",
            "-",
            "-"
        ]
    );
    assert_eq!(rows[4], ["10.0.0.2:8080"]);
}

#[test]
fn problems_go_to_stderr_and_the_rest_is_planned() {
    let directory = directory(&[("bad.yaml", "kind: [\n"), ("web.yaml", SERVICE)]);
    let outcome = plan(directory.path(), &["-o", "json"]);
    assert!(outcome.success);
    assert!(outcome.stderr.contains("bad.yaml document 1: "), "{}", outcome.stderr);
    let listing: Value = serde_json::from_str(&outcome.stdout).expect("JSON");
    assert_eq!(listing["frontends"].as_array().map(Vec::len), Some(4));
}

#[test]
fn what_means_nothing_in_the_configuration_is_said() {
    let text =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\niptables: {masqueradeBit: 15}\n";
    let directory = directory(&[("web.yaml", SERVICE), ("config", text)]);
    let config = directory.path().join("config");
    let outcome = plan(directory.path(), &["--config", config.to_str().expect("UTF-8")]);
    assert!(outcome.success);
    assert!(
        outcome
            .stderr
            .ends_with("mean nothing to this proxy: iptables.masqueradeBit\n"),
        "{}",
        outcome.stderr
    );
}

/// behaviour.md 3.6
#[test]
fn a_family_that_is_opened_by_silence_is_said() {
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nnodePortAddresses: [192.0.2.0/24]\n";
    let directory = directory(&[("web.yaml", SERVICE), ("config", text)]);
    let config = directory.path().join("config");
    let outcome = plan(directory.path(), &["--config", config.to_str().expect("UTF-8")]);
    assert!(outcome.success);
    let expected = "nodePortAddresses: no range of IPv6: nodePorts are served on all IPv6 addresses of the node\n";
    assert!(outcome.stderr.ends_with(expected), "{}", outcome.stderr);
}

#[test]
fn what_can_not_be_read_at_all_is_an_error() {
    let directory = directory(&[("web.yaml", SERVICE), ("config", "kind: Pod\n")]);
    let missing = plan(&directory.path().join("missing"), &["-o", "json"]);
    assert_eq!((missing.success, missing.stdout.as_str()), (false, ""));
    assert!(missing.stderr.contains("missing: can't be read"), "{}", missing.stderr);
    let config = directory.path().join("config");
    let config = plan(directory.path(), &["--config", config.to_str().expect("UTF-8")]);
    assert!(!config.success);
    assert!(config.stderr.contains("config"), "{}", config.stderr);
}
