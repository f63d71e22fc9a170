//! The agent's log: lines on stderr.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::config::Logging;

/// What is logged unless RUST_LOG says otherwise. kube's client logs each failed attempt, which the watches tell better.
fn levels(verbosity: u32) -> &'static str {
    match verbosity {
        ..4 => "info,kube_client=off,proxy_ebpf=debug",
        4..6 => "info,kube_client=off,proxy_agent=debug,proxy_ebpf=debug",
        6.. => "trace,kube_client=off",
    }
}

/// Starts to log as the configuration says.
pub(super) fn start(logging: Logging) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(levels(logging.verbosity)));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let lines = if logging.is_json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines.boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verbosity_has_levels_that_are_understood() {
        for verbosity in 0..10 {
            levels(verbosity).parse::<EnvFilter>().unwrap();
        }
        assert!(!levels(3).contains("proxy_agent=debug"));
        assert!(levels(4).contains("proxy_agent=debug"));
    }
}
