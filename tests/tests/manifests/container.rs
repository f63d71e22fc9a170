//! A container as the DaemonSet asks for it, without a container runtime: a root directory, mounts, capabilities.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result, bail, ensure};
use caps::{CapSet, Capability, CapsHashSet};
use k8s_openapi::api::core::v1::{Container, PodSpec};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::prctl,
    unistd::{chdir, chroot},
};

/// A container that is to be.
pub(super) struct Sandbox {
    /// The unpacked image
    pub(super) root: PathBuf,
    /// The file's path in it, and its arguments
    pub(super) command: Vec<String>,
    /// Source, target, whether it can't be written to
    pub(super) mounts: Vec<(PathBuf, PathBuf, bool)>,
    capabilities: CapsHashSet,
}

impl Sandbox {
    /// What a pod says of a container, for an image that is unpacked to `root` and has this entry point. `host` says where a
    /// directory of the node is here, `files` where the directory of a ConfigMap is.
    pub(super) fn new(
        root: &Path,
        entry: &str,
        pod: &PodSpec,
        container: &Container,
        host: &BTreeMap<&str, PathBuf>,
        files: &Path,
    ) -> Result<Self> {
        let context = container.security_context.clone().context("no security context")?;
        ensure!(
            context.read_only_root_filesystem == Some(true),
            "the root can be written to"
        );
        ensure!(context.run_as_user == Some(0), "not root, whose BPF file system it is");
        ensure!(
            context.allow_privilege_escalation == Some(false),
            "it may gain privileges"
        );
        let mut capabilities = CapsHashSet::new();
        for name in context
            .capabilities
            .and_then(|capabilities| capabilities.add)
            .unwrap_or_default()
        {
            let capability: Capability = format!("CAP_{name}").parse().with_context(|| name.clone())?;
            capabilities.insert(capability);
        }
        let mut mounts = Vec::new();
        for wanted in container.volume_mounts.iter().flatten() {
            let volumes = pod.volumes.iter().flatten();
            let volume = volumes.into_iter().find(|volume| volume.name == wanted.name);
            let volume = volume.with_context(|| format!("no volume {}", wanted.name))?;
            let source = if let Some(directory) = &volume.host_path {
                host.get(&*directory.path)
                    .cloned()
                    .with_context(|| directory.path.clone())?
            } else if volume.config_map.is_some() {
                files.to_owned()
            } else {
                bail!("volume {}: neither of the host nor a ConfigMap", wanted.name)
            };
            let target = PathBuf::from(&wanted.mount_path);
            mounts.push((source, target, wanted.read_only.unwrap_or(false)));
        }
        let arguments = container.args.clone().unwrap_or_default();
        Ok(Self {
            root: root.to_owned(),
            command: [vec![entry.to_owned()], arguments].concat(),
            mounts,
            capabilities,
        })
    }

    /// Starts it, on a thread of its own that ends with that: it is not the same afterwards.
    pub(super) fn spawn(&self, environment: &[(&str, &str)], log: &Path) -> Result<Child> {
        let (log, nothing) = (File::create(log)?, File::open("/dev/null")?);
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(nothing)
            .stdout(log.try_clone()?)
            .stderr(log);
        self.enter().context("entering the container")?;
        command.spawn().context("the image's program")
    }

    fn enter(&self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        remount(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
        bind(&self.root, &self.root)?;
        // As container runtimes mount them.
        for shown in ["/proc", "/sys"] {
            let inside = self.inside(Path::new(shown));
            fs::create_dir_all(&inside)?;
            bind(Path::new(shown), &inside)?;
        }
        for (source, target, is_read_only) in &self.mounts {
            let inside = self.inside(target);
            fs::create_dir_all(&inside).with_context(|| inside.display().to_string())?;
            bind(source, &inside)?;
            if *is_read_only {
                remount(&inside, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
            }
        }
        remount(&self.root, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
        chroot(&self.root)?;
        chdir("/")?;
        for capability in caps::runtime::thread_all_supported() {
            if !self.capabilities.contains(&capability) {
                caps::drop(None, CapSet::Bounding, capability)?;
            }
        }
        caps::clear(None, CapSet::Ambient)?;
        caps::clear(None, CapSet::Inheritable)?;
        Ok(prctl::set_no_new_privs()?)
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount(
        Some(source),
        target,
        None::<&str>,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None::<&str>,
    )
    .with_context(|| format!("{} at {}", source.display(), target.display()))
}

fn remount(target: &Path, flags: MsFlags) -> Result<()> {
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>).with_context(|| target.display().to_string())
}
