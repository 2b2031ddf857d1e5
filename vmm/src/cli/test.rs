//! `vmkern test`: scripts of files and directories, each in a fresh guest.

use std::fs;
use std::ops::Range;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vmkern::Guest;
use vmkern::check::Report;
use vmkern::inspect::InspectError;
use vmkern::output::{Destination, reserve_stdout};
use vmkern::script::suite::Attempt;
use vmkern::script::{
    BAD, Detail, EnvironmentReport, FailureReport, GOOD, RunReport, STRONG, Session, Setup, Source,
    Standstill, Status, Unlaunched, explain, launch_status, run_script_then, suite,
};
use vmkern::text;

use super::guest::{GuestArgs, Merged, Precedence};
use super::junit::{self, Case};
use super::plan::{Plan, Run, plan};
use super::script::parsed_of_suite;
use super::signals::Signals;
use super::steps::Keeper;
use super::sweep::SweepArgs;

const EXAMPLES: &str = "\
Examples:
  vmkern test tests/scripts
  vmkern test first.kmem tests/scripts --filter smallest --filter first
  vmkern test DIR --seeds 0..3 --fail-fast
  vmkern test tests/scripts --filter smallest --memory 256M --junit report.xml
  vmkern test tests/scripts --filter smallest --fail-every vm_map_findspace
  vmkern test tests/scripts --filter smallest --fail-every all --fail-up-to 2
  vmkern test tests/scripts --filter smallest --fail-stacks --json | jq .points

Exit status: 0 all scripts held; 1 at least one did not, or a sweep found something; 2 the \
command line is wrong, or a script of a sweep; 4 this host cannot run guests; 7 output could \
not be written; 129, 130 or 143 ended by SIGHUP, SIGINT or SIGTERM.";

/// Runs scripts, and every *.kmem file below directories, several at once, each in a fresh guest.
#[derive(Debug, Args)]
#[command(after_help = super::help::with_tunables(EXAMPLES))]
pub struct TestArgs {
    /// Scripts, and directories of scripts.
    #[arg(required = true, value_name = "PATH")]
    pub(super) paths: Vec<PathBuf>,
    /// Runs only scripts whose names contain TEXT; with several, those whose names contain one of
    /// them.
    #[arg(long, value_name = "TEXT")]
    pub(super) filter: Vec<String>,
    /// Starts no more scripts once one has failed.
    #[arg(long)]
    fail_fast: bool,
    /// Runs each script once for each seed of rand(), from START up to but not including END.
    #[arg(
        long,
        value_name = "START..END",
        value_parser = super::plan::seeds,
        conflicts_with = "seed"
    )]
    seeds: Option<Range<u64>>,
    /// Writes a JUnit report to this file; `-` is standard output.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Guests at a time; by default one for every two CPUs: a guest and its host side each keep
    /// one busy.
    #[arg(short, long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) jobs: Option<u16>,
    /// Shows the output of each script.
    #[arg(short, long)]
    verbose: bool,
    /// Prints one JSON object with everything, and nothing else.
    #[arg(long)]
    pub(super) json: bool,
    /// Writes the kernels' logs to files in this directory, one for each script.
    #[arg(long, value_name = "DIR")]
    console: Option<PathBuf>,
    /// Checks every structure in each guest's memory at the end, as `vmkern check` does.
    #[arg(long)]
    pub(super) check: bool,
    #[command(flatten)]
    pub(super) sweep: SweepArgs,
    #[command(flatten)]
    pub(super) guest: GuestArgs,
}

