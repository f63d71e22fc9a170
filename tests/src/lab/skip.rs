//! Scenarios that cannot run here say so, for people and for `cargo xtask test`, which counts them.

use std::{env, fs::OpenOptions, io::Write as _, path::Path};

use nix::unistd::geteuid;

/// The file that `cargo xtask test` reads skipped tests from: the test harness takes them for passed.
const SKIPPED_FILE: &str = "PROXY_SKIPPED_FILE";

/// Why a lab cannot be built here, if so.
pub fn reason_to_skip() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("network namespaces need root: run as root");
    }
    if !Path::new("/proc/self/ns/net").exists() {
        return Some("this kernel has no network namespaces");
    }
    None
}

/// Prints `SKIPPED test: reason` on a line of its own, past the test harness, which keeps the output of passing tests; and
/// tells `cargo xtask test`.
pub fn say_skipped(test: &str, reason: &str) {
    // Not `println!`, which the harness captures. Where nobody reads, nothing is lost.
    let _ = writeln!(std::io::stdout(), "\nSKIPPED {test}: {reason}");
    if let Some(path) = env::var_os(SKIPPED_FILE) {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("the list of skipped tests");
        writeln!(file, "{test}: {reason}").expect("the list of skipped tests can be written");
    }
}

/// First line of a scenario: returns `Ok` from it where no lab can be built, and says so.
#[macro_export]
macro_rules! require_root {
    () => {
        if let Some(reason) = $crate::lab::reason_to_skip() {
            fn here() {}
            let test = ::std::any::type_name_of_val(&here).trim_end_matches("::here");
            $crate::lab::say_skipped(test, reason);
            return Ok(());
        }
    };
}
