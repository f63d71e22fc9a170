//! Embeds the eBPF object. Where it has not been built, an empty one takes its place, so that `cargo check`, clippy and
//! rust-analyzer need no eBPF toolchain; the agent then says at start what to run.

use std::{env, fs, io, path::PathBuf};

fn main() -> io::Result<()> {
    let built = env::var_os("PROXY_EBPF_OBJECT").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/proxy-ebpf.o"),
        PathBuf::from,
    );
    println!("cargo::rerun-if-env-changed=PROXY_EBPF_OBJECT");
    println!("cargo::rerun-if-changed={}", built.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("proxy-ebpf.o");
    match fs::read(&built) {
        Ok(object) => fs::write(embedded, object),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(embedded, []),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", built.display()))),
    }
}
