//! `vmkern run` without a script: the tour.

use std::io::{self, IsTerminal as _, Write};
use std::path::Path;

use clap::builder::{PossibleValue, PossibleValuesParser};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::stdio::stdin;
use vmkern::script::{
    Ending, EnvironmentReport, FAINT, FailureReport, GuestTarget, Panic, RunReport, STRONG, Status,
    StepReport, Stop, TargetError, guest_status, launch_report, launch_status, stats,
};
use vmkern::tour::{self, CHAPTERS, Chapter, Taken, TourError};
use vmkern::{Guest, GuestBuilder, LaunchError};

use super::guest::GuestArgs;
use super::signals::Signals;
use super::steps::Output;

/// The whole of it, and the list of its chapters, among their names.
pub const ALL: &str = "all";
const LIST: &str = "list";

/// How often the wait for Enter looks whether the tour was ended.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Whether somebody goes from stop to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each stop waits for Enter.
    ByStop,
    /// None does.
    ToTheEnd,
}

/// What a tour is given.
#[derive(Debug)]
pub struct Request<'a> {
    /// Its guest.
    pub guest: &'a GuestArgs,
    /// Where the kernel's log goes.
    pub console: Option<&'a Path>,
    /// Whether it is shown, or only reported as JSON.
    pub output: Output,
}

/// What can be asked for.
pub fn names() -> PossibleValuesParser {
    let chapters = CHAPTERS.iter().map(|chapter| (chapter.name, chapter.title));
    let others = [(ALL, "All chapters"), (LIST, "What the chapters are")];
    let values = chapters.chain(others);
    PossibleValuesParser::new(values.map(|(name, help)| PossibleValue::new(name).help(help)))
}

/// Shows the chapter called `choice`, all of them, or what they are.
pub fn run(choice: &str, pace: Pace, request: &Request<'_>, signals: &Signals) -> Status {
    let &Request { guest, output, .. } = request;
    if choice == LIST {
        if output == Output::Written {
            let error = anyhow::anyhow!("--json reports a tour, and `--tour list` takes none");
            return unprepared(&error, output, guest.asked());
        }
        list();
        return Status::Ok;
    }
    if pace == Pace::ByStop && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        let error = anyhow::anyhow!(
            "--step waits for Enter at a terminal, and standard input or output is not one; leave \
             it out"
        );
        return unprepared(&error, output, guest.asked());
    }
    let chapters: Vec<&Chapter> = match Chapter::by_name(choice) {
        Some(chapter) => vec![chapter],
        None => CHAPTERS.iter().collect(),
    };
    take(&chapters, pace, request, signals)
}

/// What the chapters are.
fn list() {
    for Chapter { name, title, .. } in &CHAPTERS {
        super::print(&format!("{STRONG}{name:<12}{STRONG:#} {title}\n"));
    }
}

/// Waits until somebody presses Enter.
///
/// # Errors
/// [`TourError::Left`] when that was `q`, or the end of the input, and when `stop` ends the tour.
fn enter(stop: &Stop) -> Result<(), TourError> {
    super::print(&format!("{FAINT}-- Enter goes on, q leaves --{FAINT:#} "));
    // A signal does not end the reading of a line, so nothing is read before there is one.
    let input = stdin();
    while matches!(poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&LOOK)), Ok(0)) {
        if stop.is_interrupted() {
            return Err(TargetError::Interrupted.into());
        }
    }
    let mut line = String::new();
    match io::stdin().read_line(&mut line) {
        // A prompt at which the input ended has no end of line of its own.
        Ok(0) | Err(_) => {
            super::print("\n");
            Err(TourError::Left)
        }
        Ok(_) if ["q", "quit"].contains(&line.trim().to_ascii_lowercase().as_str()) => {
            Err(TourError::Left)
        }
        Ok(_) => Ok(()),
    }
}

