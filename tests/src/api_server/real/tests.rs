//! Without the programs: what they would be told, and what is said where they aren't there.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

/// A folder with these files, which are run by a shell.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable file");
    }
    folder
}

#[test]
fn a_folder_without_a_program_is_refused_and_what_is_missing_named() {
    for (there, missing) in [(&[][..], "etcd"), (&[("etcd", "")][..], "kube-apiserver")] {
        let folder = folder(there);
        let error = Assets::within(folder.path()).expect_err("it isn't there").to_string();
        let missing = format!("{}: No such file", folder.path().join(missing).display());
        assert!(
            error.contains(&missing) && error.contains("KUBEBUILDER_ASSETS"),
            "{error}"
        );
    }
    let folder = folder(&[("etcd", ""), ("kube-apiserver", "")]);
    assert!(Assets::within(folder.path()).is_ok());
}

/// The end of its log is what tells why.
#[test]
fn a_program_that_ends_is_told_with_its_last_words() {
    let folder = folder(&[("etcd", "echo 'no such flag: '$1; exit 3"), ("kube-apiserver", "")]);
    let assets = Assets::within(folder.path()).expect("both");
    let error = Real::start(assets).err().expect("it ends").to_string();
    assert!(error.contains("etcd ended with exit status: 3"), "{error}");
    assert!(error.contains("no such flag: --data-dir="), "{error}");
}

/// Ports differ, whoever shows the token is an administrator, and the key is one.
#[test]
fn both_programs_are_told_the_same_places() {
    let (programs, directory) = (folder(&[("etcd", ""), ("kube-apiserver", "")]), folder(&[]));
    let assets = Assets::within(programs.path()).expect("both");
    let plan = Plan::new(assets, directory.path()).expect("ports");
    plan.write_files().expect("files");
    let [client, peer] = plan.etcd;
    assert!(client != peer && client != plan.api_server && peer != plan.api_server);
    let store = format!("http://127.0.0.1:{client}");
    assert!(plan.etcd_arguments().contains(&format!("--listen-client-urls={store}")));
    let arguments = plan.api_server_arguments();
    assert!(arguments.contains(&format!("--etcd-servers={store}")), "{arguments:?}");
    let file = |flag: &str| {
        let value = arguments.iter().find_map(|argument| argument.strip_prefix(flag));
        fs::read_to_string(value.expect("it is told")).expect("it is there")
    };
    assert_eq!(
        file("--token-auth-file="),
        format!("{},test,test,system:masters\n", plan.token)
    );
    let key = file("--service-account-signing-key-file=");
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"), "it is PEM");
    assert!(rcgen::KeyPair::from_pem(&key).is_ok());
}
