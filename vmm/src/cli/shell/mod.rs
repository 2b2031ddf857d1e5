//! `vmkern shell`: one guest, and the script language a line at a time.
//!
//! At a terminal the shell shows the result of each statement and continues, whatever the result
//! is. Lines from a pipe are a script: the first thing that does not hold ends it, with the status
//! that `vmkern run` would end with.
//!
//! A guest boots before the first line. A `guest` line before the first statement, or after the
//! guest has died, ends that guest and boots another; what several of these lines say adds up, and
//! the last one counts.

mod input;
mod own;
mod session;
mod words;

use std::path::PathBuf;

use clap::Args;
use vmkern::script::{GuestOptions, Status};

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

Lines are those of scripts (`vmkern help`), and `help`, `help WORD` and `exit`. Ctrl-C stops \
waiting for a statement, which continues as if `start` had sent it. Ctrl-C at the prompt, twice, \
leaves; so does Ctrl-D. The time limit applies to each line. When the guest has died, `guest` \
starts another.";

/// Boots a guest and takes lines of the script language, from a terminal or from a pipe.
#[derive(Debug, Args)]
#[command(after_help = help::with_tunables(&help::with_statuses(EXAMPLES)))]
pub struct ShellArgs {
    /// Shows each step with its result on standard error, for lines from a pipe too.
    #[arg(short, long)]
    pub verbose: bool,
    /// Writes the kernel's whole log to this file as it comes; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    #[command(flatten)]
    pub guest: GuestArgs,
}

/// Runs the subcommand.
pub fn run(args: &ShellArgs, signals: &Signals) -> Status {
    let mut input = Input::open();
    let (mut asked, mut lines) = (GuestOptions::default(), 0);
    // What the guest before this one was asked to be.
    let mut before = None;
    loop {
        let guest = args.guest.with(&asked, Precedence::CommandLine).guest;
        let session = Session { args, guest: &guest, signals, lines };
        match session.run(&mut input) {
            Left::With(status) => return status,
            Left::ForAnother { options, lines: read } => {
                let next = asked.clone().and(&options);
                before = Some(std::mem::replace(&mut asked, next));
                lines = read;
            }
            Left::Unbooted(status) => {
                let goes_on = input.is_typed() && !signals.fired();
                match before.take().filter(|_| goes_on) {
                    Some(options) => asked = options,
                    None => return status,
                }
                super::print("the guest is as it was before that line\n");
            }
        }
    }
}
