//! `vmkern run` without a script: the tour.

use std::io::Write;
use std::path::Path;

use vmkern::script::{
    Ending, EnvironmentReport, FailureReport, GuestTarget, Panic, RunReport, Status, StepReport,
    Stop, TargetError, guest_status, launch_report, launch_status, stats,
};
use vmkern::tour::{self, TourError};
use vmkern::{Guest, GuestBuilder, LaunchError};

use super::guest::GuestArgs;
use super::signals::Signals;
use super::steps::Output;

/// Shows around; with [`Output::Written`] only as JSON.
pub fn run(guest: &GuestArgs, console: Option<&Path>, output: Output, signals: &Signals) -> Status {
    // 1. A guest.
    let asked = EnvironmentReport::asked(guest.vcpus(), guest.memory(), guest.seed());
    let prepared = guest
        .builder()
        .map_err(anyhow::Error::from)
        .and_then(|builder| Ok((builder, super::console::open(console)?)));
    let (builder, console) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            return unprepared(&error, output, asked);
        }
    };
    let stop = signals.stop(guest.timeout());
    super::print::run_begins(&stop);
    let mut guest = match launch(builder, console, &stop) {
        Ok(guest) => guest,
        Err(error) => {
            return not_launched(error, output, asked);
        }
    };
    // 2. The tour.
    let environment = EnvironmentReport::from(guest.environment());
    let mut say = |text: &str| {
        if output == Output::Shown {
            super::print(text);
        }
    };
    let result = tour::run(&mut guest, &stop, &mut say);
    // 3. What is left of the guest at its end, and how that was reached.
    let mut target = GuestTarget::new(guest);
    let stats = stats(&mut target);
    let (_, log) = target.end();
    super::eprint(&super::console::complaints(log.error.as_ref(), log.dropped));
    match result {
        Ok((steps, crash)) => {
            super::print::run_ends(Status::Ok.into());
            if output == Output::Written {
                let ending = Ending::ExpectedPanic(Box::new(Panic::from(&*crash)));
                let steps = steps.into_iter().map(StepReport::from).collect();
                let report = RunReport::ended(&ending, steps, stats, environment);
                super::print_json(&RunReport { dropped_log_lines: log.dropped, ..report });
            }
            if log.error.is_some() { Status::Unwritten } else { Status::Ok }
        }
        Err(error) => cut_short(error, output, environment, log.dropped),
    }
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

/// Reports a tour that did not come to its end; the exit status of that.
fn cut_short(
    error: TourError,
    output: Output,
    environment: EnvironmentReport,
    dropped_log_lines: u64,
) -> Status {
    let status = match &error {
        TourError::Guest(error) => guest_status(error),
        TourError::Inspect(_) => Status::Broken,
        TourError::Unexpected { .. } => Status::Failed,
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
        let report = RunReport::refused(status, vec![failure], environment);
        super::print_json(&RunReport { dropped_log_lines, ..report });
    }
    if status != Status::Interrupted {
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
    let handle = guest.interrupt_handle();
    stop.on_interrupt(move || handle.interrupt());
    guest.await_ready()?;
    Ok(guest)
}
