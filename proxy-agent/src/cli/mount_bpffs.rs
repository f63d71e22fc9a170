//! `mount-bpffs`: the BPF file system on a node where nothing else mounts it, as the DaemonSet's privileged first container.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};

use crate::dataplane::pin::BPF_FS_MAGIC;

/// Mount the BPF file system where there is none yet
#[derive(Debug, Args)]
pub(crate) struct MountBpffsArgs {
    /// Where
    #[arg(default_value = "/sys/fs/bpf", value_name = "DIR")]
    directory: PathBuf,
}

impl MountBpffsArgs {
    pub(crate) fn run(self) -> Result<()> {
        let directory = &self.directory;
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
        let there = statfs(directory).with_context(|| directory.display().to_string())?;
        if there.filesystem_type() == BPF_FS_MAGIC {
            println!("{}: is a BPF file system already", directory.display());
            return Ok(());
        }
        // As systemd mounts it (src/shared/mount-setup.c).
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), directory, Some("bpf"), flags, Some("mode=700"))
            .with_context(|| format!("{}: can't mount a BPF file system", directory.display()))?;
        println!("{}: mounted a BPF file system", directory.display());
        Ok(())
    }
}
