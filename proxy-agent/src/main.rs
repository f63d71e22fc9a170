//! The node agent.

use clap::Parser as _;

fn main() -> anyhow::Result<()> {
    proxy_agent::cli::Cli::parse().run()
}
