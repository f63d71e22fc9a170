//! The node agent.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    match proxy_agent::cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of reasons in one line, without the backtrace that anyhow's own form may add.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
