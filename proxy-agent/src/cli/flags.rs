//! The flags that `run` was started with, as `/flagz` tells them.

use std::{collections::BTreeMap, ffi::OsString};

use clap::{Arg, ArgMatches, CommandFactory as _};

use super::Cli;

/// Every flag of `run` by its name, with its value or default, empty without; several values are joined by commas. Empty if
/// these are not the arguments of a `run`.
pub(super) fn of_run(arguments: impl IntoIterator<Item = OsString>) -> BTreeMap<String, String> {
    let mut command = Cli::command();
    let Ok(matches) = command.try_get_matches_from_mut(arguments) else {
        return BTreeMap::new();
    };
    let (Some(run), Some(given)) = (command.find_subcommand("run"), matches.subcommand_matches("run")) else {
        return BTreeMap::new();
    };
    let flag = |argument: &Arg| Some((argument.get_long()?.to_owned(), value(argument, given)));
    run.get_arguments().filter_map(flag).collect()
}

fn value(argument: &Arg, given: &ArgMatches) -> String {
    // Of those that clap adds itself, `--help`, there is nothing to tell.
    let values = given.try_get_raw(argument.get_id().as_str()).ok().flatten();
    let values = values.into_iter().flatten().map(|value| value.to_string_lossy());
    values.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::pin::DEFAULT_PIN_DIRECTORY;

    #[test]
    fn flags_have_what_was_given_or_their_default() {
        let flags = of_run(
            [
                "proxy-agent",
                "run",
                "--pod-devices=a*",
                "--pod-devices=b",
                "--bind-address-hard-fail",
            ]
            .map(OsString::from),
        );
        for (name, value) in [
            ("pod-devices", "a*,b"),
            ("bind-address-hard-fail", "true"),
            ("pin-dir", DEFAULT_PIN_DIRECTORY),
            ("cgroup", ""),
        ] {
            assert_eq!(flags.get(name).map(String::as_str), Some(value), "{name}: {flags:?}");
        }
        assert!(of_run(["proxy-agent", "status"].map(OsString::from)).is_empty());
    }
}
