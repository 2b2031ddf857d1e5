//! `vmkern run`: one script in one guest, or the tour.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use clap::Args;
use vmkern::Guest;
use vmkern::guest::SaveError;
use vmkern::input;
use vmkern::output::{Destination, reserve_stdout};
use vmkern::schedule::{Happened, Schedule};
use vmkern::script::{
    BAD, Ending, FailureReport, GOOD, PressureRun, RunReport, Session, Setup, Source, Standstill,
    Status, Unlaunched, explain, launch_status, run_script_then,
};
use vmkern::text;

use super::guest::{GuestArgs, Precedence};
use super::script::Unusable;
use super::signals::Signals;
use super::steps::{Collector, Output, Trace};
use super::tour::{Pace, Request};
use super::{console, print, script, tour};

const EXAMPLES: &str = "\
Examples:
  vmkern run                                  take the tour
  vmkern run --tour list                      what its chapters are
  vmkern run --tour kmem_malloc               one of them
  vmkern run tests/scripts/smallest.kmem      run a script
  echo 'kmem_alloc kernel_map 12K' | vmkern run -v -
  vmkern run --save-dump guest.img FILE.kmem
  vmkern run --pressure pressure.toml FILE.kmem
  vmkern run --memory 1G --set kern.hz=1000 --json FILE.kmem";

/// Most bytes of a schedule.
const SCHEDULE_MAX: u64 = 1 << 20;

/// Boots a guest and runs a script in it; without a script, takes the tour.
#[derive(Debug, Args)]
#[command(after_help = super::help::with_tunables(&super::help::with_statuses(EXAMPLES)))]
pub struct RunArgs {
    /// The script; `-` is standard input.
    file: Option<PathBuf>,
    /// Takes the tour, as without a script: all of it, or one chapter. `list` says which there are.
    #[arg(
        long,
        value_name = "CHAPTER",
        num_args = 0..=1,
        default_missing_value = tour::ALL,
        value_parser = tour::names(),
        hide_possible_values = true,
        conflicts_with = "file"
    )]
    tour: Option<String>,
    /// Waits for Enter between two stops of the tour; only at a terminal.
    #[arg(long, conflicts_with_all = ["file", "json"])]
    step: bool,
    /// Shows each step with its result on standard error.
    #[arg(short, long)]
    verbose: bool,
    /// Prints one JSON object with everything, and nothing else.
    #[arg(long)]
    json: bool,
    /// Writes the kernel's whole log to this file as it comes; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// Writes a dump of the guest's memory, as the script or a panic left it, to this file; `-` is
    /// standard output.
    #[arg(long, alias = "save-image", value_name = "FILE", requires = "file")]
    save_dump: Option<PathBuf>,
    /// Checks every structure in the guest's memory at the end, as `vmkern check` does.
    #[arg(long, requires = "file")]
    check: bool,
    /// Puts the guest's memory under pressure while the script runs, as this file says.
    #[arg(long, value_name = "FILE.toml", requires = "file")]
    pressure: Option<PathBuf>,
    #[command(flatten)]
    guest: GuestArgs,
}

/// Runs the subcommand.
pub fn run(args: &RunArgs, signals: &Signals) -> Status {
    if args.json {
        reserve_stdout("the object of --json");
    }
    match &args.file {
        Some(file) => run_script(args, file, signals),
        None => {
            let output = if args.json { Output::Written } else { Output::Shown };
            let pace = if args.step { Pace::ByStop } else { Pace::ToTheEnd };
            let choice = args.tour.as_deref().unwrap_or(tour::ALL);
            let request = Request { guest: &args.guest, console: args.console.as_deref(), output };
            tour::run(choice, pace, &request, signals)
        }
    }
}

