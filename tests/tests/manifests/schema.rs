//! Manifests against the schemas of the API: the types of k8s-openapi are generated from its OpenAPI document.
//!
//! They leave out what they don't know and fill in what is missing, so an object goes through its type and back: what is lost is
//! no field of the API, and what is added would have been required.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
    rbac::v1::{ClusterRole, ClusterRoleBinding},
};
use proxy_tests::skip;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::rendered::{Rendered, manifests};

/// The part of Prometheus' operator's PodMonitor that is used (monitoring.coreos.com/v1), whose schema no crate at hand has.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: PodMonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMetricsEndpoint {
    port: String,
    honor_labels: bool,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

/// Checks an object against the schema of its type.
fn check(object: &Value) -> Result<()> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        ("apps/v1", "DaemonSet") => round_trip::<DaemonSet>(object),
        ("apps/v1", "Deployment") => round_trip::<Deployment>(object),
        ("discovery.k8s.io/v1", "EndpointSlice") => round_trip::<EndpointSlice>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => round_trip::<PodMonitor>(object),
        ("networking.k8s.io/v1", "ServiceCIDR") => round_trip::<ServiceCIDR>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => round_trip::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => round_trip::<ClusterRoleBinding>(object),
        ("v1", "ConfigMap") => round_trip::<ConfigMap>(object),
        ("v1", "Namespace") => round_trip::<Namespace>(object),
        ("v1", "Node") => round_trip::<Node>(object),
        ("v1", "Pod") => round_trip::<Pod>(object),
        ("v1", "Service") => round_trip::<Service>(object),
        ("v1", "ServiceAccount") => round_trip::<ServiceAccount>(object),
        (version, kind) => bail!("no schema of {version} {kind}"),
    }
}

fn round_trip<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let typed: T = serde_json::from_value(object.clone())?;
    let back = serde_json::to_value(typed)?;
    let unknown = lacking("", object, &back);
    ensure!(unknown.is_empty(), "unknown: {}", unknown.join(", "));
    let missing = lacking("", &back, object);
    ensure!(missing.is_empty(), "missing: {}", missing.join(", "));
    Ok(())
}

/// Paths of what `one` has, and `other` lacks or has otherwise.
fn lacking(path: &str, one: &Value, other: &Value) -> Vec<String> {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            let fields = one.iter().flat_map(|(name, value)| {
                let path = format!("{path}.{name}");
                lacking(&path, value, other.get(name).unwrap_or(&Value::Null))
            });
            fields.collect()
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let pairs = one.iter().zip(other).enumerate();
            pairs
                .flat_map(|(index, (one, other))| lacking(&format!("{path}[{index}]"), one, other))
                .collect()
        }
        (Value::Null, _) => Vec::new(),
        (one, other) if one == other => Vec::new(),
        _ => vec![path.to_owned()],
    }
}

#[test]
fn manifests_are_as_the_api_wants_them() -> Result<()> {
    let mut rendered = Vec::new();
    for name in [
        "base",
        "kind",
        "kubeadm",
        "cleanup",
        "../tests/tests/manifests/everything",
    ] {
        let Some(objects) = Rendered::kustomization(&manifests().join(name))? else {
            skip!("no kubectl")
        };
        rendered.push((PathBuf::from(name), objects));
    }
    for directory in ["examples", "../tests/kind/workload"] {
        for file in fs::read_dir(manifests().join(directory)).with_context(|| directory.to_owned())? {
            let path = file?.path();
            rendered.push((path.clone(), Rendered::file(&path)?));
        }
    }
    for (path, objects) in rendered {
        for object in &objects.0 {
            let name = &object["metadata"]["name"];
            check(object).with_context(|| format!("{}: {} {name}", path.display(), object["kind"]))?;
        }
    }
    Ok(())
}

#[test]
fn what_the_api_does_not_want_is_noticed() -> Result<()> {
    let mut set = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "proxy-agent"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "agent", "image": "agent", "resources": {"limits": {"memory": "1Gi"}}}]},
            },
        },
    });
    check(&set)?;
    let reason = |set: &Value| format!("{:#}", check(set).unwrap_err());
    let container = &mut set["spec"]["template"]["spec"]["containers"][0];
    container["imagePullPolice"] = "Never".into();
    assert_eq!(
        reason(&set),
        "unknown: .spec.template.spec.containers[0].imagePullPolice"
    );
    set["spec"]["template"]["spec"]["containers"][0] = json!({"image": "agent"});
    assert_eq!(reason(&set), "missing: .spec.template.spec.containers[0].name");
    set["spec"]["template"]["spec"]["containers"][0] = json!({"name": 7});
    assert!(reason(&set).contains("expected a string"));
    Ok(())
}
