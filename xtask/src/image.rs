//! `image`: the agent's container image, without any container engine: an OCI archive that `kind load image-archive`, `podman load`
//! and `ctr images import` take.
//!
//! The image holds one static program and the licences. The same binary packed twice is the same archive, byte for byte: entries
//! are sorted, owners are root, and every time is `SOURCE_DATE_EPOCH`, or 0.

mod architecture;
mod archive;
mod binary;
mod root;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, ensure};

use self::{
    architecture::Architecture,
    archive::{Archive, Image},
};
use crate::{
    process,
    setup::{self, Toolchain},
    workspace,
};

/// Where the program is in the image.
const PROGRAM: &str = "usr/local/bin/proxy-agent";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// For machines of this kind; may be repeated, for one archive that has them all [default: that of this machine]
    #[arg(long, value_enum)]
    arch: Vec<Architecture>,
    /// Packs a program that is built already, and static, for one architecture
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Name and tag of the image
    #[arg(long, value_name = "NAME:TAG", default_value = "proxy-agent:dev")]
    name: String,
    /// Where the archive goes [default: target/image/proxy-agent.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let here = Architecture::of_this_machine()?;
    let mut architectures = options.arch.clone();
    architectures.sort_unstable();
    architectures.dedup();
    if architectures.is_empty() {
        architectures.push(here);
    }
    let binaries = if let Some(binary) = &options.binary {
        ensure!(architectures.len() == 1, "--binary is of one --arch");
        vec![(architectures[0], binary.clone())]
    } else {
        let toolchain = setup::toolchain()?;
        binary::release(&toolchain, &architectures)?
    };
    let output = options
        .output
        .clone()
        .unwrap_or_else(|| directory().join("proxy-agent.tar"));
    write(&options.name, &binaries, &output)?;
    println!("{}", output.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the archive for machines like this one; returns its path.
pub(crate) fn of_this_machine() -> Result<PathBuf> {
    let output = directory().join("proxy-agent.tar");
    let binaries = binary::release(&setup::toolchain()?, &[Architecture::of_this_machine()?])?;
    write("proxy-agent:dev", &binaries, &output)?;
    Ok(output)
}

/// The image of the agent as tests build it, for tests of the image; cargo is to build the agent proper afterwards.
pub(crate) fn for_tests(toolchain: &Toolchain) -> Result<()> {
    let binary = binary::for_tests(toolchain)?;
    let packed = [(Architecture::of_this_machine()?, binary)];
    write("proxy-agent:dev", &packed, &directory().join("proxy-agent-dev.tar"))
}

fn directory() -> PathBuf {
    workspace::target().join("image")
}

fn write(name: &str, binaries: &[(Architecture, PathBuf)], output: &Path) -> Result<()> {
    process::step(&format!("packing {name}"));
    let time = time()?;
    let mut images = Vec::new();
    for (architecture, binary) in binaries {
        let program = fs::read(binary).with_context(|| binary.display().to_string())?;
        binary::check(&program, *architecture).with_context(|| binary.display().to_string())?;
        let layer = root::layer(program, time)?;
        eprintln!(
            "{architecture}: {} MiB, {} MiB to pull",
            layer.uncompressed >> 20,
            layer.compressed.len() >> 20
        );
        images.push(Image {
            architecture: *architecture,
            layer,
        });
    }
    let archive = Archive::new(name, &images, time)?;
    if let Some(directory) = output.parent() {
        fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::write(output, archive.to_tar(time)?).with_context(|| output.display().to_string())?;
    eprintln!("{}@{}", name, archive.digest());
    Ok(())
}

/// The one time that everything in the image has, in seconds since 1970: <https://reproducible-builds.org/specs/source-date-epoch/>.
fn time() -> Result<u64> {
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.trim().parse().with_context(|| format!("SOURCE_DATE_EPOCH={text}")),
        Err(_) => Ok(0),
    }
}