fn run_script(args: &RunArgs, file: &Path, signals: &Signals) -> Status {
    let name = script::name(file);
    // 1. The script, and what its guest is made of. Nothing is opened for writing before the
    //    script is known to be good.
    let (source, script) = match script::parsed(file, &name, &args.guest, signals) {
        Ok(parsed) => parsed,
        Err(unusable) => return refuse_script(args, &name, &unusable),
    };
    let guest = args.guest.with(script.guest(), Precedence::CommandLine).guest;
    let configured = guest.builder().map_err(anyhow::Error::from);
    let (builder, pressure) = match configured.and_then(|guest| Ok((guest, pressure(args)?))) {
        Ok(configured) => configured,
        Err(error) => return refuse_error(args, "a valid guest configuration", &error),
    };
    let opened =
        console::open(args.console.as_deref()).and_then(|console| Ok((console, dump(args)?)));
    let (console, mut dump) = match opened {
        Ok(opened) => opened,
        Err(error) => return refuse_error(args, "a place that can be written to", &error),
    };
    // 2. The run. The check and the dump need the guest, so they are made before it goes.
    let start = Instant::now();
    let stop = signals.stop(guest.timeout());
    print::run_begins(&stop);
    let output = if args.json { Output::Written } else { Output::Shown };
    let trace = if args.verbose { Trace::Shown } else { Trace::Off };
    let mut collector = Collector::new(output, trace);
    let setup = Setup { builder, seed: guest.seed(), console, pressure };
    let look = |guest: &Guest, at: Standstill<'_>| {
        let found = at_the_end(args, guest, &at);
        let saved = match dump.take() {
            Some(to) if !at.is_interrupted() => super::save::dump(guest, to, &name, &stop),
            _ => Ok(()),
        };
        (saved, found)
    };
    let (session, (saved, found)) =
        match run_script_then(&script, setup, &stop, &mut collector, look) {
            Ok(ended) => ended,
            Err(error) => {
                collector.run_ended();
                return not_launched(args, error, &guest);
            }
        };
    // 3. The report.
    collector.run_ended();
    let run = Run { name, source, session, saved, found, start };
    run.report(args, signals, collector)
}

/// Reports a script that cannot run, and returns the exit status.
fn refuse_script(args: &RunArgs, name: &str, unusable: &Unusable) -> Status {
    let failures = unusable.failures(name);
    refuse(args, unusable.status(), &unusable.text(name), failures)
}

/// Reports a script for which no guest was launched.
fn refuse(args: &RunArgs, status: Status, text: &str, failures: Vec<FailureReport>) -> Status {
    super::eprint(text);
    if args.json {
        super::print_json(&RunReport::refused(status, failures, args.guest.asked()));
    }
    status
}

/// Reports options that make no valid run.
fn refuse_error(args: &RunArgs, expected: &str, error: &anyhow::Error) -> Status {
    let (expected, got) = (expected.to_owned(), format!("{error:#}"));
    let text = format!("{BAD}error:{BAD:#} {got}\n");
    refuse(args, Status::Usage, &text, vec![FailureReport { line: 0, expected, got }])
}

/// The findings of the check at the end of a script, if it was asked for and there are any.
fn at_the_end(args: &RunArgs, guest: &Guest, at: &Standstill<'_>) -> Option<Found> {
    let Standstill::Ended(ending) = at else { return None };
    print::run_ends(ending.status().into());
    let checked = Some(ending).filter(|_| args.check);
    let checked = checked.and_then(|ending| super::check::at_end(guest, ending));
    checked.as_ref().and_then(FailureReport::of_check)
}

/// Reports a guest that was not launched or did not become ready, and returns the exit status.
fn not_launched(args: &RunArgs, unlaunched: Unlaunched<AtEnd>, guest: &GuestArgs) -> Status {
    let status = launch_status(&unlaunched.error);
    print::run_ends(status.into());
    if args.json {
        super::print_json(&unlaunched.report(guest.asked()));
    }
    let (error, dropped) = (unlaunched.console_error.as_ref(), unlaunched.dropped_lines);
    super::eprint(&console::complaints(error, dropped));
    if let Some((Err(error), _)) = unlaunched.seen {
        super::complain(&error.into());
    }
    super::complain(&unlaunched.error.into());
    status
}

