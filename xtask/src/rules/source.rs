//! Test functions in the sources, and what is written about them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use proc_macro2::{Span, TokenStream};
use syn::{
    Attribute, Generics, Ident, Item, ReturnType, Token, Visibility, braced, parenthesized,
    parse::{Parse, ParseStream},
};

use super::{citation, rule::Number};

/// A test function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Test {
    /// Its file, from the workspace's root on
    pub(super) file: String,
    /// Its name
    pub(super) name: String,
    /// The rules that its name and comments cite, sorted
    pub(super) cites: Vec<Number>,
}

/// Macros whose functions are tests: each for both address families, and those of proptest.
const MACROS: [&str; 2] = ["both_families", "proptest"];

/// Every test in these directories of `root`.
///
/// # Errors
/// If a file can't be read or is no Rust; the message names it.
pub(super) fn directories(root: &Path, directories: &[&str]) -> Result<Vec<Test>> {
    let mut files = Vec::new();
    for directory in directories {
        collect(&root.join(directory), &mut files)?;
    }
    files.sort();
    let mut tests = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        tests.extend(tests_of(&name, &text).with_context(|| format!("cannot parse {name}"))?);
    }
    Ok(tests)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry
            .with_context(|| format!("cannot read {}", directory.display()))?
            .path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// Every test of a file.
fn tests_of(file: &str, text: &str) -> syn::Result<Vec<Test>> {
    let mut functions = Vec::new();
    find(syn::parse_file(text)?.items, &mut functions)?;
    let lines: Vec<&str> = text.lines().collect();
    let test = |function: Function| {
        let mut cites = citation::in_name(&function.name);
        for comment in comments(&lines, &function) {
            cites.extend(citation::in_comment(&comment));
        }
        cites.sort_unstable();
        cites.dedup();
        Test {
            file: file.to_owned(),
            name: function.name,
            cites,
        }
    };
    Ok(functions.into_iter().map(test).collect())
}

/// A test function, and its first and last line, from 1.
struct Function {
    name: String,
    first: usize,
    last: usize,
}

impl Function {
    fn new(name: &Ident, attributes: &[Attribute], end: Span) -> Self {
        let first = attributes
            .iter()
            .map(|attribute| attribute.pound_token.span.start().line);
        Self {
            name: name.to_string(),
            first: first.min().unwrap_or(name.span().start().line),
            last: end.end().line,
        }
    }
}

fn find(items: Vec<Item>, functions: &mut Vec<Function>) -> syn::Result<()> {
    for item in items {
        match item {
            Item::Fn(function) if function.attrs.iter().any(is_test) => {
                functions.push(Function::new(
                    &function.sig.ident,
                    &function.attrs,
                    function.block.brace_token.span.close(),
                ));
            }
            Item::Mod(module) => find(module.content.map(|(_, items)| items).unwrap_or_default(), functions)?,
            Item::Macro(call) if MACROS.iter().any(|name| call.mac.path.is_ident(name)) => {
                functions.extend(call.mac.parse_body::<Functions>()?.0);
            }
            _ => {}
        }
    }
    Ok(())
}

/// `#[test]`, `#[tokio::test]`, with or without arguments.
fn is_test(attribute: &Attribute) -> bool {
    attribute
        .path()
        .segments
        .last()
        .is_some_and(|last| last.ident == "test")
}

/// Functions whose parameters need not be Rust's: those of a macro.
struct Functions(Vec<Function>);

impl Parse for Functions {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        input.call(Attribute::parse_inner)?;
        let mut functions = Vec::new();
        while !input.is_empty() {
            let attributes = input.call(Attribute::parse_outer)?;
            input.parse::<Visibility>()?;
            input.parse::<Token![fn]>()?;
            let name: Ident = input.parse()?;
            input.parse::<Generics>()?;
            let (parameters, body);
            parenthesized!(parameters in input);
            parameters.parse::<TokenStream>()?;
            input.parse::<ReturnType>()?;
            let braces = braced!(body in input);
            body.parse::<TokenStream>()?;
            functions.push(Function::new(&name, &attributes, braces.span.close()));
        }
        Ok(Self(functions))
    }
}

/// The comments in a function and directly above it, each of adjacent lines as one text.
fn comments(lines: &[&str], function: &Function) -> Vec<String> {
    let comment = |line: &str| {
        let line = line.trim_start();
        let text = line.strip_prefix("//").filter(|text| !text.starts_with('!'))?;
        Some(text.trim_start_matches('/').trim().to_owned())
    };
    let above = lines[..function.first - 1].iter().rev();
    let first = function.first - above.take_while(|line| comment(line).is_some()).count();
    let mut comments: Vec<String> = Vec::new();
    let mut is_open = false;
    for line in &lines[first - 1..function.last] {
        let text = comment(line);
        let goes_on = is_open;
        is_open = text.is_some();
        match (text, comments.last_mut()) {
            (Some(text), Some(open)) if goes_on => *open = format!("{open} {text}"),
            (Some(text), _) => comments.push(text),
            (None, _) => {}
        }
    }
    comments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cited(text: &str) -> Vec<(String, String)> {
        let tests = tests_of("file.rs", text).expect("Rust");
        let cites = |test: Test| test.cites.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tests.into_iter().map(|test| (test.name.clone(), cites(test))).collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, cites): &(&str, &str)| ((*name).to_owned(), (*cites).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn test_functions_are_found_wherever_they_are() {
        let text = "
            #[test] fn rule_1_1_plain() {}
            fn rule_1_2_helper() {}
            mod tests {
                #[tokio::test(start_paused = true)] async fn rule_1_3_later() -> Result<()> { Ok(()) }
                mod deep { #[test] fn without() {} }
            }
            both_families! {
                fn rule_2_1_each<F>() { let x = 1; }
                /// behaviour.md 2.2
                fn next<F>() {}
            }
            proptest! {
                #![proptest_config(ProptestConfig::with_cases(1))]
                #[test] fn rule_3_1_any(one: u32, count in 1..=u32::MAX) { prop_assert!(true); }
            }
            other! { fn rule_4_1_no_test() {} }
        ";
        assert_eq!(
            cited(text),
            pairs(&[
                ("rule_1_1_plain", "1.1"),
                ("rule_1_3_later", "1.3"),
                ("without", ""),
                ("rule_2_1_each", "2.1"),
                ("next", "2.2"),
                ("rule_3_1_any", "3.1"),
            ])
        );
    }

    #[test]
    fn comments_count_within_and_directly_above() {
        let text = "
            //! behaviour.md 1.1

            // behaviour.md 1.2

            // behaviour.md 1.3,
            // 1.4
            /// Stays (1.5).
            #[test]
            /// behaviour.md 1.6
            fn first() {
                // behaviour.md 1.7
                let it = \"behaviour.md 1.8\";
            }
            // behaviour.md 1.9

            #[test]
            fn second() {}
        ";
        assert_eq!(cited(text), pairs(&[("first", "1.3 1.4 1.5 1.6 1.7"), ("second", "")]));
    }
}
