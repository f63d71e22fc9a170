//! An agent that can't start says why and what to do, ends with status 1, and leaves alone what it finds.

use std::{
    fs,
    io::Read as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use proxy_tests::{
    lab::{AgentOptions, Lab, PATIENCE, agent_binary, wait_until},
    require_root,
};

use crate::{cluster::NODE, log::Log};

/// A node without pods.
fn lab(scenario: impl FnOnce(&mut Lab) -> Result<()>) -> Result<()> {
    Lab::builder().node(NODE, &[]).run(scenario)
}

/// Runs an agent on the node, under a wrapper perhaps, that must end by itself; returns what it said last.
fn refusal(lab: &Lab, wrapper: &[&str], arguments: &[&str]) -> Result<String> {
    let agent = agent_binary()?.display().to_string();
    let words = [wrapper, &[&agent, "run", "--node-name", NODE], arguments].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = lab
        .node(NODE)
        .namespace()
        .run(|| command.spawn())
        .with_context(|| words[0].to_owned())?;
    lab.adopt(&child)?;
    let ended = wait_until("the agent ends", PATIENCE, || child.try_wait().transpose());
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let mut said = String::new();
    child.stderr.take().context("a pipe")?.read_to_string(&mut said)?;
    let status = ended.with_context(|| said.clone())??;
    ensure!(status.code() == Some(1), "it ended with {status}: {said}");
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.starts_with("error: "), "its last words: {said}");
    Ok(last.to_owned())
}

/// The arguments of an agent that would start.
struct Arguments {
    manifests: String,
    pins: String,
}

impl Arguments {
    fn of(lab: &Lab) -> Self {
        Self {
            manifests: lab.manifests().display().to_string(),
            pins: lab.pin_directory(NODE).display().to_string(),
        }
    }

    fn words(&self) -> [&str; 4] {
        ["--manifests", &self.manifests, "--pin-dir", &self.pins]
    }
}

fn expect(said: &str, parts: &[&str]) -> Result<()> {
    parts.iter().try_for_each(|part| {
        ensure!(said.contains(part), "{part:?} is missing: {said}");
        Ok(())
    })
}

#[test]
fn a_place_that_is_no_bpf_file_system_is_refused() -> Result<()> {
    require_root!();
    lab(|lab| {
        let arguments = Arguments::of(lab);
        for place in [lab.directory().join("pins"), PathBuf::from("/nowhere/pins")] {
            let place = place.display().to_string();
            let said = refusal(lab, &[], &["--manifests", &arguments.manifests, "--pin-dir", &place])?;
            expect(&said, &[&place, "not on a BPF file system", "mount -t bpf bpf"])?;
            ensure!(!PathBuf::from(place).exists(), "it made a directory there");
        }
        Ok(())
    })
}

#[test]
fn a_missing_permission_is_named() -> Result<()> {
    require_root!();
    lab(|lab| {
        let arguments = Arguments::of(lab);
        let wrappers: [&[&str]; 2] = [
            &["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"],
            &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
        ];
        for (wrapper, pins) in wrappers.into_iter().zip(["root", "nobody"]) {
            let pins = lab.pin_directory(pins).display().to_string();
            let said = refusal(lab, wrapper, &["--manifests", &arguments.manifests, "--pin-dir", &pins])?;
            expect(&said, &["no permission", "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"])?;
        }
        Ok(())
    })
}

#[test]
fn an_unusable_configuration_is_refused() -> Result<()> {
    require_root!();
    lab(|lab| {
        let arguments = Arguments::of(lab);
        let file = lab.directory().join("config");
        let path = file.display().to_string();
        let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        fs::write(&file, format!("{header}iptables: {{masqueradAll: true}}\n"))?;
        let said = refusal(lab, &[], &[&arguments.words()[..], &["--config", &path]].concat())?;
        expect(
            &said,
            &[&path, "iptables.masqueradAll", "unknown field", "masqueradeAll"],
        )?;
        fs::remove_file(&file)?;
        let said = refusal(lab, &[], &[&arguments.words()[..], &["--config", &path]].concat())?;
        expect(&said, &[&path, "No such file"])?;
        let header = "apiVersion: proxyagent.config/v1alpha1\nkind: ProxyAgentConfiguration\n";
        fs::write(&file, format!("{header}socketLB: all\n"))?;
        let said = refusal(lab, &[], &[&arguments.words()[..], &["--agent-config", &path]].concat())?;
        expect(&said, &[&path, "socketLB", "unknown field", "socketLb"])
    })
}

