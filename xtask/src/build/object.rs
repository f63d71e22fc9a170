//! The built eBPF object: checked, stripped, put where the agent embeds it from.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind};

use crate::{process, workspace};

/// Checks an object and publishes it without its DWARF, if it differs from what is there: an unchanged object must not
/// make cargo build the agent anew.
///
/// # Errors
/// The object may panic, or a file can't be read or written.
pub(super) fn publish(built: &Path, published: &Path, llvm_major: u32) -> Result<()> {
    check(&fs::read(built).with_context(|| format!("cannot read {}", built.display()))?)
        .with_context(|| built.display().to_string())?;
    let stripped = published.with_extension("stripped");
    strip(built, &stripped, llvm_major)?;
    let content = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    if fs::read(published).is_ok_and(|old| old == content) {
        return fs::remove_file(&stripped).with_context(|| format!("cannot remove {}", stripped.display()));
    }
    fs::rename(&stripped, published).with_context(|| format!("cannot write {}", published.display()))
}

/// Drops the DWARF and keeps the BTF.
fn strip(built: &Path, stripped: &Path, llvm_major: u32) -> Result<()> {
    if let Some(objcopy) = find_objcopy(llvm_major) {
        let mut command = Command::new(objcopy);
        command.arg("--strip-debug").arg(built).arg(stripped);
        process::run(&mut command)
    } else {
        // Only larger.
        fs::copy(built, stripped)
            .map(drop)
            .with_context(|| format!("cannot write {}", stripped.display()))
    }
}

fn find_objcopy(llvm_major: u32) -> Option<PathBuf> {
    Some(PathBuf::from(format!("/usr/lib/llvm-{llvm_major}/bin/llvm-objcopy")))
        .filter(|path| path.is_file())
        .or_else(|| workspace::find_program("llvm-objcopy"))
}

/// The verifier refuses a program that may panic, with a message that doesn't say so ("last insn is not an exit or
/// jmp"): say it here.
fn check(object: &[u8]) -> Result<()> {
    let file = object::File::parse(object).context("no ELF object")?;
    for symbol in file.symbols() {
        let name = symbol.name().unwrap_or_default();
        if name.contains("panic") || name.contains("rust_begin_unwind") {
            bail!("the kernel programs may panic ({name}): look for indexing, division, unwrap and overflow checks");
        }
    }
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let (instructions, _) = section.data().context("unreadable section")?.as_chunks::<8>();
        if let Some(index) = instructions
            .iter()
            .position(|instruction| is_endless_loop(*instruction))
        {
            bail!(
                "the kernel programs may panic (instruction {index} of section {}): look for indexing, division, unwrap \
                 and overflow checks",
                section.name().unwrap_or_default()
            );
        }
    }
    Ok(())
}

/// A jump to itself is what the panic handler becomes where it is inlined: opcode JMP|JA, offset -1
/// (`include/uapi/linux/bpf.h`).
fn is_endless_loop(instruction: [u8; 8]) -> bool {
    matches!(instruction, [0x05, _, 0xff, 0xff, ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_to_itself_is_endless_and_others_are_not() {
        assert!(is_endless_loop([0x05, 0, 0xff, 0xff, 0, 0, 0, 0]));
        assert!(!is_endless_loop([0x05, 0, 0xfe, 0xff, 0, 0, 0, 0]));
        assert!(!is_endless_loop([0x95, 0, 0xff, 0xff, 0, 0, 0, 0]));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let error = check(b"#!/bin/sh").unwrap_err();
        assert_eq!(error.to_string(), "no ELF object");
    }
}
