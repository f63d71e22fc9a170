//! Tables and colours for people.

use std::io::{IsTerminal as _, stdout};

use comfy_table::{Attribute, Cell, CellAlignment, Table, presets::NOTHING};

/// A table with a heading; columns from `first_number` on are aligned as numbers.
pub(crate) fn table(heading: &[&str], first_number: usize, rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(heading.iter().map(|name| Cell::new(name).add_attribute(Attribute::Dim)));
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(first_number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let lines: Vec<String> = table.lines().map(|line| format!(" {}", line.trim_end())).collect();
    lines.join("\n") + "\n"
}

/// Bold on a terminal.
pub(crate) fn bold(text: &str) -> String {
    painted(text, 1)
}

/// Green on a terminal.
pub(crate) fn good(text: &str) -> String {
    painted(text, 32)
}

/// Red on a terminal.
pub(crate) fn bad(text: &str) -> String {
    painted(text, 31)
}

/// See <https://no-color.org> for the variable.
fn painted(text: &str, code: u8) -> String {
    if stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
