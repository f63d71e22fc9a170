//! The compiler of the kernel programs: any rustc with its library source beside it (`-Z build-std=core`).

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::packages;
use crate::{process, workspace};

/// `rust-version` of the workspace, whose `proxy-common` the kernel programs hold.
const OLDEST: (u32, u32) = (1, 95);

/// Majors of LLVM that bpf-linker has a feature for.
const LLVM_MAJORS: std::ops::RangeInclusive<u32> = 21..=23;

/// A second compiler from Debian, built from source for its browsers; it lives beside a rustup toolchain.
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// A usable compiler.
#[derive(Clone, Debug)]
pub(crate) struct Compiler {
    /// Path of rustc
    pub(crate) rustc: PathBuf,
    /// Path of the cargo to run it with
    pub(crate) cargo: PathBuf,
    /// Major version of its LLVM
    pub(crate) llvm_major: u32,
    /// Version, such as `1.96.0`
    version: String,
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}, LLVM {})",
            self.rustc.display(),
            self.version,
            self.llvm_major
        )
    }
}

impl Compiler {
    /// Reads the versions of a compiler; `None` if it is too old, or its LLVM is one that no bpf-linker links.
    fn examine(rustc: PathBuf, cargo: PathBuf) -> Result<Option<Self>> {
        let text = process::output(Command::new(&rustc).arg("-Vv").env_remove("LD_LIBRARY_PATH"))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .with_context(|| format!("{} -Vv says no {name}", rustc.display()))
        };
        let version = field("release")?.to_owned();
        let mut numbers = version.split('.').map_while(|number| number.parse().ok());
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            bail!("{} -Vv: `{version}` is no version", rustc.display());
        };
        let llvm = field("LLVM version")?;
        let Some(llvm_major) = llvm.split('.').next().and_then(|number| number.parse().ok()) else {
            bail!("{} -Vv: `{llvm}` is no version of LLVM", rustc.display());
        };
        let usable = (major, minor) >= OLDEST && LLVM_MAJORS.contains(&llvm_major);
        Ok(usable.then_some(Self {
            rustc,
            cargo,
            llvm_major,
            version,
        }))
    }

    /// cargo-clippy of this compiler, if it is installed.
    pub(crate) fn cargo_clippy(&self) -> Option<PathBuf> {
        Some(self.rustc.with_file_name("cargo-clippy")).filter(|path| path.is_file())
    }

    /// Whether this is the compiler of the Debian packages.
    pub(crate) fn is_debian(&self) -> bool {
        self.rustc == Path::new("/usr/bin/rustc")
    }
}

/// All usable compilers, the preferred first: the one of `PROXY_EBPF_RUSTC` and `PROXY_EBPF_CARGO` alone if those are
/// set, else the active rustup toolchain, the nightly ones, other ones, the system's.
pub(crate) fn find() -> Result<Vec<Compiler>> {
    if let Some(rustc) = env::var_os("PROXY_EBPF_RUSTC").map(PathBuf::from) {
        let cargo = env::var_os("PROXY_EBPF_CARGO").map_or_else(|| cargo_beside(&rustc), PathBuf::from);
        let compiler = Compiler::examine(rustc.clone(), cargo)?.with_context(|| {
            format!(
                "PROXY_EBPF_RUSTC: {} is older than {}.{} or its LLVM is none of {LLVM_MAJORS:?}",
                rustc.display(),
                OLDEST.0,
                OLDEST.1
            )
        })?;
        return Ok(vec![compiler]);
    }
    let mut found = Vec::new();
    for root in roots() {
        let rustc = root.join("bin/rustc");
        if rustc.is_file() && root.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file() {
            let cargo = cargo_beside(&rustc);
            found.extend(Compiler::examine(rustc, cargo)?);
        }
    }
    Ok(found)
}

fn cargo_beside(rustc: &Path) -> PathBuf {
    Some(rustc.with_file_name("cargo"))
        .filter(|cargo| cargo.is_file())
        .unwrap_or_else(workspace::cargo)
}

/// Where compilers may be installed, each once.
fn roots() -> Vec<PathBuf> {
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")));
    let mut toolchains: Vec<PathBuf> = rustup
        .and_then(|home| fs::read_dir(home.join("toolchains")).ok())
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    let active = env::var_os("RUSTUP_TOOLCHAIN");
    toolchains.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default();
        let rank = if active.as_deref() == Some(name) {
            0
        } else {
            1 + u8::from(!name.to_string_lossy().starts_with("nightly"))
        };
        (rank, path.clone())
    });
    toolchains.extend(["/usr/local", "/usr"].map(PathBuf::from));
    toolchains
}

/// Installs a compiler, or the library source of the one there is.
///
/// # Errors
/// Neither is possible here: the message holds the commands to type.
pub(super) fn install() -> Result<()> {
    if packages::may_install() {
        packages::refresh();
        if DEBIAN.iter().all(|package| packages::is_available(package)) {
            return packages::install(&DEBIAN);
        }
    }
    if workspace::find_program("rustup").is_some() {
        process::step("adding the library source to the active Rust toolchain");
        if process::run(Command::new("rustup").args(["component", "add", "rust-src"])).is_ok() {
            return Ok(());
        }
    }
    bail!("no compiler for the kernel programs\n{}", instructions())
}

/// What to type where nothing can be installed.
pub(super) fn instructions() -> String {
    format!(
        "The kernel programs need a rustc of {}.{} or newer with its library source. Type one of\n  \
         {}\n  \
         rustup component add rust-src\n\
         or name such a compiler in PROXY_EBPF_RUSTC and its cargo in PROXY_EBPF_CARGO.",
        OLDEST.0,
        OLDEST.1,
        packages::typed(&DEBIAN),
    )
}