/// Findings of a check: in words, and for the report.
type Found = (String, FailureReport);

/// The results of the dump and of the check.
type AtEnd = (Result<(), SaveError>, Option<Found>);

/// A run whose script has ended.
struct Run {
    name: String,
    source: Source,
    session: Session,
    saved: Result<(), SaveError>,
    found: Option<Found>,
    start: Instant,
}

impl Run {
    /// Reports the run, as JSON if that was asked for and in words; its exit status.
    fn report(self, args: &RunArgs, signals: &Signals, collector: Collector) -> Status {
        let Self { name, source, session, saved, found, start } = self;
        // 1. The status: a check that found something counts more than output that is not written.
        let unsaved = saved.as_ref().err().map(ToString::to_string);
        let unwritten = unsaved.or_else(|| {
            session.console_error.as_ref().map(|error| format!("the kernel's log: {error}"))
        });
        let status = match session.ending.status() {
            Status::Ok if found.is_some() => Status::Failed,
            Status::Ok if unwritten.is_some() => Status::Unwritten,
            status => status,
        };
        let count = collector.count;
        // 2. The JSON object, whose status a signal may overrule.
        if args.json {
            let mut report = session.report(Vec::new());
            if let Some((_, failure)) = &found {
                report.add_failure(failure.clone());
            }
            if let Some(got) = unwritten {
                report.add_failure(FailureReport {
                    line: 0,
                    expected: "output that can be written".to_owned(),
                    got,
                });
            }
            report.status = signals.status().unwrap_or(status) as u8;
            collector.end(&report);
        }
        // 3. Complaints and the verdict, on standard error.
        super::eprint(&given_up(session.pressure.as_ref()));
        super::eprint(&console::complaints(session.console_error.as_ref(), session.dropped_lines));
        if let Err(error) = saved {
            super::complain(&error.into());
        }
        if let Some((text, _)) = &found {
            super::eprint(text);
        }
        if status == Status::Ok && !args.json {
            let took = start.elapsed().as_secs_f64() * 1e3;
            super::eprint(&format!("{GOOD}ok{GOOD:#} {name}: {} in {took:.1} ms\n", steps(count)));
        } else if session.ending != Ending::Interrupted {
            super::eprint(&explain(&session.ending, &source, &session.log));
        }
        status
    }
}

/// The schedule of pressure, if one was asked for.
fn pressure(args: &RunArgs) -> anyhow::Result<Option<Schedule>> {
    let Some(path) = &args.pressure else { return Ok(None) };
    let name = text::name(path);
    let cannot = || format!("cannot read the schedule {name}");
    let bytes = input::read_regular(path, SCHEDULE_MAX).with_context(cannot)?;
    let text = std::str::from_utf8(&bytes).with_context(cannot)?;
    Ok(Some(Schedule::parse(&name, text)?))
}

/// What the schedule of pressure gave up, in words.
fn given_up(run: Option<&PressureRun>) -> String {
    let events = run.map_or(&[][..], |run| &run.events);
    let mut told = String::new();
    for event in events {
        if let Happened::Left { why } = &event.what {
            let (at, operations) = (event.at.micros, event.at.operations);
            told.push_str(&format!("pressure, after operation {operations}, at {at} us: {why}\n"));
        }
    }
    told
}

/// `1 step`, `2 steps`.
fn steps(count: usize) -> String {
    format!("{count} {}", if count == 1 { "step" } else { "steps" })
}

/// The destination of the dump, if one was asked for.
fn dump(args: &RunArgs) -> anyhow::Result<Option<Destination>> {
    let of = |path| Destination::of_bytes(path).context("cannot write the memory dump");
    args.save_dump.as_ref().map(of).transpose()
}
