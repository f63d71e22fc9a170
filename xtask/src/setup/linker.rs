//! bpf-linker. It must be built on the LLVM of the compiler: older ones can't read newer bitcode.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Compiler, packages};
use crate::{process, workspace};

/// The release known to work.
const VERSION: &str = "0.13.0";

/// The smallest program worth linking.
const PROBE: &str = "#![no_std]\n#[unsafe(no_mangle)]\npub extern \"C\" fn probe() -> u32 {\n    7\n}\n";

/// The first linker installed that reads this compiler's bitcode.
pub(super) fn find(compiler: &Compiler) -> Result<Option<PathBuf>> {
    let linkers: Vec<PathBuf> = workspace::find_program("bpf-linker")
        .into_iter()
        .chain(places())
        .filter(|path| path.is_file())
        .collect();
    if linkers.is_empty() {
        return Ok(None);
    }
    let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
    let bitcode = directory.path().join("probe.bc");
    compile_probe(compiler, &bitcode)?;
    Ok(linkers.into_iter().find(|linker| reads(linker, &bitcode)))
}

/// Where [`install`] puts the linker: with the user's other tools, or, if one that doesn't fit is there, with what is
/// built of this workspace.
fn places() -> [PathBuf; 2] {
    [
        workspace::cargo_home().unwrap_or_default(),
        workspace::root().join("target/tools"),
    ]
    .map(|root| root.join("bin/bpf-linker"))
}

fn compile_probe(compiler: &Compiler, bitcode: &Path) -> Result<()> {
    let mut command = Command::new(&compiler.rustc);
    command
        .args([
            "--edition",
            "2024",
            "--crate-name",
            "probe",
            "--crate-type",
            "lib",
            "--emit",
            "llvm-bc",
        ])
        .args(["-C", "panic=abort", "-o"])
        .arg(bitcode)
        .arg("-")
        .env_remove("LD_LIBRARY_PATH");
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| process::typed(&command))?;
    child
        .stdin
        .take()
        .context("no pipe to rustc")?
        .write_all(PROBE.as_bytes())?;
    let status = child.wait()?;
    ensure!(
        status.success(),
        "`{}` cannot compile a function of three lines: {status}",
        process::typed(&command)
    );
    Ok(())
}

fn reads(linker: &Path, bitcode: &Path) -> bool {
    let mut command = Command::new(linker);
    command
        .args(["--target", "bpfel-unknown-none", "--export", "probe", "--output"])
        .arg(bitcode.with_extension("o"))
        .arg(bitcode)
        .env_remove("LD_LIBRARY_PATH");
    process::output(&mut command).is_ok()
}

/// Builds a linker for this compiler.
///
/// # Errors
/// LLVM or the sources can't be had here: the message holds the commands to type.
pub(super) fn install(compiler: &Compiler) -> Result<PathBuf> {
    let major = compiler.llvm_major;
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    let [shared, own] = places();
    let place = if shared.exists() { own } else { shared };
    let mut build = Command::new(workspace::cargo());
    build
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--no-default-features",
            "--features",
        ])
        .arg(format!("llvm-{major}"))
        .arg("--root")
        .arg(place.parent().and_then(Path::parent).unwrap_or(&place))
        .env("LLVM_PREFIX", &prefix)
        .env_remove("LD_LIBRARY_PATH");

    let llvm = format!("llvm-{major}-dev");
    let polly = format!("libpolly-{major}-dev");
    let needed = [llvm.as_str(), &polly, "libzstd-dev", "zlib1g-dev", "g++"];
    let instructions = format!(
        "No bpf-linker here reads the bitcode of {compiler}. Type\n  {}\n  {}\n\
         If your distribution has no LLVM {major}, https://apt.llvm.org has: `llvm.sh {major}`.",
        packages::typed(&needed),
        process::typed(&build),
    );
    if !fs::exists(prefix.join("include/llvm-c")).unwrap_or(false) {
        if !packages::may_install() {
            bail!("{instructions}");
        }
        packages::refresh();
        if !needed.iter().all(|package| packages::is_available(package)) {
            bail!("{instructions}");
        }
        packages::install(&needed)?;
    }
    process::step("building bpf-linker (about a minute)");
    process::run(&mut build).with_context(|| instructions.clone())?;
    let found = find(compiler)?;
    found.context(instructions)
}
