//! `test`: everything that must hold, in one run.

mod harness;
mod tally;

use std::{
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::Result;

use crate::{
    build::{self, Profile},
    image, process, rules, setup,
    setup::Toolchain,
    workspace,
};
use tally::Tally;

/// Runs the task. The last line printed is the tally, whatever happens.
pub(crate) fn run() -> ExitCode {
    let start = Instant::now();
    let mut tally = Tally::default();
    if let Err(error) = run_all(&mut tally) {
        eprintln!("error: {error:#}");
        tally.fail("setup and build");
    }
    eprintln!("==> done after {:.0?}", start.elapsed());
    println!("{tally}");
    if tally.is_success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run_all(tally: &mut Tally) -> Result<()> {
    let toolchain = setup::toolchain()?;
    for problem in setup::tools(&toolchain) {
        eprintln!("missing: {problem}");
    }
    build::other_layout(&toolchain)?;
    image::for_tests(&toolchain)?;
    let agent = build::all(&toolchain, Profile::Dev)?;
    check_formatting(tally);
    check_lints(&toolchain, tally);
    check_rules(tally);
    harness::run(&agent, tally)
}

fn check_formatting(tally: &mut Tally) {
    for (name, directory) in [
        ("rustfmt: workspace", workspace::root().to_owned()),
        ("rustfmt: proxy-ebpf", workspace::ebpf_crate()),
    ] {
        let mut command = Command::new(workspace::cargo());
        command.args(["fmt", "--all", "--check"]).current_dir(directory);
        let installed = workspace::cargo().with_file_name("cargo-fmt").is_file();
        check(
            name,
            &mut command,
            installed,
            "type `rustup component add rustfmt`",
            tally,
        );
    }
}

fn check_lints(toolchain: &Toolchain, tally: &mut Tally) {
    let mut command = Command::new(workspace::cargo());
    command
        .args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
        .current_dir(workspace::root());
    let installed = workspace::cargo().with_file_name("cargo-clippy").is_file();
    check(
        "clippy: workspace",
        &mut command,
        installed,
        "type `rustup component add clippy`",
        tally,
    );

    let clippy = toolchain.compiler.cargo_clippy();
    let mut command = Command::new(clippy.as_deref().unwrap_or(Path::new("cargo-clippy")));
    build::ebpf_cargo(command.arg("clippy"), toolchain).args(["--", "-D", "warnings"]);
    let advice = "no clippy beside the eBPF compiler; `cargo xtask setup` says where to get it";
    check("clippy: proxy-ebpf", &mut command, clippy.is_some(), advice, tally);
}

/// Every rule of the proxy's behaviour has a test, and docs/rules.md says which.
fn check_rules(tally: &mut Tally) {
    let name = "rules: docs/rules.md";
    process::step(name);
    if let Err(error) = rules::check() {
        eprintln!("{error:#}");
        tally.fail(name);
    } else {
        tally.pass();
    }
}

/// Runs a command as a test of this name.
fn check(name: &str, command: &mut Command, installed: bool, advice: &str, tally: &mut Tally) {
    process::step(name);
    if !installed {
        tally.skip(&format!("{name}: {advice}"));
    } else if let Err(error) = process::run(command) {
        eprintln!("{error:#}");
        tally.fail(name);
    } else {
        tally.pass();
    }
}
