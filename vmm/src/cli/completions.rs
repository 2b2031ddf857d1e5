//! `vmkern completions`: what a shell of the host needs to complete command lines.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use vmkern::script::Status;

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
    clap_complete::generate(args.shell, &mut super::Cli::command(), "vmkern", &mut text);
    super::print(&String::from_utf8_lossy(&text));
    Status::Ok
}