/// Shows `chapters` in a guest; with [`Output::Written`] only as JSON.
fn take(chapters: &[&Chapter], pace: Pace, request: &Request<'_>, signals: &Signals) -> Status {
    let &Request { guest, console, output } = request;
    // 1. A guest.
    let asked = guest.asked();
    let prepared = guest
        .builder()
        .map_err(anyhow::Error::from)
        .and_then(|builder| Ok((builder, super::console::open(console)?)));
    let (builder, console) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return unprepared(&error, output, asked),
    };
    let stop = signals.stop(guest.timeout());
    super::print::run_begins(&stop);
    let mut guest = match launch(builder, console, &stop) {
        Ok(guest) => guest,
        Err(error) => return not_launched(error, output, asked),
    };
    // 2. The tour.
    let environment = EnvironmentReport::from(guest.environment());
    let mut say = |text: &str| {
        if output == Output::Shown {
            super::print(text);
        }
    };
    let mut pause = || if pace == Pace::ByStop { enter(&stop) } else { Ok(()) };
    let Taken { steps, end } = tour::run(&mut guest, chapters, &stop, &mut say, &mut pause);
    let steps = steps.into_iter().map(StepReport::from).collect();
    // 3. What is left of the guest at its end, and how that was reached.
    let mut target = GuestTarget::new(guest);
    let stats = stats(&mut target);
    let (_, log) = target.end();
    super::eprint(&super::console::complaints(log.error.as_ref(), log.dropped));
    let crash = match end {
        Ok(crash) => crash,
        Err(error) => {
            let so_far =
                |report| RunReport { steps, stats, dropped_log_lines: log.dropped, ..report };
            return cut_short(error, output, environment, so_far);
        }
    };
    super::print::run_ends(Status::Ok.into());
    if output == Output::Written {
        let ending = crash.map_or(Ending::Finished, |crash| {
            Ending::ExpectedPanic(Box::new(Panic::from(&*crash)))
        });
        let report = RunReport::ended(&ending, steps, stats, environment);
        super::print_json(&RunReport { dropped_log_lines: log.dropped, ..report });
    }
    if log.error.is_some() { Status::Unwritten } else { Status::Ok }
}

/// Reports a guest that did not become ready; the exit status of that.
fn not_launched(error: LaunchError, output: Output, asked: EnvironmentReport) -> Status {
    let status = launch_status(&error);
    super::print::run_ends(status.into());
    if output == Output::Written {
        super::print_json(&launch_report(&error, asked));
    }
    super::complain(&error.into());
    status
}

/// Reports a tour whose options do not make a guest; the exit status of that.
fn unprepared(error: &anyhow::Error, output: Output, asked: EnvironmentReport) -> Status {
    if output == Output::Written {
        let failure = FailureReport {
            line: 0,
            expected: "a valid guest configuration".to_owned(),
            got: format!("{error:#}"),
        };
        super::print_json(&RunReport::refused(Status::Usage, vec![failure], asked));
    }
    super::complain(error);
    Status::Usage
}

/// Reports a tour that did not come to its end, with what `so_far` adds to the report; the exit
/// status of that.
fn cut_short(
    error: TourError,
    output: Output,
    environment: EnvironmentReport,
    so_far: impl FnOnce(RunReport) -> RunReport,
) -> Status {
    let status = match &error {
        TourError::Guest(error) => guest_status(error),
        TourError::Inspect(_) => Status::Broken,
        TourError::Unexpected { .. } => Status::Failed,
        TourError::Left => Status::Ok,
        TourError::Stopped(TargetError::Interrupted) => Status::Interrupted,
        TourError::Stopped(TargetError::Timeout { .. }) => Status::Timeout,
        TourError::Stopped(TargetError::Unable(_)) => Status::Failed,
        TourError::Stopped(TargetError::Host(_)) => Status::NoKvm,
        TourError::Stopped(TargetError::Broken(_)) => Status::Broken,
    };
    super::print::run_ends(status.into());
    if output == Output::Written {
        let expected = "the tour's usual results".to_owned();
        let failure = FailureReport { line: 0, expected, got: error.to_string() };
        super::print_json(&so_far(RunReport::refused(status, vec![failure], environment)));
    }
    if ![Status::Interrupted, Status::Ok].contains(&status) {
        super::complain(&error.into());
    }
    status
}

/// Launches the guest; `stop` can end that.
fn launch(
    builder: GuestBuilder,
    console: Option<Box<dyn Write + Send>>,
    stop: &Stop,
) -> Result<Guest, LaunchError> {
    let mut guest = builder.start(console)?;
    stop.watch(&guest);
    guest.await_ready()?;
    Ok(guest)
}
