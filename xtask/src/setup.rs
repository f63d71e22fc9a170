//! `setup`: finds what building and testing need, and installs what is missing where it may.
//!
//! Nothing is downloaded past the package managers: what can't be installed here is printed as exact commands.

pub(crate) mod clang;
mod compiler;
mod linker;
mod packages;
mod tools;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};

pub(crate) use compiler::Compiler;

/// What builds the kernel programs: a compiler with its library source, and a linker that reads its bitcode.
#[derive(Debug)]
pub(crate) struct Toolchain {
    /// The compiler
    pub(crate) compiler: Compiler,
    /// Path of a bpf-linker
    pub(crate) linker: PathBuf,
}

/// Runs the task.
pub(crate) fn run() -> Result<ExitCode> {
    let toolchain = toolchain()?;
    println!("eBPF compiler: {}", toolchain.compiler);
    println!("eBPF linker:   {}", toolchain.linker.display());
    let missing = tools(&toolchain);
    for problem in &missing {
        println!("missing:       {problem}");
    }
    if !missing.is_empty() {
        println!("Without those the tests and benchmarks that need them are skipped.");
    }
    Ok(ExitCode::SUCCESS)
}

/// The eBPF toolchain, installed if need be.
///
/// # Errors
/// It isn't there and can't be installed: the message holds the commands to type.
pub(crate) fn toolchain() -> Result<Toolchain> {
    let mut compilers = compiler::find()?;
    if compilers.is_empty() {
        compiler::install()?;
        compilers = compiler::find()?;
        ensure!(
            !compilers.is_empty(),
            "still no eBPF compiler after the installation\n{}",
            compiler::instructions()
        );
    }
    for compiler in &compilers {
        if let Some(linker) = linker::find(compiler)? {
            return Ok(Toolchain {
                compiler: compiler.clone(),
                linker,
            });
        }
    }
    let compiler = compilers.swap_remove(0);
    let linker = linker::install(&compiler)?;
    Ok(Toolchain { compiler, linker })
}

/// Installs what the tests and the lab use; returns what is still missing, a line each.
pub(crate) fn tools(toolchain: &Toolchain) -> Vec<String> {
    tools::install(toolchain)
}
