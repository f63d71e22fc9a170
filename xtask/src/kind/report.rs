//! What is to be looked at after a failure: logs, objects, tables, and what the proxy says of a connection to each Service.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::cluster::{Cluster, NAMESPACE};
use crate::process;

/// Collects what there is; what can't be had is told, and the rest goes on.
pub(super) fn collect(cluster: &Cluster, directory: &Path) {
    process::step("collecting logs, tables and traces");
    // What an earlier run left is another story. It need not be there.
    let _ = fs::remove_dir_all(directory);
    let outcomes = [
        cluster.export_logs(&directory.join("logs")),
        objects(cluster, directory),
        agents(cluster, directory),
    ];
    for error in outcomes.into_iter().filter_map(Result::err) {
        eprintln!("{error:#}");
    }
}

fn objects(cluster: &Cluster, directory: &Path) -> Result<()> {
    let kinds = "nodes,pods,services,endpointslices,servicecidrs,daemonsets,events";
    let arguments = ["get", kinds, "--all-namespaces", "--output", "yaml"];
    write(
        directory,
        "objects.yaml",
        process::output(cluster.kubectl().args(arguments)),
    )
}

fn agents(cluster: &Cluster, directory: &Path) -> Result<()> {
    let names = "{range .items[*]}{.metadata.name} {.spec.nodeName}{\"\\n\"}{end}";
    let selector = "pods --selector=app.kubernetes.io/name=proxy-agent";
    let path = format!("jsonpath={names}");
    let mut command = cluster.kubectl();
    command
        .arg("get")
        .args(selector.split(' '))
        .args(["--namespace", "kube-system", "--output", &path]);
    let agents = process::output(&mut command)?;
    for (pod, node) in agents.lines().filter_map(|line| line.split_once(' ')) {
        let ask = |arguments: &[&str]| {
            let mut command = cluster.kubectl();
            command.args(["exec", "--namespace", "kube-system", pod, "--", "proxy-agent"]);
            process::output(command.args(arguments))
        };
        let of_node = directory.join(node);
        for listing in ["status", "services", "flows"] {
            write(&of_node, &format!("{listing}.txt"), ask(&[listing]))?;
        }
        write(&of_node, "traces.txt", traces(cluster, ask))?;
    }
    Ok(())
}

/// What becomes of a connection from each pod of the workload to each Service.
fn traces(cluster: &Cluster, ask: impl Fn(&[&str]) -> Result<String>) -> Result<String> {
    let list = |kind: &str, path: &str| {
        let path = format!("jsonpath={{range .items[*]}}{{.metadata.name}} {path}{{\"\\n\"}}{{end}}");
        process::output(
            cluster
                .kubectl()
                .args(["get", kind, "--namespace", NAMESPACE, "--output", &path]),
        )
    };
    let pods = list("pods", "{.status.podIP}")?;
    let services = list("services", "{.spec.clusterIP}")?;
    let mut text = String::new();
    for (service, to) in services.lines().filter_map(|line| line.split_once(' ')) {
        for (pod, from) in pods.lines().filter_map(|line| line.split_once(' ')) {
            // A pod's first address is of IPv4.
            if to.contains(':') != from.contains(':') {
                continue;
            }
            let (source, destination) = (format!("{from}:40000"), format!("{to}:80"));
            let arguments = [
                "trace",
                "--from",
                "pod",
                "--protocol",
                "tcp",
                "--source",
                &source,
                "--destination",
                &destination,
            ];
            let said = ask(&arguments).unwrap_or_else(|error| format!("{error:#}\n"));
            text.extend([
                "== ",
                pod,
                " to ",
                service,
                ": ",
                &arguments.join(" "),
                "\n",
                &said,
                "\n",
            ]);
        }
    }
    Ok(text)
}

fn write(directory: &Path, name: &str, content: Result<String>) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let path = directory.join(name);
    fs::write(&path, content.unwrap_or_else(|error| format!("{error:#}\n"))).with_context(|| path.display().to_string())
}
