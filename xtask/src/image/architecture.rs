//! Kinds of machines, in the words of container images and of Rust.

use std::{env, fmt};

use anyhow::{Result, bail};

/// A kind of machine that there are images for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(super) enum Architecture {
    /// x86-64
    Amd64,
    /// AArch64
    Arm64,
}

impl Architecture {
    /// That of the machine this runs on.
    pub(super) fn of_this_machine() -> Result<Self> {
        match env::consts::ARCH {
            "x86_64" => Ok(Self::Amd64),
            "aarch64" => Ok(Self::Arm64),
            other => bail!("there is no image for {other}"),
        }
    }

    /// The target whose programs are static.
    pub(super) const fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-musl",
            Self::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The one in ELF headers.
    pub(super) const fn of_elf(self) -> object::Architecture {
        match self {
            Self::Amd64 => object::Architecture::X86_64,
            Self::Arm64 => object::Architecture::Aarch64,
        }
    }
}

/// As image configurations name it (GOARCH).
impl fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        })
    }
}