impl TestArgs {
    /// Guests at a time.
    pub(super) fn jobs(&self) -> usize {
        let by_default = || available_parallelism().map_or(1, |cpus| (cpus.get() / 2).max(1));
        self.jobs.map_or_else(by_default, usize::from)
    }
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct SuiteReport {
    schema: u32,
    ok: bool,
    status: u8,
    tests: Vec<TestReport>,
}

#[derive(Debug, Serialize)]
struct TestReport {
    file: String,
    report: RunReport,
}

/// The verdict on one script.
struct Verdict {
    status: Status,
    /// With styles.
    message: String,
    output: String,
    report: RunReport,
    /// The keys of the `guest` line that differ from the command line.
    overruled: Vec<String>,
}

/// Runs the subcommand.
pub fn run(args: &TestArgs, signals: &Signals) -> Status {
    if args.sweep.is_asked_for() {
        return super::sweep::run(args, signals);
    }
    match prepare(args) {
        Ok((runs, junit)) => suite(args, &runs, junit, signals),
        Err(error) => {
            super::complain(&error);
            Status::Usage
        }
    }
}

/// Everything that can be wrong before the first guest boots.
fn prepare(args: &TestArgs) -> anyhow::Result<(Vec<Run>, Option<Destination>)> {
    args.guest.builder()?.validate()?;
    let Plan { runs, passed_over } = plan(&args.paths, &args.filter, args.seeds.as_ref())?;
    for path in passed_over {
        super::eprint(&format!("passed over: {} is not a regular file\n", text::name(&path)));
    }
    if let Some(console) = &args.console {
        fs::create_dir_all(console)
            .with_context(|| format!("cannot make the directory {}", text::name(console)))?;
    }
    if args.json {
        reserve_stdout("the object of --json");
    }
    let of = |path| Destination::of(path).context("cannot write the JUnit report");
    let junit = args.junit.as_ref().map(of).transpose()?;
    // Dumps of several scripts on standard output would be mixed.
    reserve_stdout("what a suite says");
    Ok((runs, junit))
}

fn suite(args: &TestArgs, runs: &[Run], junit: Option<Destination>, signals: &Signals) -> Status {
    // 1. The cases, none of them run.
    let start = Instant::now();
    let jobs = args.jobs();
    let bar = bar(runs);
    let mut cases: Vec<Case> = runs.iter().map(not_run).collect();
    let mut reports: Vec<Option<RunReport>> = runs.iter().map(|_| None).collect();
    // Scripts whose `guest` lines count, and not the command line.
    let mut overruled: Vec<(String, String)> = Vec::new();
    // 2. Set where a script ends, so that nothing begins after a failure with --fail-fast.
    let failed = AtomicBool::new(false);
    let work = |index: usize| {
        let attempt = attempt(args, &runs[index], signals);
        if let Attempt::Done(verdict) = &attempt {
            failed.fetch_or(verdict.status != Status::Ok, Ordering::SeqCst);
        }
        attempt
    };
    let go_on = || !(signals.fired() || args.fail_fast && failed.load(Ordering::SeqCst));
    // 3. Scripts, several at a time; their results come one by one.
    suite::run_all(runs.len(), jobs, go_on, work, |finished| {
        let suite::Finished { index, took, result } = finished;
        bar.suspend(|| super::eprint(&line(&cases[index].name, &result, took, args.verbose)));
        bar.inc(1);
        if !result.overruled.is_empty() {
            overruled.push((cases[index].name.clone(), result.overruled.join(", ")));
        }
        failed.fetch_or(result.status != Status::Ok, Ordering::SeqCst);
        let case = &mut cases[index];
        case.status = Some(result.status);
        case.message = anstream::adapter::strip_str(&result.message).to_string();
        case.output = result.output;
        case.took = took;
        reports[index] = Some(result.report);
    });
    // 4. The verdict, and whatever was asked for of it.
    bar.finish_and_clear();
    let mut status = verdict(&cases, signals);
    super::eprint(&summary(&cases, start.elapsed()));
    tell_overruled(overruled);
    if let Some(to) = junit
        && let Err(error) = junit::write(to, &named(&args.paths), &cases)
    {
        super::complain(&error);
        status = if status == Status::Ok { Status::Unwritten } else { status };
    }
    if args.json {
        print_reports(runs, reports, status);
    }
    status
}

/// Says which scripts overruled options of the command line, in the order of their names.
fn tell_overruled(mut overruled: Vec<(String, String)>) {
    overruled.sort();
    for (name, keys) in &overruled {
        super::eprint(&format!("{name}: its `guest` line counts, not the command line: {keys}\n"));
    }
}

/// A bar that grows with each script that ends.
fn bar(runs: &[Run]) -> ProgressBar {
    let bar = ProgressBar::new(runs.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {elapsed}") {
        bar.set_style(style);
    }
    bar
}

/// The case of a run that has not begun.
fn not_run(run: &Run) -> Case {
    Case {
        name: run.name.clone(),
        status: None,
        message: String::new(),
        output: String::new(),
        took: Duration::ZERO,
    }
}

/// Prints the object of the whole suite.
fn print_reports(runs: &[Run], reports: Vec<Option<RunReport>>, status: Status) {
    let tests = reports
        .into_iter()
        .enumerate()
        .filter_map(|(index, report)| {
            Some(TestReport { file: runs[index].name.clone(), report: report? })
        })
        .collect();
    super::print_json(&SuiteReport {
        schema: vmkern::script::SCHEMA,
        ok: status == Status::Ok,
        status: status as u8,
        tests,
    });
}

/// The name of the suite in a report.
fn named(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| text::name(path)).collect();
    paths.join(" ")
}

