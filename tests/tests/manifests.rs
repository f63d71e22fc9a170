//! What `kubectl apply --kustomize manifests/...` would apply.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container},
    rbac::v1::ClusterRole,
};
use proxy_tests::{
    lab::{Family, Lab, Protocol, Service, address, agent_binary},
    require_root, skip,
};
use serde::de::{Deserialize as _, DeserializeOwned};
use serde_yaml_ng::Value;

fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests")
}

/// The objects of a kustomization.
struct Rendered(Vec<Value>);

impl Rendered {
    /// `None` without kubectl.
    fn render(name: &str) -> Result<Option<Self>> {
        let output = match Command::new("kubectl")
            .arg("kustomize")
            .arg(manifests().join(name))
            .output()
        {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            output => output.context("kubectl")?,
        };
        ensure!(
            output.status.success(),
            "kubectl kustomize: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let objects = serde_yaml_ng::Deserializer::from_slice(&output.stdout)
            .map(Value::deserialize)
            .collect::<Result<_, _>>()
            .context("kubectl kustomize printed no YAML")?;
        Ok(Some(Self(objects)))
    }

    /// The objects of a kind.
    fn all<T: DeserializeOwned>(&self, kind: &str) -> Result<Vec<T>> {
        let objects = self.0.iter().filter(|object| object["kind"] == kind).cloned();
        objects
            .map(|object| serde_yaml_ng::from_value(object).with_context(|| kind.to_owned()))
            .collect()
    }

    /// The one object of a kind.
    fn the<T: DeserializeOwned>(&self, kind: &str) -> Result<T> {
        let mut all = self.all(kind)?;
        ensure!(all.len() == 1, "{} of kind {kind}", all.len());
        all.pop().context("there is one")
    }

    /// The agent's container.
    fn agent(&self) -> Result<Container> {
        let pod = self
            .the::<DaemonSet>("DaemonSet")?
            .spec
            .unwrap_or_default()
            .template
            .spec
            .unwrap_or_default();
        pod.containers.into_iter().next().context("no container")
    }
}

#[test]
fn the_agent_may_read_its_input_and_create_events() -> Result<()> {
    let Some(rendered) = Rendered::render("base")? else {
        skip!("no kubectl")
    };
    let role: ClusterRole = rendered.the("ClusterRole")?;
    let mut allowed = BTreeMap::new();
    for rule in role.rules.unwrap_or_default() {
        for resource in rule.resources.unwrap_or_default() {
            allowed.insert(resource, rule.verbs.clone());
        }
    }
    let verbs = |verbs: &[&str]| verbs.iter().map(ToString::to_string).collect::<Vec<_>>();
    let expected = [
        ("endpointslices", verbs(&["list", "watch"])),
        ("events", verbs(&["create"])),
        ("nodes", verbs(&["list", "watch"])),
        ("servicecidrs", verbs(&["list", "watch"])),
        ("services", verbs(&["list", "watch"])),
    ];
    assert_eq!(
        allowed,
        expected.map(|(resource, verbs)| (resource.to_owned(), verbs)).into()
    );
    Ok(())
}

#[test]
fn the_agent_keeps_three_capabilities() -> Result<()> {
    let Some(rendered) = Rendered::render("base")? else {
        skip!("no kubectl")
    };
    let context = rendered.agent()?.security_context.context("no security context")?;
    let capabilities = context.capabilities.context("no capabilities")?;
    assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
    assert_eq!(
        capabilities.add,
        Some(["BPF", "NET_ADMIN", "PERFMON"].map(str::to_owned).to_vec())
    );
    assert_eq!(context.read_only_root_filesystem, Some(true));
    assert!(!context.privileged.unwrap_or_default());
    Ok(())
}

#[test]
fn the_agent_understands_its_arguments_and_its_configuration() -> Result<()> {
    let Some(rendered) = Rendered::render("base")? else {
        skip!("no kubectl")
    };
    let arguments = rendered.agent()?.args.unwrap_or_default();
    proxy_agent::cli::Cli::try_parse_from(["proxy-agent".to_owned()].into_iter().chain(arguments))?;
    let output = Command::new(agent_binary()?)
        .args(["plan", "-o", "json", "--node-name", "node", "--manifests"])
        .arg(manifests().join("examples"))
        .arg("--config")
        .arg(manifests().join("base/config.yaml"))
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn the_agent_serves_with_the_capabilities_it_is_given() -> Result<()> {
    require_root!();
    let Some(rendered) = Rendered::render("base")? else {
        skip!("no kubectl")
    };
    let context = rendered.agent()?.security_context.context("no security context")?;
    let granted = context
        .capabilities
        .and_then(|capabilities| capabilities.add)
        .unwrap_or_default();
    let bounds = granted
        .iter()
        .fold("-all".to_owned(), |bounds, name| bounds + ",+" + &name.to_lowercase());
    Lab::builder().node("node", &["client", "web"]).run(|lab| {
        lab.serve("web", 8080)?;
        let service = Service::new("default", "web", address::cluster(80))
            .port("http", Protocol::Tcp, 80, 8080)
            .pods(&[lab.pod("web")]);
        lab.apply(&service)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--no-new-privs", "--inh-caps=-all", "--bounding-set", &bounds])
            .arg(agent_binary()?)
            .args(["run", "--node-name", "node", "--manifests"])
            .arg(lab.manifests())
            .arg("--pin-dir")
            .arg(lab.pin_directory("node"))
            .stderr(File::create(lab.agent_log("node"))?);
        let mut agent = lab
            .node("node")
            .namespace()
            .run(|| command.spawn())
            .context("setpriv")?;
        lab.adopt(&agent)?;
        let served = lab.wait_for_service("node", &service);
        let answered = lab.tcp_request("client", service.frontend(Family::V4, 80));
        agent.kill()?;
        agent.wait()?;
        served.with_context(|| fs::read_to_string(lab.agent_log("node")).unwrap_or_default())?;
        assert_eq!(answered?.backend, "web");
        Ok(())
    })
}

#[test]
fn the_overlay_for_kind_names_image_and_api_server() -> Result<()> {
    let Some(rendered) = Rendered::render("kind")? else {
        skip!("no kubectl")
    };
    let agent = rendered.agent()?;
    assert_eq!(agent.image.as_deref(), Some("proxy-agent:dev"));
    let variable = agent
        .env
        .iter()
        .flatten()
        .find(|variable| variable.name == "KUBERNETES_SERVICE_HOST");
    let source = variable.and_then(|variable| variable.value_from.as_ref()?.config_map_key_ref.as_ref());
    let source = source.context("KUBERNETES_SERVICE_HOST comes from no ConfigMap")?;
    let maps: Vec<ConfigMap> = rendered.all("ConfigMap")?;
    let map = maps
        .iter()
        .find(|map| map.metadata.name.as_ref() == Some(&source.name))
        .context("no such ConfigMap")?;
    assert_eq!(
        map.data
            .iter()
            .flatten()
            .find(|(key, _)| **key == source.key)
            .map(|(_, host)| host.as_str()),
        Some("proxy-control-plane")
    );
    Ok(())
}
