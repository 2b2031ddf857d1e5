//! Options that would have no effect in a command line. They are refused: a user who gives one
//! expects an effect.

use clap::ArgMatches;
use clap::error::{Error, ErrorKind};
use clap::parser::ValueSource;

/// A rule: in a subcommand, these options do nothing while something else is missing.
struct Rule {
    subcommand: &'static str,
    /// The options, by the names of the fields that hold them.
    options: &'static [&'static str],
    /// The argument without which they do nothing.
    without: &'static str,
    /// The message, behind the option's name: what to do.
    advice: &'static str,
}

/// The options that describe a guest. `--kernel` is not here: it can name the symbols of a dump.
const GUEST: &[&str] =
    &["memory", "vcpus", "privilege", "time", "timeout", "seed", "lets", "settings", "fails"];

const OF_A_DUMP: &str = "has no effect on a memory dump, which describes its guest itself; give \
                           --script FILE to boot a guest";

const RULES: &[Rule] = &[
    Rule { subcommand: "inspect", options: GUEST, without: "script", advice: OF_A_DUMP },
    Rule { subcommand: "check", options: GUEST, without: "script", advice: OF_A_DUMP },
    Rule { subcommand: "check", options: &["kernel"], without: "script", advice: OF_A_DUMP },
    Rule {
        subcommand: "run",
        options: &["verbose", "seed", "lets"],
        without: "file",
        advice: "has no effect on the tour; name a script",
    },
];

/// Refuses a command line with an option that would do nothing.
///
/// # Errors
/// The first such option, with advice.
pub fn check(command: &mut clap::Command, matches: &ArgMatches) -> Result<(), Error> {
    let Some((name, arguments)) = matches.subcommand() else { return Ok(()) };
    for rule in RULES.iter().filter(|rule| rule.subcommand == name) {
        if arguments.contains_id(rule.without) {
            continue;
        }
        let given =
            |option: &&&str| arguments.value_source(option) == Some(ValueSource::CommandLine);
        if let Some(option) = rule.options.iter().find(given) {
            let option = shown(command, name, option);
            let message = format!("{option} {}", rule.advice);
            return Err(match command.find_subcommand_mut(name) {
                Some(subcommand) => subcommand.error(ErrorKind::ArgumentConflict, message),
                None => command.error(ErrorKind::ArgumentConflict, message),
            });
        }
    }
    Ok(())
}

/// The option as it is written: `--set` for the field `settings`.
fn shown(command: &clap::Command, subcommand: &str, field: &str) -> String {
    let argument = command
        .find_subcommand(subcommand)
        .and_then(|found| found.get_arguments().find(|argument| argument.get_id() == field));
    let long = argument.and_then(clap::Arg::get_long).unwrap_or(field);
    format!("--{long}")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_rule_names_arguments_that_exist() {
        let command = crate::cli::Cli::command();
        for rule in RULES {
            let found = command.find_subcommand(rule.subcommand).expect("the subcommand exists");
            for name in rule.options.iter().chain([&rule.without]) {
                assert!(found.get_arguments().any(|argument| argument.get_id() == *name), "{name}");
            }
        }
    }
}
