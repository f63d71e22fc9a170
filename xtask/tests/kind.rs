//! `cargo xtask kind` where there is no cluster to be had.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// A machine with only these programs: scripts of a shell.
struct Machine(tempfile::TempDir);

impl Machine {
    fn with(programs: &[(&str, &str)]) -> Self {
        let machine = Self(tempfile::tempdir().expect("a directory"));
        fs::create_dir(machine.bin()).expect("a directory");
        let timeout = ("timeout", "exec /usr/bin/timeout \"$@\"");
        for (name, script) in programs.iter().chain([&timeout]) {
            let path = machine.bin().join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        machine
    }

    fn bin(&self) -> PathBuf {
        self.0.path().join("bin")
    }

    /// Status, standard output and standard error of `xtask kind`.
    fn kind(&self, arguments: &[&Path]) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
            .arg("kind")
            .args(arguments)
            .env("PATH", self.bin())
            .env("CARGO_TARGET_DIR", self.0.path())
            .env("NOTES", self.notes())
            .output()
            .expect("xtask runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn notes(&self) -> PathBuf {
        self.0.path().join("notes")
    }
}

#[test]
fn without_an_engine_it_is_skipped_and_says_so() {
    let (status, said, _) = Machine::with(&[("docker", "exit 1"), ("podman", "exit 3")]).kind(&[]);
    assert_eq!(status, Some(77), "{said}");
    assert_eq!(
        said,
        "skipped: no container engine: `docker info` fails (exit status: 1), `podman info` fails (exit status: 3)\n"
    );
}

#[test]
fn without_kind_it_is_skipped_and_says_so() {
    let (status, said, _) = Machine::with(&[("docker", "exit 0")]).kind(&[]);
    assert_eq!(status, Some(77), "{said}");
    assert!(said.starts_with("skipped: kind is not installed: see "), "{said}");
}

/// Tools that only note how they are called, up to the first that fails.
#[test]
fn a_cluster_that_fails_is_looked_at_and_removed() {
    const NOTE: &str = "echo ${0##*/} \"$@\" >> $NOTES";
    let kind = format!("{NOTE}\ncase \"$1\" in load) exit 4;; esac");
    let machine = Machine::with(&[("docker", NOTE), ("kind", &kind), ("kubectl", NOTE)]);
    let archive = Path::new("/nowhere/image.tar");
    let (status, _, said) = machine.kind(&[Path::new("--archive"), archive]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("FAILED: deployment"), "{said}");
    let notes = fs::read_to_string(machine.notes()).expect("notes");
    let calls: Vec<&str> = notes.lines().filter(|line| line.starts_with("kind ")).collect();
    let expected = [
        "kind get clusters",
        "kind create cluster --config ",
        "kind load image-archive --name proxy /nowhere/image.tar",
        "kind export logs --name proxy ",
        "kind delete cluster --name proxy",
    ];
    assert_eq!(calls.len(), expected.len(), "{notes}");
    let pairs = calls.iter().zip(expected);
    assert!(
        pairs.into_iter().all(|(call, expected)| call.starts_with(expected)),
        "{notes}"
    );
    assert!(notes.contains("get nodes,pods,services"), "{notes}");
}
