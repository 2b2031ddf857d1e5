//! `vmkern completions`: what a shell of the host needs to complete command lines.

use clap::builder::PossibleValuesParser;
use clap::{Arg, Args, Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;
use vmkern::check::rules;
use vmkern::guest::{FailSite, Tunables};
use vmkern::script::Status;

use super::help;

const EXAMPLES: &str = "\
Examples:
  vmkern completions bash > ~/.local/share/bash-completion/completions/vmkern
  vmkern completions zsh > ~/.zfunc/_vmkern
  vmkern completions fish > ~/.config/fish/completions/vmkern.fish";

/// Prints completions of the command line for a shell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

/// Runs the subcommand.
pub fn run(args: &CompletionsArgs) -> Status {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut offered(), "vmkern", &mut text);
    super::print(&String::from_utf8_lossy(&text));
    Status::Ok
}

/// The command line as shells complete it: without hidden subcommands, which the generators would
/// offer, and with the words that values are made of.
fn offered() -> Command {
    let whole = super::Cli::command();
    Command::new("vmkern")
        .about(whole.get_about().cloned().unwrap_or_default())
        .version(super::VERSION.as_str())
        .disable_help_subcommand(true)
        .args(whole.get_arguments().cloned())
        .subcommands(help::visible(&whole).cloned().map(with_words))
}

/// The same command with the words of its values, and those of its subcommands.
fn with_words(command: Command) -> Command {
    let command = match command.get_name() {
        "help" => {
            let root = super::Cli::command();
            let mut words: Vec<String> =
                help::visible(&root).map(|command| command.get_name().to_owned()).collect();
            words.extend(help::language_words().map(str::to_owned));
            words.sort_unstable();
            words.dedup();
            command.mut_arg("words", |arg| arg.value_parser(PossibleValuesParser::new(words)))
        }
        _ => command,
    };
    command.mut_args(with_values).mut_subcommands(with_words)
}

/// The same argument with the words that its value can begin with. A value that is neither one of
/// some words nor a path is not completed.
fn with_values(arg: Arg) -> Arg {
    let words = |words: Vec<String>, arg: Arg| arg.value_parser(PossibleValuesParser::new(words));
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    match arg.get_id().as_str() {
        "only" => words(rules().map(|rule| rule.id.to_owned()).collect(), arg),
        "settings" => words(Tunables::NAMES.iter().map(|name| format!("{name}=")).collect(), arg),
        "fails" => words(FailSite::ALL.map(|site| format!("{}=", site.name())).into(), arg),
        "privilege" => words(owned(&["auto", "supervisor", "user"]), arg),
        "time" => words(owned(&["virtual", "real"]), arg),
        "directory" => arg.value_hint(ValueHint::DirPath),
        _ if arg.get_action().takes_values()
            && !arg.is_positional()
            && arg.get_value_hint() == ValueHint::Unknown
            && arg.get_possible_values().is_empty() =>
        {
            arg.value_hint(ValueHint::Other)
        }
        _ => arg,
    }
}
