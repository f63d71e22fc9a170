//! Embeds the eBPF object. Where it has not been built, an empty one takes its place, so that `cargo check`, clippy and
//! rust-analyzer need no eBPF toolchain; the agent then says at start what to run.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let variable = |name: &str| env::var_os(name).map(PathBuf::from);
    // Asked at run time: a build directory may be copied to another checkout, and this program with it.
    let this_crate = variable("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let built = variable("PROXY_EBPF_OBJECT").unwrap_or_else(|| this_crate.join("../target/ebpf/proxy-ebpf.o"));
    println!("cargo::rerun-if-env-changed=PROXY_EBPF_OBJECT");
    println!("cargo::rerun-if-changed={}", built.display());
    let embedded = variable("OUT_DIR").expect("cargo sets OUT_DIR").join("proxy-ebpf.o");
    match fs::read(&built) {
        Ok(object) => fs::write(embedded, object),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(embedded, []),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", built.display()))),
    }
}
