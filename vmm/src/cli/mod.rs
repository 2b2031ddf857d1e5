//! The command line: one file for each subcommand. What a subcommand does is in the library.

mod bench;
mod book;
mod check;
mod color;
mod columns;
mod completions;
mod console;
mod doctor;
mod effects;
mod guest;
mod help;
mod inspect;
mod junit;
mod kernel;
mod look;
mod man;
mod plan;
mod print;
mod progress;
mod run;
mod save;
mod script;
mod shell;
mod signals;
mod steps;
mod sweep;
mod test;
mod tour;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use vmkern::abi::ABI_VERSION;
use vmkern::script::{BAD, FailureReport, RunReport, Status};
use vmkern::text::one_line;

use self::color::Color;
use self::guest::GuestArgs;
use self::signals::Signals;

const EXAMPLES: &str = "\
Examples:
  vmkern doctor                               can this host run guests?
  vmkern run                                  take the tour
  vmkern run tests/scripts/smallest.kmem      run a script
  vmkern help kmem_malloc                     explain a word of the language
  vmkern test tests/scripts/64M               run a directory of scripts";

/// FreeBSD's kernel memory allocator of 2008, alive in a virtual machine.
#[derive(Debug, Parser)]
#[command(
    name = "vmkern",
    version = VERSION.as_str(),
    after_help = help::with_statuses(EXAMPLES),
    disable_help_subcommand = true,
    max_term_width = help::WIDTH
)]
struct Cli {
    /// Whether what is printed has colours.
    #[arg(
        long,
        global = true,
        value_name = "auto|always|never",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    color: Color,
    #[command(subcommand)]
    command: Command,
}

/// Version, commit, and version of the interface between host and guest.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("VMKERN_COMMIT"));
    format!("{version} ({commit}, ABI {ABI_VERSION})")
});

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Test(test::TestArgs),
    Check(check::CheckArgs),
    Inspect(inspect::InspectArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Shell(shell::ShellArgs),
    #[command(alias = "image")]
    Kernel(kernel::KernelArgs),
    Help(help::HelpArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[command(hide = true)]
    Book(book::BookArgs),
}

/// Reads the command line, does what it says, and returns the exit status.
pub fn main() -> ExitCode {
    let signals = signals::catch();
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    print::choose(Color::of(&arguments));
    let status = match parse() {
        Ok(cli) => match cli.command {
            Command::Run(args) => run::run(&args, signals),
            Command::Test(args) => test::run(&args, signals),
            Command::Check(args) => check::run(&args, signals),
            Command::Inspect(args) => inspect::run(&args, signals),
            Command::Doctor(args) => doctor::run(&args),
            Command::Bench(args) => bench::run(&args),
            Command::Shell(args) => shell::run(&args, signals),
            Command::Kernel(args) => kernel::run(&args),
            Command::Help(args) => help::run(&args),
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&args),
            Command::Book(args) => book::run(&args),
        },
        Err(error) => refuse(&error, &arguments),
    };
    ExitCode::from(finish(status, signals) as u8)
}

/// Says what could not be written, and that the command was ended from outside; returns the status
/// of it all.
fn finish(status: Status, signals: &Signals) -> Status {
    if let Some(status) = signals.status() {
        eprint(&signals::said(status));
        return status;
    }
    let failures = print::failures();
    for failure in &failures {
        complain(&anyhow::anyhow!("{failure}"));
    }
    if status == Status::Ok && !failures.is_empty() { Status::Unwritten } else { status }
}

/// The command line, if it makes sense.
fn parse() -> Result<Cli, clap::Error> {
    let mut command = Cli::command();
    let matches = command.try_get_matches_from_mut(std::env::args_os())?;
    effects::check(&mut command, &matches)?;
    Cli::from_arg_matches(&matches)
}

/// Says what is wrong with the command line, in JSON too where that was asked for.
fn refuse(error: &clap::Error, arguments: &[OsString]) -> Status {
    let text = error.render().ansi().to_string();
    if !error.use_stderr() {
        print(&text);
        return Status::Ok;
    }
    eprint(&quoted(&text, arguments));
    let is_run = arguments.first().is_some_and(|first| first == "run");
    if is_run
        && arguments
            .iter()
            .take_while(|argument| *argument != "--")
            .any(|argument| argument == "--json")
    {
        let text = quoted(&error.to_string(), arguments);
        let got = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let failure = FailureReport {
            line: 0,
            expected: "a command line as `vmkern run --help` says".to_owned(),
            got,
        };
        let asked = GuestArgs::default().asked();
        print_json(&RunReport::refused(Status::Usage, vec![failure], asked));
    }
    Status::Usage
}

/// `text`, which may quote `arguments` or one side of their `=`, with what a terminal would obey in
/// those escaped, and each of them in one line.
fn quoted(text: &str, arguments: &[OsString]) -> String {
    let mut pieces: Vec<String> = Vec::new();
    for argument in arguments {
        let argument = argument.to_string_lossy();
        pieces.extend(argument.splitn(3, '=').map(str::to_owned));
        pieces.push(argument.into_owned());
    }
    // One that is nothing else forges nothing, and would be found in text of ours.
    pieces.retain(|piece| !piece.chars().all(char::is_control));
    // A longer one may hold a shorter one.
    pieces.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
    pieces.iter().fold(text.to_owned(), |text, piece| match one_line(piece.as_bytes()) {
        line if line == *piece => text,
        line => text.replace(piece.as_str(), &line),
    })
}

/// The one object on standard output.
fn print_json(report: &impl serde::Serialize) {
    let written = print::json_to_stdout(|out| {
        serde_json::to_writer(&mut *out, report)?;
        out.write_all(b"\n")
    });
    // `finish` reports an error of the stream.
    if let Err(error) = written
        && print::failures().is_empty()
    {
        complain(&anyhow::Error::new(error).context("cannot write the report as JSON"));
    }
}

/// Writes to standard output.
fn print(text: &str) {
    print::out(text);
}

/// Writes to standard error.
fn eprint(text: &str) {
    print::err(text);
}

/// An error with what led to it, as far as the error does not say that itself.
fn complain(error: &anyhow::Error) {
    let text = vmkern_inspect::chain(error.as_ref());
    eprint(&format!("{BAD}error:{BAD:#} {text}\n"));
}
