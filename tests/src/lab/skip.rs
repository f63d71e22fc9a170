//! Scenarios that cannot run here say so, on a line that `cargo xtask test` counts.

use std::io::Write as _;

use nix::unistd::geteuid;

/// Why a lab cannot be built here, if so.
pub fn reason_to_skip() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("network namespaces need root: run as root");
    }
    if !std::path::Path::new("/proc/self/ns/net").exists() {
        return Some("this kernel has no network namespaces");
    }
    None
}

/// Prints `SKIPPED <test>: <reason>` on a line of its own, past the test harness, which keeps the output of passing tests.
pub fn say_skipped(test: &str, reason: &str) {
    let _ = writeln!(std::io::stdout(), "\nSKIPPED {test}: {reason}");
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