/// Runs one script. Whatever it does to its runner, the other scripts keep their results.
fn attempt(args: &TestArgs, run: &Run, signals: &Signals) -> Attempt<Verdict> {
    match panic::catch_unwind(AssertUnwindSafe(|| one(args, run, signals))) {
        // Status 4 can mean a shortage, which the end of another script may end.
        Ok(verdict) if verdict.status == Status::NoKvm && !signals.fired() => {
            Attempt::Short(verdict)
        }
        Ok(verdict) => Attempt::Done(verdict),
        Err(words) => {
            let words = words
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(words.downcast_ref::<&str>().copied());
            let got = format!("vmkern itself panicked: {}", words.unwrap_or("no words"));
            Attempt::Done(refused(args, Status::Broken, "a run that ends", got))
        }
    }
}

/// The verdict on a script that did not run.
fn refused(args: &TestArgs, status: Status, expected: &str, got: String) -> Verdict {
    let message = format!("{BAD}error:{BAD:#} {got}\n");
    refused_for(
        args,
        status,
        message,
        vec![FailureReport { line: 0, expected: expected.to_owned(), got }],
    )
}

fn refused_for(
    args: &TestArgs,
    status: Status,
    message: String,
    failures: Vec<FailureReport>,
) -> Verdict {
    let report = RunReport::refused(status, failures, args.guest.asked());
    Verdict { status, message, output: String::new(), report, overruled: Vec::new() }
}

/// Runs one script.
fn one(args: &TestArgs, run: &Run, signals: &Signals) -> Verdict {
    // 1. The script and its guest. Here the `guest` line counts more than the command line.
    let path = run.path.as_path();
    let wrong = |expected: &str, got: String| refused(args, Status::Usage, expected, got);
    let shown = text::name(path);
    let (source, script) = match parsed_of_suite(path, &shown, &args.guest) {
        Ok(parsed) => parsed,
        Err(unusable) => {
            let (text, failures) = (unusable.text(&shown), unusable.failures(&shown));
            return refused_for(args, unusable.status(), text, failures);
        }
    };
    let console = args.console.as_ref().map(|dir| dir.join(format!("{}.log", run.file_name())));
    let asked_for = run.seed.map_or_else(|| args.guest.clone(), |seed| args.guest.seeded(seed));
    let Merged { guest, overruled } = asked_for.with(script.guest(), Precedence::Script);
    let asked = guest.asked();
    let (builder, console) = match (guest.builder(), super::console::open(console.as_deref())) {
        (Ok(builder), Ok(console)) => (builder, console),
        (Err(error), _) => return wrong("a valid guest configuration", error.to_string()),
        (_, Err(error)) => return wrong("a file for the kernel's log", format!("{error:#}")),
    };
    // 2. The run.
    let stop = signals.stop(guest.timeout());
    let mut keeper = Keeper::new(if args.json { Detail::Full } else { Detail::Brief });
    let setup = Setup { builder, seed: guest.seed(), console, pressure: None };
    let look = |guest: &Guest, at: Standstill<'_>| match at {
        Standstill::Ended(ending) if args.check => super::check::at_end(guest, ending),
        _ => None,
    };
    // 3. The verdict.
    match run_script_then(&script, setup, &stop, &mut keeper, look) {
        Ok((session, checked)) => ended(&session, checked.as_ref(), &source, keeper, overruled),
        Err(error) => unlaunched(&error, asked, keeper.text.text(), overruled),
    }
}

