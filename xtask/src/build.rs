//! `build`: the kernel programs, then the agent that embeds them.

mod object;

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{image, process, setup, setup::Toolchain, workspace};

/// Flags of the kernel programs: debug information becomes BTF, which names the maps' fields for bpftool; v3 has atomics
/// with results and 32-bit jumps (kernel 5.12).
const EBPF_FLAGS: &str = "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3";

/// The target of the kernel programs.
const EBPF_TARGET: &str = "bpfel-unknown-none";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Builds the agent with optimisations
    #[arg(long)]
    release: bool,
    /// Also builds target/other-layout/proxy-agent, which has other tables: for the tests of upgrades
    #[arg(long)]
    other_layout: bool,
    /// Also packs target/image/proxy-agent-dev.tar, of the agent without optimisations: for the tests of the image
    #[arg(long)]
    image: bool,
}

/// How the programs of user space are optimised. The kernel programs always are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For tests and the demo
    Dev,
    /// For use and benchmarks
    Release,
}

/// Runs the task.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let profile = if options.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let toolchain = setup::toolchain()?;
    if options.other_layout {
        other_layout(&toolchain)?;
    }
    if options.image {
        image::for_tests(&toolchain)?;
    }
    let agent = all(&toolchain, profile)?;
    println!("{}", agent.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the kernel programs and the agent; returns the agent's path.
pub(crate) fn all(toolchain: &Toolchain, profile: Profile) -> Result<PathBuf> {
    kernel_programs(toolchain)?;
    program("proxy-agent", "proxy-agent", profile)
}

/// Builds an agent with another layout of its tables, which tests take over from, and puts it where they look for it. The agent
/// proper is to be built afterwards, for cargo puts both at the same place first.
pub(crate) fn other_layout(toolchain: &Toolchain) -> Result<()> {
    process::step("building the agent with another layout");
    process::run(ebpf_cargo(
        Command::new(&toolchain.compiler.cargo).args(["build", "--features", "other-layout"]),
        toolchain,
    ))?;
    let directory = workspace::target().join("other-layout");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let object = directory.join("proxy-ebpf.o");
    let built = workspace::ebpf_target().join(EBPF_TARGET).join("release/proxy-ebpf");
    object::publish(&built, &object, toolchain.compiler.llvm_major)?;
    process::run(
        Command::new(workspace::cargo())
            .args(["build", "--workspace", "--bin", "proxy-agent"])
            .args(["--features", "proxy-agent/other-layout"])
            .env("PROXY_EBPF_OBJECT", &object)
            .current_dir(workspace::root()),
    )?;
    let (from, to) = (
        workspace::target().join("debug/proxy-agent"),
        directory.join("proxy-agent"),
    );
    fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Builds the kernel programs and puts them where the agent's build script looks.
pub(crate) fn kernel_programs(toolchain: &Toolchain) -> Result<()> {
    process::step("building the kernel programs");
    process::run(ebpf_cargo(
        Command::new(&toolchain.compiler.cargo).arg("build"),
        toolchain,
    ))?;
    let built = workspace::ebpf_target().join(EBPF_TARGET).join("release/proxy-ebpf");
    object::publish(&built, &workspace::ebpf_object(), toolchain.compiler.llvm_major)
}

/// Completes a cargo command to one on the kernel programs.
pub(crate) fn ebpf_cargo<'a>(command: &'a mut Command, toolchain: &Toolchain) -> &'a mut Command {
    command
        .args(["--release", "--target", EBPF_TARGET, "-Z", "build-std=core"])
        .current_dir(workspace::ebpf_crate())
        .env("RUSTC", &toolchain.compiler.rustc)
        .env("CARGO", &toolchain.compiler.cargo)
        // `-Z build-std` is unstable; the library source is of the same release as the compiler.
        .env("RUSTC_BOOTSTRAP", "1")
        .env(
            "RUSTFLAGS",
            format!(
                "{EBPF_FLAGS} {}",
                workspace::prefix_maps("--remap-path-prefix=").join(" ")
            ),
        )
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker)
        .env("CARGO_TARGET_DIR", workspace::ebpf_target())
        // Those of the toolchain that runs this task.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
}

/// Builds a program of the workspace; returns its path.
pub(crate) fn program(package: &str, name: &str, profile: Profile) -> Result<PathBuf> {
    process::step(&format!("building {name}"));
    let mut command = Command::new(workspace::cargo());
    command.args(["build", "--bin", name]).current_dir(workspace::root());
    let directory = match profile {
        Profile::Dev => {
            // Dependencies with the features that they have in `cargo test --workspace`: else both build their own.
            command.arg("--workspace");
            "debug"
        }
        Profile::Release => {
            command.args(["--release", "--package", package]);
            "release"
        }
    };
    process::run(&mut command)?;
    Ok(workspace::target().join(directory).join(name))
}
