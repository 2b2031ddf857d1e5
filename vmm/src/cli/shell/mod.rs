//! `vmkern shell`: one guest, and the script language a line at a time.
//!
//! Somebody who types sees what each statement gives, and goes on whatever that is. Lines from a
//! pipe are a script: the first thing that does not hold ends it, with the status that `vmkern run`
//! would end with.

mod input;
mod session;
mod words;

use std::path::PathBuf;

use clap::Args;
use vmkern::script::Status;

use self::input::Input;
use self::session::{Left, Session};
use super::guest::{GuestArgs, Precedence};
use super::help;
use super::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  vmkern shell
  vmkern shell --memory 256M --vcpus 2
  printf '%s\\n' 'a = kmem_malloc kmem_map 4K' 'print $a' | vmkern shell

Lines are those of scripts (`vmkern help`), and `help`, `help VERB` and `exit`. Ctrl-C stops \
waiting for a statement, which goes on as if it had been started; at the prompt, twice, it leaves, \
as Ctrl-D does. The time limit is each line's.";

/// Boots a guest and takes lines of the script language, typed or from a pipe.
#[derive(Debug, Args)]
#[command(after_help = help::with_tunables(&help::with_statuses(EXAMPLES)))]
pub struct ShellArgs {
    /// Shows each step with its result on standard error, for lines from a pipe too.
    #[arg(short, long)]
    pub verbose: bool,
    /// Writes the kernel's log to this file, all of it as it comes; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// Runs the subcommand.
pub fn run(args: &ShellArgs, signals: &Signals) -> Status {
    let mut input = Input::open();
    let (mut guest, mut lines) = (args.guest.clone(), 0);
    loop {
        let session = Session { args, guest: &guest, signals, lines };
        match session.run(&mut input) {
            Left::With(status) => return status,
            Left::ForAnother { options, lines: read } => {
                guest = args.guest.with(&options, Precedence::CommandLine).guest;
                lines = read;
            }
        }
    }
}
