//! What the command line tells of itself: to shells and in manual pages.

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    process::{Command, Output, Stdio},
};

use clap::CommandFactory as _;
use proxy_agent::cli::Cli;

fn run(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_proxy-agent"))
        .args(arguments)
        .output()
        .expect("the agent runs");
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn subcommands() -> BTreeSet<String> {
    let command = Cli::command();
    command
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect()
}

#[test]
fn every_shell_learns_all_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = String::from_utf8(run(&["completions", shell]).stdout).expect("UTF-8");
        for word in subcommands().iter().map(String::as_str).chain(["pin-dir"]) {
            assert!(script.contains(word), "{shell}: no {word}");
        }
    }
}

/// What bash makes of the script when somebody presses the tabulator.
#[test]
fn bash_completes_a_subcommand() {
    let mut script = run(&["completions", "bash"]).stdout;
    script.extend_from_slice(
        br#"
            words=($(complete -p proxy-agent))
            for i in ${!words[@]}; do [[ ${words[i]} == -F ]] && complete=${words[i+1]}; done
            COMP_WORDS=(proxy-agent serv) COMP_CWORD=1
            $complete proxy-agent serv proxy-agent
            printf '%s\n' "${COMPREPLY[@]}"
        "#,
    );
    let mut bash = Command::new("bash")
        .args(["--norc", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("bash, which the build needs, too");
    bash.stdin
        .take()
        .expect("piped")
        .write_all(&script)
        .expect("bash reads");
    let output = bash.wait_with_output().expect("bash ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "services\n");
}

#[test]
fn there_is_a_manual_page_for_each_subcommand() {
    let directory = tempfile::tempdir().expect("a directory");
    let pages = directory.path().join("man1");
    run(&["man", pages.to_str().expect("UTF-8")]);
    let written: BTreeSet<String> = fs::read_dir(&pages)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    let mut expected: BTreeSet<String> = subcommands()
        .iter()
        .map(|name| format!("proxy-agent-{name}.1"))
        .collect();
    expected.insert("proxy-agent.1".to_owned());
    assert!(written.is_superset(&expected), "{written:?}");
    let status = fs::read_to_string(pages.join("proxy-agent-status.1")).expect("a page");
    for words in [".TH", "\\-\\-verify", "Compare the tables with what is planned"] {
        assert!(status.contains(words), "no {words} in {status}");
    }
}
