//! The static programs that go into images.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use object::{
    Endianness, Object as _, elf,
    read::elf::{ElfFile64, ProgramHeader as _},
};

use super::architecture::Architecture;
use crate::{
    build, process,
    setup::{Toolchain, clang},
    workspace,
};

/// Builds the agent for use, for each of these machines: against musl, linked by the linker that comes with Rust, so that it
/// takes no C library for the other machine. The one part that is C (the cryptography of TLS) takes a clang.
pub(super) fn release(toolchain: &Toolchain, architectures: &[Architecture]) -> Result<Vec<(Architecture, PathBuf)>> {
    let clang = clang::installed()?;
    let targets: Vec<_> = architectures.iter().map(|architecture| architecture.target()).collect();
    add_targets(&targets)?;
    build::kernel_programs(toolchain)?;
    let mut binaries = Vec::new();
    for architecture in architectures {
        let target = architecture.target();
        process::step(&format!("building proxy-agent for {architecture}"));
        process::run(&mut command(target, &clang))?;
        let built = workspace::target().join(target).join("release/proxy-agent");
        binaries.push((*architecture, built));
    }
    Ok(binaries)
}

fn command(target: &str, clang: &Path) -> Command {
    let mut command = Command::new(workspace::cargo());
    let variable = target.replace('-', "_");
    command
        .args(["build", "--release", "--package", "proxy-agent", "--bin", "proxy-agent"])
        .args(["--target", target])
        .current_dir(workspace::root())
        .env(format!("CC_{variable}"), clang)
        .env(
            format!("CFLAGS_{variable}"),
            workspace::prefix_maps("-ffile-prefix-map=").join(" "),
        )
        .env(
            format!("CARGO_TARGET_{}_RUSTFLAGS", variable.to_uppercase()),
            format!(
                "-C linker=rust-lld -C link-self-contained=yes {}",
                workspace::prefix_maps("--remap-path-prefix=").join(" ")
            ),
        )
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS");
    command
}

/// Adds the standard library for these targets to the active toolchain, if it is missing.
fn add_targets(targets: &[&str]) -> Result<()> {
    let sysroot = process::output(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(workspace::root()),
    )?;
    let there = |target: &&&str| {
        Path::new(sysroot.trim())
            .join("lib/rustlib")
            .join(target)
            .join("lib")
            .is_dir()
    };
    let missing: Vec<_> = targets.iter().filter(|target| !there(target)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    process::step("adding targets to the active Rust toolchain");
    process::run(
        Command::new("rustup")
            .args(["target", "add"])
            .args(missing)
            .current_dir(workspace::root()),
    )
}

/// The agent as tests build it, but static: linked once more from the same libraries, against glibc, in seconds. It is put at a
/// place of its own, but cargo has it where the agent proper was.
pub(super) fn for_tests(toolchain: &Toolchain) -> Result<PathBuf> {
    build::kernel_programs(toolchain)?;
    process::step("linking proxy-agent statically");
    process::run(
        Command::new(workspace::cargo())
            .args(["rustc", "--package", "proxy-agent", "--bin", "proxy-agent"])
            .args(["--", "-C", "target-feature=+crt-static", "-C", "strip=symbols"])
            .current_dir(workspace::root()),
    )?;
    let (built, kept) = (
        workspace::target().join("debug/proxy-agent"),
        workspace::target().join("image/proxy-agent"),
    );
    fs::create_dir_all(workspace::target().join("image"))?;
    fs::copy(&built, &kept).with_context(|| format!("copying {} to {}", built.display(), kept.display()))?;
    Ok(kept)
}

/// Whether a program can run in an image that has no file but itself.
///
/// # Errors
/// It is no program of that machine, or asks for a program interpreter or shared libraries.
pub(super) fn check(program: &[u8], architecture: Architecture) -> Result<()> {
    let file = ElfFile64::<Endianness>::parse(program).context("no ELF file")?;
    ensure!(
        file.architecture() == architecture.of_elf(),
        "it is for {:?}, not for {architecture}",
        file.architecture()
    );
    let mut kinds = file
        .elf_program_headers()
        .iter()
        .map(|header| header.p_type(file.endian()));
    ensure!(
        kinds.all(|kind| kind != elf::PT_INTERP),
        "it isn't static: it asks for a program interpreter"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_run_alone_is_refused() {
        let here = Architecture::of_this_machine().unwrap();
        let refused = |program: &[u8], architecture| format!("{:#}", check(program, architecture).unwrap_err());
        assert!(refused(b"#!/bin/sh", here).starts_with("no ELF file"));
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(
            refused(&this, here),
            "it isn't static: it asks for a program interpreter"
        );
        let other = match here {
            Architecture::Amd64 => Architecture::Arm64,
            Architecture::Arm64 => Architecture::Amd64,
        };
        assert!(refused(&this, other).ends_with(&format!("not for {other}")));
    }
}
