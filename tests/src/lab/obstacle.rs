//! Scenarios that cannot run here say so.

use std::path::Path;

use nix::unistd::geteuid;

/// Why no lab can be built here, if so.
pub fn obstacle() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("network namespaces need root: run as root");
    }
    if !Path::new("/proc/self/ns/net").exists() {
        return Some("this kernel has no network namespaces");
    }
    None
}

/// First line of a scenario: skips it where no lab can be built.
#[macro_export]
macro_rules! require_root {
    () => {
        if let Some(obstacle) = $crate::lab::obstacle() {
            $crate::skip!("{obstacle}");
        }
    };
}
