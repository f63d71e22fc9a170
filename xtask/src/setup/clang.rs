//! A clang, which compiles C for any machine without more packages for it.

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};

use super::packages;
use crate::workspace;

/// The Debian package.
const PACKAGE: &str = "clang";

/// The clang there is, installed if it is missing and may be.
///
/// # Errors
/// It isn't there and can't be installed: the message holds the command to type.
pub(crate) fn installed() -> Result<PathBuf> {
    if let Some(clang) = find() {
        return Ok(clang);
    }
    if packages::may_install() {
        packages::refresh();
        packages::install(&[PACKAGE])?;
    }
    match find() {
        Some(clang) => Ok(clang),
        None => bail!("clang is missing: type {}", packages::typed(&[PACKAGE])),
    }
}

/// `clang`, or one that is installed under its version's name alone.
fn find() -> Option<PathBuf> {
    workspace::find_program(PACKAGE).or_else(|| {
        let installed = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let directories = installed.filter(|entry| entry.file_name().to_string_lossy().starts_with("llvm-"));
        let mut clangs: Vec<_> = directories.map(|entry| entry.path().join("bin/clang")).collect();
        clangs.retain(|clang| clang.is_file());
        clangs.sort();
        clangs.pop()
    })
}
