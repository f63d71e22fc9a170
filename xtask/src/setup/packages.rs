//! apt, where it is and where it may.

use std::process::Command;

use anyhow::Result;

use crate::{process, workspace};

/// Whether packages can be installed here: root, and a Debian or one of its kin.
pub(super) fn may_install() -> bool {
    nix::unistd::geteuid().is_root() && workspace::find_program("apt-get").is_some()
}

/// Fetches the lists of packages. A failure isn't one here: the lists there may do.
pub(super) fn refresh() {
    process::step("reading the package lists");
    if let Err(error) = process::run(Command::new("apt-get").args(["update", "--quiet", "--quiet"])) {
        eprintln!("{error:#}");
    }
}

/// Whether the lists hold this package.
pub(super) fn is_available(package: &str) -> bool {
    // `show` without --no-all-versions also succeeds for packages that are only named by others.
    process::output(Command::new("apt-cache").args(["show", "--no-all-versions", package])).is_ok()
}

/// Installs packages.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    process::step(&format!("installing {}", packages.join(" ")));
    process::run(&mut command(packages))
}

/// The installation as one would type it.
pub(super) fn typed(packages: &[&str]) -> String {
    format!(
        "sudo apt-get update && sudo apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    )
}

fn command(packages: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "-y", "--quiet", "--no-install-recommends"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}
