//! The Helm chart says what the kustomizations say.
//!
//! There is no Helm where tests run: the templates are rendered by a Rust implementation of Go's, with the functions of Helm's
//! that they use. Those are few, so that this is as good as Helm: `toYaml`, `nindent`, `quote` and `sha256sum`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use gtmpl_ng::{Context, Func, FuncError, Template, Value as Argument};
use proxy_tests::skip;
use serde_json::{Value, json};

use super::rendered::{Rendered, manifests, sha256};

fn argument(arguments: &[Argument], index: usize) -> Result<&Argument, FuncError> {
    arguments
        .get(index)
        .ok_or_else(|| FuncError::Generic(format!("no argument {index}")))
}

fn to_yaml(arguments: &[Argument]) -> Result<Argument, FuncError> {
    let yaml = serde_yaml_ng::to_string(argument(arguments, 0)?);
    let yaml = yaml.map_err(|error| FuncError::Generic(error.to_string()))?;
    Ok(Argument::from(yaml.trim_end()))
}

fn nindent(arguments: &[Argument]) -> Result<Argument, FuncError> {
    let width = argument(arguments, 0)?.to_string();
    let width: usize = width
        .parse()
        .map_err(|_| FuncError::Generic(format!("{width}: no width")))?;
    let text = argument(arguments, 1)?.to_string();
    let lines = text.lines().map(|line| format!("\n{}{line}", " ".repeat(width)));
    Ok(Argument::from(lines.collect::<String>()))
}

fn quote(arguments: &[Argument]) -> Result<Argument, FuncError> {
    Ok(Argument::from(format!("{:?}", argument(arguments, 0)?.to_string())))
}

fn sha256sum(arguments: &[Argument]) -> Result<Argument, FuncError> {
    Ok(Argument::from(sha256(argument(arguments, 0)?.to_string())))
}

/// What `helm install --namespace kube-system` would apply with these values set.
fn chart(set: &Value) -> Result<Rendered> {
    let directory = manifests().join("chart");
    let values = fs::read_to_string(directory.join("values.yaml"))?;
    let mut values: Value = serde_yaml_ng::from_str(&values)?;
    merge(&mut values, set);
    let release = json!({"Namespace": "kube-system", "Name": "proxy-agent"});
    let data: Argument = serde_json::from_value(json!({"Values": values, "Release": release}))?;
    let data = Context::from(data);
    let mut objects = Vec::new();
    for template in fs::read_dir(directory.join("templates"))? {
        let path = template?.path();
        let render = || {
            let mut template = Template::default();
            let functions: [(&str, Func); 4] = [
                ("toYaml", to_yaml),
                ("nindent", nindent),
                ("quote", quote),
                ("sha256sum", sha256sum),
            ];
            template.add_funcs(&functions);
            template.parse(fs::read_to_string(&path)?)?;
            Rendered::parse(&template.render(&data)?)
        };
        let rendered: Result<Rendered> = render();
        objects.extend(rendered.with_context(|| path.display().to_string())?.0);
    }
    Ok(Rendered(objects))
}

/// Values as Helm merges them: maps by key, all else as a whole.
fn merge(values: &mut Value, set: &Value) {
    match (values, set) {
        (Value::Object(values), Value::Object(set)) => {
            for (key, value) in set {
                merge(values.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (value, set) => *value = set.clone(),
    }
}

/// The objects without what the two may differ in: kustomize names ConfigMaps after their content, and the chart notes the
/// content's digest, so that pods are replaced when it changes; comments in configurations.
fn comparable(rendered: &Rendered) -> Result<Vec<Value>> {
    let mut text = serde_json::to_string(&rendered.0)?;
    for object in rendered.0.iter().filter(|object| object["kind"] == "ConfigMap") {
        let name = object["metadata"]["name"].as_str().context("no name")?;
        let hashed = name.rsplit_once('-').filter(|(_, hash)| hash.len() == 10);
        if let Some((plain, _)) = hashed {
            text = text.replace(&format!("{name:?}"), &format!("{plain:?}"));
        }
    }
    let mut objects: Vec<Value> = serde_json::from_str(&text)?;
    for object in &mut objects {
        if let Some(metadata) = object["spec"]["template"]["metadata"].as_object_mut() {
            metadata.remove("annotations");
        }
        if object["kind"] == "ConfigMap"
            && let Some(data) = object["data"].as_object_mut()
        {
            for value in data.values_mut() {
                *value = serde_yaml_ng::from_str(value.as_str().context("no text")?)?;
            }
        }
        // Indexing makes what isn't there.
        prune(object);
    }
    objects.sort_by_key(|object| format!("{} {}", object["kind"], object["metadata"]["name"]));
    Ok(objects)
}

fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|_, value| !value.is_null());
    }
}

#[test]
fn the_chart_and_the_kustomizations_are_alike() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/manifests/everything");
    let everything = json!({
        "mountBpffs": true, "podMonitor": true, "nodeSelector": {"service-proxy": "proxy-agent"},
    });
    let kind = json!({
        "mountBpffs": true,
        "image": {"tag": "dev"},
        "apiServer": {"host": "proxy-control-plane"},
        "agentConfig": {"cgroup": "/host/sys/fs/cgroup"},
    });
    for (directory, values) in [
        (manifests().join("base"), json!({})),
        (manifests().join("kind"), kind),
        (
            manifests().join("kubeadm"),
            json!({"kubeadmConfigMap": "proxy-agent-kubeadm"}),
        ),
        (here, everything),
    ] {
        let Some(kustomization) = Rendered::kustomization(&directory)? else {
            skip!("no kubectl")
        };
        let (kustomization, chart) = (comparable(&kustomization)?, comparable(&chart(&values)?)?);
        let kinds = |objects: &[Value]| {
            objects
                .iter()
                .map(|object| object["kind"].to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(kinds(&kustomization), kinds(&chart), "{}", directory.display());
        for (one, other) in kustomization.iter().zip(&chart) {
            assert_eq!(one, other, "{}", directory.display());
        }
    }
    Ok(())
}

#[test]
fn values_of_the_chart_reach_the_configuration() -> Result<()> {
    let plain = chart(&json!({}))?;
    let changed = chart(&json!({
        "config": {"clusterCIDR": "10.244.0.0/16", "nodePortAddresses": ["primary", "localhost"]},
        "agentConfig": {"socketLb": "all", "tableSizes": {"slots": 65536}},
    }))?;
    let data = |rendered: &Rendered, key: &str| -> Result<Value> {
        let mut maps = rendered.0.iter().filter(|object| object["kind"] == "ConfigMap");
        let text = maps.find_map(|map| map["data"][key].as_str());
        Ok(serde_yaml_ng::from_str(text.with_context(|| key.to_owned())?)?)
    };
    let config = data(&changed, "config.yaml")?;
    assert_eq!(config["clusterCIDR"], "10.244.0.0/16");
    assert_eq!(config["nodePortAddresses"], json!(["primary", "localhost"]));
    let agent = data(&changed, "agent.yaml")?;
    assert_eq!(agent["socketLb"], "all");
    assert_eq!(agent["tableSizes"]["slots"], 65536);
    let template = |rendered: &Rendered| {
        rendered
            .the::<Value>("DaemonSet")
            .map(|set| set["spec"]["template"].clone())
    };
    assert_ne!(template(&plain)?, template(&changed)?, "pods are replaced");
    Ok(())
}
