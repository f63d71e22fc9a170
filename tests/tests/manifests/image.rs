//! The image's archive, and its program in a container as the DaemonSet asks for it.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use k8s_openapi::api::core::v1::ConfigMap;
use proxy_tests::{
    lab::{Family, Lab, Protocol, Service, address, agent_binary},
    require_root, skip,
};
use serde_json::Value;

use super::{
    container::Sandbox,
    rendered::{Rendered, manifests, sha256},
};

/// The archive of the agent as tests build it: `image/proxy-agent-dev.tar` in the build directory.
fn archive() -> Result<PathBuf> {
    let this = env::current_exe()?;
    let built = this
        .ancestors()
        .map(|directory| directory.join("image/proxy-agent-dev.tar"));
    built
        .into_iter()
        .find(|path| path.is_file())
        .context("no image: run `cargo xtask build --image`")
}

/// Unpacks an archive's image to a directory, as a container runtime does: by what the index leads to. Returns its entry point.
fn unpack(archive: &Path, root: &Path) -> Result<String> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        files.insert(path, content);
    }
    let file = |path: &str| files.get(path).with_context(|| format!("no {path}"));
    let blob = |descriptor: &Value| -> Result<&Vec<u8>> {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        let blob = file(&digest.replace("sha256:", "blobs/sha256/"))?;
        ensure!(
            format!("sha256:{}", sha256(blob)) == digest,
            "a blob is not what its digest says"
        );
        Ok(blob)
    };
    let index: Value = serde_json::from_slice(file("index.json")?)?;
    let name = &index["manifests"][0]["annotations"]["io.containerd.image.name"];
    ensure!(name == "docker.io/library/proxy-agent:dev", "it is called {name}");
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    for layer in manifest["layers"].as_array().into_iter().flatten() {
        let mut layer = tar::Archive::new(GzDecoder::new(&blob(layer)?[..]));
        layer.set_preserve_permissions(true);
        layer.unpack(root)?;
    }
    let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
    let entry = &config["config"]["Entrypoint"][0];
    Ok(entry.as_str().context("no entry point")?.to_owned())
}

/// The hierarchy of cgroups, and where the lab's node is in it.
fn cgroup(lab: &Lab) -> Result<(PathBuf, PathBuf)> {
    let node = lab
        .node("node")
        .namespace()
        .cgroup()
        .context("the node has no cgroup")?;
    let hierarchy = Path::new("/sys/fs/cgroup");
    Ok((hierarchy.to_owned(), node.strip_prefix(hierarchy)?.to_owned()))
}

#[test]
fn the_image_serves_as_the_daemonset_runs_it() -> Result<()> {
    require_root!();
    let Some(rendered) = Rendered::kustomization(&manifests().join("base"))? else {
        skip!("no kubectl")
    };
    let archive = archive()?;
    let image = tempfile::tempdir()?;
    let entry = unpack(&archive, image.path())?;
    let files = tempfile::tempdir()?;
    let maps: Vec<ConfigMap> = rendered.all("ConfigMap")?;
    for (name, content) in maps.iter().filter_map(|map| map.data.as_ref()).flatten() {
        fs::write(files.path().join(name), content)?;
    }
    Lab::builder().node("node", &["client", "web"]).run(|lab| {
        lab.serve("web", 8080)?;
        let service = Service::new("default", "web", address::cluster(80))
            .port("http", Protocol::Tcp, 80, 8080)
            .pods(&[lab.pod("web")]);
        lab.apply(&service)?;
        let pins = lab.pin_directory("node");
        let (hierarchy, cgroup) = cgroup(lab)?;
        let host = BTreeMap::from([
            ("/sys/fs/bpf", pins.parent().context("a place for pins")?.to_owned()),
            ("/sys/fs/cgroup", hierarchy),
        ]);
        let mut sandbox = Sandbox::new(
            image.path(),
            &entry,
            &rendered.pod()?,
            &rendered.agent()?,
            &host,
            files.path(),
        )?;
        // In place of an API server. The lab's nodes share a BPF file system and the hierarchy of cgroups, so each has its part.
        sandbox
            .mounts
            .push((lab.manifests(), PathBuf::from("/manifests"), true));
        sandbox
            .command
            .iter_mut()
            .for_each(|word| *word = word.replace("$(NODE_NAME)", "node"));
        sandbox.command.extend([
            "--manifests=/manifests".to_owned(),
            "--pin-dir=/sys/fs/bpf/node".to_owned(),
            format!("--cgroup=/host/sys/fs/cgroup/{}", cgroup.display()),
        ]);
        let log = lab.agent_log("node");
        let namespace = lab.node("node").namespace();
        let mut agent = namespace.run(|| sandbox.spawn(&[("NODE_NAME", "node")], &log))?;
        lab.adopt(&agent)?;
        let served = lab.wait_for_service("node", &service);
        let answers = [("client", "a pod"), ("node", "the node itself")]
            .map(|(client, who)| (who, lab.tcp_request(client, service.frontend(Family::V4, 80))));
        let told = ["status", "mountinfo"].map(|file| fs::read_to_string(format!("/proc/{}/{file}", agent.id())));
        agent.kill()?;
        agent.wait()?;
        served.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        for (who, answer) in answers {
            assert_eq!(answer.with_context(|| who.to_owned())?.backend, "web");
        }
        // NET_ADMIN, PERFMON and BPF are 12, 38 and 39 (include/uapi/linux/capability.h).
        let expected = format!("CapPrm:\t{:016x}", (1_u64 << 12) | (1 << 38) | (1 << 39));
        let [status, mounts] = told;
        let (status, mounts) = (status?, mounts?);
        assert!(status.lines().any(|line| line == expected), "{status}");
        // Mount point and options are the fifth and the sixth word (proc_pid_mountinfo(5)).
        let mut points = mounts.lines().map(|line| line.split(' ').skip(4).take(2));
        let is_root = |words: &mut dyn Iterator<Item = &str>| words.next() == Some("/");
        let options = points.find_map(|mut words| is_root(&mut words).then(|| words.next()).flatten());
        assert!(
            options.is_some_and(|options| options.split(',').any(|option| option == "ro")),
            "{mounts}"
        );
        Ok(())
    })
}

#[test]
fn the_first_container_mounts_what_is_missing() -> Result<()> {
    require_root!();
    let directory = tempfile::tempdir()?;
    let missing = directory.path().join("bpf");
    let agent = agent_binary()?;
    // In a namespace of its own, where it goes with the shell.
    let output = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-ec",
            "\"$0\" mount-bpffs \"$1\"; \"$0\" mount-bpffs \"$1\"",
        ])
        .args([&agent, &missing])
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let place = missing.display();
    assert_eq!(
        said,
        format!("{place}: mounted a BPF file system\n{place}: is a BPF file system already\n"),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
