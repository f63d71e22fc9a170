//! What `kubectl apply --kustomize manifests/...` would apply.

mod chart;
mod container;
mod image;
mod rendered;
mod schema;

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Parser as _;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{ConfigMap, Container},
    rbac::v1::ClusterRole,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use proxy_tests::{lab::agent_binary, skip};

use self::rendered::{Rendered, manifests};

#[test]
fn the_agent_may_read_its_input_and_create_events() -> Result<()> {
    let Some(rendered) = Rendered::kustomization(&manifests().join("base"))? else {
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
    let Some(rendered) = Rendered::kustomization(&manifests().join("base"))? else {
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
    let Some(rendered) = Rendered::kustomization(&manifests().join("base"))? else {
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

/// One node at a time, and the next one only after this one's agent is well; forwarding goes on meanwhile, which the scenarios of
/// restarts and upgrades show.
#[test]
fn an_update_takes_one_node_at_a_time() -> Result<()> {
    let Some(rendered) = Rendered::kustomization(&manifests().join("base"))? else {
        skip!("no kubectl")
    };
    let spec = rendered.the::<DaemonSet>("DaemonSet")?.spec.context("no spec")?;
    assert!(spec.min_ready_seconds.unwrap_or_default() > 0);
    let update = spec.update_strategy.context("no strategy")?;
    assert_eq!(update.type_.as_deref(), Some("RollingUpdate"));
    let rolling = update.rolling_update.context("no numbers")?;
    assert_eq!(rolling.max_unavailable, Some(IntOrString::Int(1)));
    assert_eq!(rolling.max_surge, None, "two agents can't share a node");
    let pod = rendered.pod()?;
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let probed = |container: &Container| container.readiness_probe.is_some() && container.liveness_probe.is_some();
    assert!(pod.containers.iter().all(probed));
    Ok(())
}

/// Only the component for nodes without a BPF file system asks for a privileged container.
#[test]
fn nothing_is_privileged_but_the_mount() -> Result<()> {
    for (name, expected) in [("base", &[][..]), ("kubeadm", &[]), ("kind", &["mount-bpffs"])] {
        let Some(rendered) = Rendered::kustomization(&manifests().join(name))? else {
            skip!("no kubectl")
        };
        let pod = rendered.pod()?;
        let containers = pod.containers.iter().chain(pod.init_containers.iter().flatten());
        let privileged = containers.filter(|container| {
            let context = container.security_context.as_ref();
            context.and_then(|context| context.privileged).unwrap_or_default()
        });
        let names: Vec<_> = privileged.map(|container| container.name.as_str()).collect();
        assert_eq!(names, expected, "{name}");
        assert!(
            !pod.host_pid.unwrap_or_default() && !pod.host_ipc.unwrap_or_default(),
            "{name}"
        );
    }
    Ok(())
}

/// The container that mounts, and the one that cleans up, are told commands that there are.
#[test]
fn other_containers_understand_their_arguments() -> Result<()> {
    for name in ["kind", "cleanup"] {
        let Some(rendered) = Rendered::kustomization(&manifests().join(name))? else {
            skip!("no kubectl")
        };
        for container in rendered.pod()?.init_containers.into_iter().flatten() {
            let arguments = container.args.unwrap_or_default();
            proxy_agent::cli::Cli::try_parse_from(["proxy-agent".to_owned()].into_iter().chain(arguments))?;
        }
    }
    Ok(())
}

/// A kubeadm cluster's own configuration is used as it is, and tells how the API server is reached.
#[test]
fn the_overlay_for_kubeadm_uses_what_kubeadm_wrote() -> Result<()> {
    let Some(rendered) = Rendered::kustomization(&manifests().join("kubeadm"))? else {
        skip!("no kubectl")
    };
    let agent = rendered.agent()?;
    let arguments = agent.args.unwrap_or_default();
    let config = arguments.iter().find_map(|argument| argument.strip_prefix("--config="));
    assert_eq!(config, Some("/var/lib/kube-proxy/config.conf"));
    // Where kubeadm's configuration says that its kubeconfig is.
    let mounts = agent.volume_mounts.unwrap_or_default();
    let mount = mounts.iter().find(|mount| mount.mount_path == "/var/lib/kube-proxy");
    let volume = mount.context("no mount")?.name.clone();
    let volumes = rendered.pod()?.volumes.unwrap_or_default();
    let source = volumes.into_iter().find(|found| found.name == volume);
    let map = source.and_then(|volume| volume.config_map).context("no ConfigMap")?;
    assert_eq!(map.name, "proxy-agent-kubeadm");
    Ok(())
}

#[test]
fn the_overlay_for_kind_names_image_and_api_server() -> Result<()> {
    let Some(rendered) = Rendered::kustomization(&manifests().join("kind"))? else {
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
