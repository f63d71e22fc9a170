//! Where things are.

use std::{
    env,
    path::{Path, PathBuf},
};

/// The workspace's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a member of the workspace")
}

/// Where cargo puts what it builds of the workspace.
pub(crate) fn target() -> PathBuf {
    // A relative CARGO_TARGET_DIR is relative to where cargo was started, which is where we are, too.
    env::var_os("CARGO_TARGET_DIR").map_or_else(
        || root().join("target"),
        |path| env::current_dir().unwrap_or_default().join(path),
    )
}

/// The eBPF crate: a workspace of its own.
pub(crate) fn ebpf_crate() -> PathBuf {
    root().join("proxy-ebpf")
}

/// Where cargo puts what it builds of the eBPF crate, and where the agent's build script looks for the object.
pub(crate) fn ebpf_target() -> PathBuf {
    root().join("target/ebpf")
}

/// The eBPF object that the agent embeds.
pub(crate) fn ebpf_object() -> PathBuf {
    ebpf_target().join("proxy-ebpf.o")
}

/// Where cargo keeps the sources of other crates.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")))
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> PathBuf {
    env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

/// The first file of this name on the PATH, or where the system's administration tools are: an ordinary user's PATH
/// lacks those.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// Arguments of compilers that hide where this was built: what is built elsewhere is the same. `option` takes `FROM=TO`.
pub(crate) fn prefix_maps(option: &str) -> Vec<String> {
    let places = [(Some(root().to_owned()), "/source"), (cargo_home(), "/cargo")];
    let known = places.into_iter().filter_map(|(from, to)| Some((from?, to)));
    known
        .map(|(from, to)| format!("{option}{}={to}", from.display()))
        .collect()
}