/// behaviour.md 8.9, 8.10: what means nothing here is told once, and another configuration takes another start.
#[test]
fn rule_8_10_a_changed_configuration_ends_the_agent() -> Result<()> {
    require_root!();
    lab(|lab| {
        let file = lab.directory().join("config");
        let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
                    featureGates: {A: true}\nportRange: 1-2\n";
        fs::write(&file, text)?;
        let log = Log::from_now(lab, NODE);
        let mut agent = lab.start_agent_with(NODE, AgentOptions::configured(&file))?;
        ensure!(
            log.count(&["WARN", "mean nothing", "featureGates.A, portRange"]) == 1,
            "one warning"
        );
        ensure!(log.count(&["featureGates"]) == 1, "and no other");
        fs::write(&file, format!("{text}clusterCIDR: 10.0.0.0/8\n"))?;
        let status = wait_until("the agent ends", PATIENCE, || agent.ended().transpose())??;
        ensure!(status.code() == Some(1), "it ended with {status}");
        ensure!(
            log.count(&[&file.display().to_string(), "has changed"]) == 1,
            "it says why"
        );
        Ok(())
    })
}

#[test]
fn an_unusable_kubeconfig_is_refused() -> Result<()> {
    require_root!();
    lab(|lab| {
        let arguments = Arguments::of(lab);
        let file = lab.directory().join("kubeconfig");
        let path = file.display().to_string();
        let words = ["--kubeconfig", &path, "--pin-dir", &arguments.pins];
        expect(&refusal(lab, &[], &words)?, &[&path, "No such file"])?;
        fs::write(&file, "clusters: 7\n")?;
        expect(&refusal(lab, &[], &words)?, &[&path, "failed to parse", "line 1"])?;
        fs::write(&file, "apiVersion: v1\nkind: Config\ncurrent-context: gone\n")?;
        expect(
            &refusal(lab, &[], &words)?,
            &[&path, "failed to load current context: gone"],
        )?;
        // That of the configuration, unless the flag says otherwise.
        let config = lab.directory().join("config");
        let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        fs::write(
            &config,
            format!("{header}clientConnection: {{kubeconfig: /nowhere/kubeconfig}}\n"),
        )?;
        let config = config.display().to_string();
        let configured = ["--config", &config, "--pin-dir", &arguments.pins];
        expect(
            &refusal(lab, &[], &configured)?,
            &["/nowhere/kubeconfig", "No such file"],
        )?;
        let said = refusal(lab, &[], &[&configured[..], &words[..2]].concat())?;
        expect(&said, &[&path, "gone"])?;
        // Neither a file nor the inside of a cluster.
        let wrapper = [
            "env",
            "-u",
            "KUBECONFIG",
            "-u",
            "KUBERNETES_SERVICE_HOST",
            "HOME=/nowhere",
        ];
        let said = refusal(lab, &wrapper, &["--pin-dir", &arguments.pins])?;
        expect(&said, &["no kubeconfig", "--kubeconfig", "not inside a cluster"])
    })
}

/// No reason to end: the directory may come with the next volume.
#[test]
fn a_missing_manifest_directory_is_waited_for() -> Result<()> {
    require_root!();
    lab(|lab| {
        let log = Log::from_now(lab, NODE);
        fs::remove_dir(lab.manifests())?;
        let _agent = lab.spawn_agent(NODE, AgentOptions::default())?;
        log.wait_for(&[
            "WARN",
            &lab.manifests().display().to_string(),
            "can't be read",
            "No such file",
        ])?;
        ensure!(log.count(&["ready"]) == 0, "ready without its input");
        fs::create_dir(lab.manifests())?;
        log.wait_for(&["ready"])?;
        log.wait_for(&["no longer: ", &lab.manifests().display().to_string()])?;
        Ok(())
    })
}
