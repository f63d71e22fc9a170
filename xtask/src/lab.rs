//! `demo`, `lab`, `bench` and `soak`: the command line of `proxy-tests`, which builds namespaces and runs the agent in them.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    build::{self, Profile},
    process, setup,
};

/// Builds what the lab runs and becomes `proxy-lab COMMAND ARGUMENTS`.
pub(crate) fn run(command: &str, arguments: &[OsString], profile: Profile) -> Result<ExitCode> {
    let toolchain = setup::toolchain()?;
    for problem in setup::tools(&toolchain) {
        eprintln!("missing: {problem}");
    }
    let agent = build::all(&toolchain, profile)?;
    let lab = build::program("proxy-tests", "proxy-lab", profile)?;
    process::step(&format!("proxy-lab {command}"));
    let error = Command::new(&lab)
        .arg(command)
        .args(arguments)
        .env("PROXY_AGENT", agent)
        .exec();
    Err(error).with_context(|| format!("cannot start {}", lab.display()))
}
