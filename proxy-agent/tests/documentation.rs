//! What the documents say of tables and commands is true of them.

use std::{collections::BTreeSet, fs, path::Path};

use clap::{Command, CommandFactory as _};
use proxy_agent::cli::Cli;
use proxy_common::layout::{VERSION, tables};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of code, indented by four.
fn code(document: &str) -> impl Iterator<Item = &str> {
    document
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(str::trim)
}

/// bpftool itself is not everywhere: what it is told is held against the tables' shapes.
#[test]
fn every_table_has_a_recipe_for_bpftool() {
    let document = document("tables.md");
    assert!(
        document.contains(&format!("/v{VERSION}/maps")),
        "the directory is of this layout"
    );
    for table in tables::ALL {
        let name = table.name;
        assert!(document.contains(&format!("`{name}`")), "{name} is not explained");
        let path = format!("$T/{name}");
        let mut recipes = code(&document).filter(|line| {
            let mut words = line.split(' ');
            line.starts_with("bpftool map ") && words.any(|word| word == path)
        });
        assert!(recipes.next().is_some(), "{name} has no recipe");
    }
}

#[test]
fn keys_of_recipes_are_as_long_as_those_of_the_tables() {
    let document = document("tables.md");
    let mut seen = 0;
    for line in code(&document).filter(|line| line.starts_with("bpftool map lookup pinned $T/")) {
        let (path, key) = line.split_once(" key ").unwrap_or_else(|| panic!("{line}: no key"));
        let name = path.rsplit('/').next().unwrap_or_default();
        let table = tables::ALL.into_iter().find(|table| table.name == name);
        let table = table.unwrap_or_else(|| panic!("{line}: there is no such table"));
        let bytes = key.split_whitespace().map(|byte| match byte.strip_prefix("0x") {
            Some(hex) => u8::from_str_radix(hex, 16),
            None => byte.parse(),
        });
        let bytes: Result<Vec<u8>, _> = bytes.collect();
        let length = bytes.unwrap_or_else(|error| panic!("{line}: {error}")).len();
        assert_eq!(length, table.key_size as usize, "{line}");
        seen += 1;
    }
    assert!(seen > 10, "{seen} recipes with a key");
}

/// The options that a subcommand takes, with their dashes.
fn options(command: &Command) -> BTreeSet<String> {
    let arguments = command.get_arguments();
    let mut options: BTreeSet<String> = arguments
        .filter_map(|argument| Some(format!("--{}", argument.get_long()?)))
        .collect();
    options.insert("--help".to_owned());
    options
}

/// Whoever is in trouble must not be told to type what there isn't.
#[test]
fn commands_in_the_documents_exist() {
    let cli = Cli::command();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut seen = 0;
    for entry in fs::read_dir(directory).expect("a directory") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = document(&name);
        let quoted = text.split('`').skip(1).step_by(2);
        for typed in quoted.chain(code(&text)) {
            let Some((_, rest)) = typed.split_once("proxy-agent ").filter(|(before, _)| before.is_empty()) else {
                continue;
            };
            let mut words = rest.split_whitespace();
            let subcommand = words.next().unwrap_or_default();
            let Some(command) = cli.find_subcommand(subcommand) else {
                // Something else of that name, such as a test's path or a package's.
                let is_word = subcommand
                    .chars()
                    .all(|letter| letter.is_ascii_lowercase() || letter == '-');
                assert!(!is_word, "{name}: `{typed}`: no such subcommand");
                continue;
            };
            let known = options(command);
            for word in words.filter(|word| word.starts_with("--")) {
                let option = word.split('=').next().unwrap_or_default();
                let option = option.trim_end_matches([',', ')', ']', '.']);
                assert!(
                    known.contains(option) || option == "--",
                    "{name}: `{typed}`: no {option}"
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 10, "{seen} commands");
}
