//! What the tests, the lab and the benchmarks run.

use std::process::Command;

use super::{Toolchain, packages};
use crate::{process, workspace};

/// Programs and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 6] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("bpftool", "bpftool"),
    ("ethtool", "ethtool"),
    ("nsenter", "util-linux"),
];

/// Installs what is missing and may be installed; returns what is still missing, a line each.
pub(super) fn install(toolchain: &Toolchain) -> Vec<String> {
    install_components();
    let mut wanted = missing(toolchain);
    if !wanted.is_empty() && packages::may_install() {
        packages::refresh();
        let available: Vec<&str> = wanted
            .iter()
            .map(|(_, package)| *package)
            .filter(|package| packages::is_available(package))
            .collect();
        if !available.is_empty() {
            if let Err(error) = packages::install(&available) {
                eprintln!("{error:#}");
            }
            wanted = missing(toolchain);
        }
    }
    wanted
        .into_iter()
        .map(|(what, package)| format!("{what}: {}", packages::typed(&[package])))
        .collect()
}

fn missing(toolchain: &Toolchain) -> Vec<(&'static str, &'static str)> {
    let mut missing = PROGRAMS.to_vec();
    missing.retain(|(program, _)| workspace::find_program(program).is_none());
    if toolchain.compiler.is_debian() && toolchain.compiler.cargo_clippy().is_none() {
        missing.push(("clippy for the kernel programs", "rust-web-clippy"));
    }
    missing
}

/// rustup's smallest profile comes without the formatter and the linter.
fn install_components() {
    let lacks = |program: &str| !workspace::cargo().with_file_name(program).is_file();
    if (lacks("cargo-fmt") || lacks("cargo-clippy")) && workspace::find_program("rustup").is_some() {
        process::step("adding rustfmt and clippy to the active Rust toolchain");
        if let Err(error) = process::run(Command::new("rustup").args(["component", "add", "rustfmt", "clippy"])) {
            eprintln!("{error:#}");
        }
    }
}
