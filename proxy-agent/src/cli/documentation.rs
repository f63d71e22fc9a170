//! `completions` and `man`: what shells and readers need to know of this command line, made from its declarations.

use std::{fs, io, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::Cli;

/// Print what a shell needs to complete the arguments of this program
#[derive(Debug, Args)]
#[command(after_help = "\
Example: proxy-agent completions bash > /usr/share/bash-completion/completions/proxy-agent")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(self) -> Result<()> {
        let mut script = Vec::new();
        let mut command = Cli::command();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        write(&script)
    }
}

/// Write the manual: a page for this program, and one for each subcommand
#[derive(Debug, Args)]
#[command(after_help = "Example: proxy-agent man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Directory for the pages; made if there is none
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl ManArgs {
    pub(super) fn run(self) -> Result<()> {
        let directory = self.directory.display();
        fs::create_dir_all(&self.directory).with_context(|| format!("cannot make {directory}"))?;
        clap_mangen::generate_to(Cli::command(), &self.directory)
            .with_context(|| format!("cannot write the manual to {directory}"))
    }
}

/// Writes to standard output, of which a reader may have seen enough.
fn write(bytes: &[u8]) -> Result<()> {
    match io::Write::write_all(&mut io::stdout().lock(), bytes) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}