/// The verdict on a script whose guest was not launched or did not become ready.
fn unlaunched<T: std::fmt::Debug>(
    unlaunched: &Unlaunched<T>,
    asked: EnvironmentReport,
    output: String,
    overruled: Vec<String>,
) -> Verdict {
    let error = &unlaunched.error;
    let status = launch_status(error);
    let missing =
        super::console::complaints(unlaunched.console_error.as_ref(), unlaunched.dropped_lines);
    let message = format!("{BAD}error:{BAD:#} {error}\n{missing}");
    let report = unlaunched.report(asked);
    Verdict { status, message, output, report, overruled }
}

/// The verdict on a script that ran, and on the check at its end.
fn ended(
    session: &Session,
    checked: Option<&Result<Report, InspectError>>,
    source: &Source,
    keeper: Keeper,
    overruled: Vec<String>,
) -> Verdict {
    let Keeper { text: output, steps, .. } = keeper;
    let mut message = explain(&session.ending, source, &session.log);
    let mut report = session.report(steps);
    let mut status = session.ending.status();
    if let Some((text, failure)) = checked.and_then(FailureReport::of_check) {
        message.push_str(&text);
        report.add_failure(failure);
        status = if status == Status::Ok { Status::Failed } else { status };
    }
    message.push_str(&super::console::complaints(
        session.console_error.as_ref(),
        session.dropped_lines,
    ));
    if let Some(error) = &session.console_error {
        let got = format!("the kernel's log: {error}");
        let expected = "output that can be written".to_owned();
        report.add_failure(FailureReport { line: 0, expected, got });
        status = if status == Status::Ok { Status::Unwritten } else { status };
        report.status = status as u8;
    }
    Verdict { status, message, output: text::plain(&output.text()).into_owned(), report, overruled }
}

fn line(name: &str, verdict: &Verdict, took: Duration, verbose: bool) -> String {
    let took = took.as_secs_f64() * 1e3;
    let mut text = match verdict.status {
        Status::Ok => format!("{GOOD}ok{GOOD:#}   {name} ({took:.1} ms)\n"),
        status => format!("{BAD}FAIL{BAD:#} {name} ({took:.1} ms, status {})\n", status as u8),
    };
    if verbose || verdict.status != Status::Ok {
        text.push_str(&verdict.output);
        text.push_str(&verdict.message);
    }
    text
}

fn verdict(cases: &[Case], signals: &Signals) -> Status {
    let any = |wanted: Status| cases.iter().any(|case| case.status == Some(wanted));
    if let Some(status) = signals.status() {
        status
    } else if any(Status::NoKvm) {
        Status::NoKvm
    } else if cases.iter().all(|case| matches!(case.status, Some(Status::Ok | Status::Unwritten)))
        && any(Status::Unwritten)
    {
        Status::Unwritten
    } else if cases.iter().all(|case| case.status == Some(Status::Ok)) {
        Status::Ok
    } else {
        Status::Failed
    }
}

fn summary(cases: &[Case], took: Duration) -> String {
    let good = cases.iter().filter(|case| case.status == Some(Status::Ok)).count();
    let skipped = cases.iter().filter(|case| case.status.is_none()).count();
    let bad = cases.len() - good - skipped;
    let took = took.as_secs_f64();
    let style = if bad + skipped == 0 { GOOD } else { BAD };
    let skipped = if skipped == 0 { String::new() } else { format!(", {skipped} not run") };
    format!(
        "\n{style}{good} passed, {bad} failed{skipped}{style:#} {STRONG}in {took:.2} s{STRONG:#}\n"
    )
}
