//! How listings are printed.

use std::{
    fmt::Display,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result};
use clap::Args;
use comfy_table::{Attribute, Cell, Color, Table, presets::NOTHING};
use serde::Serialize;

use super::Output;
use crate::dataplane::{
    kernel,
    pin::{DEFAULT_PIN_DIRECTORY, PinDirectory},
    table::Tables,
};

/// Where the tables are and how to print what they hold.
#[derive(Debug, Args)]
pub(super) struct ListingArgs {
    /// Directory on a BPF file system where the agent pins
    #[arg(long, value_name = "DIR", default_value = DEFAULT_PIN_DIRECTORY)]
    pin_dir: PinDirectory,

    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl ListingArgs {
    /// The pin directory.
    pub(super) fn pin(&self) -> &PinDirectory {
        &self.pin_dir
    }

    /// How to print.
    pub(super) const fn output(&self) -> Output {
        self.output
    }

    /// The tables that are pinned.
    pub(super) fn tables(&self) -> Result<Tables> {
        kernel::open(&self.pin_dir)
    }

    /// Prints `listing` as asked for.
    pub(super) fn print<T: Serialize, D: Display>(&self, listing: &T, text: impl FnOnce(&T) -> D) -> Result<()> {
        self.output.print(listing, text)
    }
}

impl Output {
    /// Prints `listing`: to people by `text`, to programs as it is.
    pub(super) fn print<T: Serialize, D: Display>(self, listing: &T, text: impl FnOnce(&T) -> D) -> Result<()> {
        let text = match self {
            Self::Table => text(listing).to_string(),
            Self::Json => serde_json::to_string_pretty(listing)?,
            Self::Yaml => serde_yaml_ng::to_string(listing)?.trim_end().to_owned(),
        };
        print_line(&text).map(drop)
    }
}

/// Prints a line, or some; `false` if nobody reads any more.
pub(super) fn print_line(text: &str) -> Result<bool> {
    match writeln!(io::stdout().lock(), "{text}") {
        Ok(()) => Ok(true),
        // Whoever reads has seen enough, such as `head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// A table with this header, which stands out on a terminal.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    let header = header.map(|name| Cell::new(name).add_attribute(Attribute::Bold).fg(Color::Cyan));
    table.load_style(NOTHING).set_header(header);
    table
}

/// The text of what may be unknown.
pub(super) fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
