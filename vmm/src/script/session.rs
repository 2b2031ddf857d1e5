//! One script, one fresh guest.

use std::collections::BTreeMap;
use std::io::Write;

use vmkern_abi::control::MapId;

use super::ast::Script;
use super::guest::GuestTarget;
use super::interpreter::run;
use super::json::{EnvironmentReport, FailureReport, PanicReport, RunReport, Stat, StepReport};
use super::names::MapField;
use super::observe::Observer;
use super::outcome::{Ending, Status};
use super::pressed::PressureRun;
use super::stop::Stop;
use super::target::{Panic, Target};
use crate::guest::{Environment, LogEnd};
use crate::schedule::Schedule;
use crate::{Guest, GuestBuilder, GuestError, LaunchError};

/// The setup of a run.
pub struct Setup {
    /// The guest to boot.
    pub builder: GuestBuilder,
    /// Seed of `rand`.
    pub seed: u64,
    /// Where the kernel's log goes.
    pub console: Option<Box<dyn Write + Send>>,
    /// Pressure on the guest's memory while the script runs.
    pub pressure: Option<Schedule>,
}

/// A run that came to an end.
#[derive(Debug)]
#[non_exhaustive]
pub struct Session {
    /// How it ended.
    pub ending: Ending,
    /// The kernel's counters at the end.
    pub stats: BTreeMap<String, Stat>,
    /// Where it ran.
    pub environment: EnvironmentReport,
    /// The end of the kernel's log.
    pub log: String,
    /// Why the log could not be written to its file.
    pub console_error: Option<std::io::Error>,
    /// Lines that are missing in that file: the kernel had no room for them, and must not wait for
    /// any.
    pub dropped_lines: u64,
    /// What the schedule of pressure did, if there was one.
    pub pressure: Option<PressureRun>,
}

/// A run that never began: there is no guest, or its kernel did not become ready.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct Unlaunched<T: std::fmt::Debug> {
    /// Why.
    #[source]
    pub error: LaunchError,
    /// The look at a kernel that did not become ready.
    pub seen: Option<T>,
    /// The end of its log.
    pub log: String,
    /// Why the log could not be written to its file.
    pub console_error: Option<std::io::Error>,
    /// Lines that are missing in that file.
    pub dropped_lines: u64,
}

impl<T: std::fmt::Debug> std::fmt::Debug for Unlaunched<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&vmkern_inspect::chain(self))
    }
}

/// Where a guest stands when it is looked at, the last time before it is gone.
#[derive(Clone, Copy, Debug)]
pub enum Standstill<'a> {
    /// At the end of its script.
    Ended(&'a Ending),
    /// In its boot, which this ended.
    Unready(&'a LaunchError),
}

impl Standstill<'_> {
    /// Whether it was interrupted: then nothing may take long any more.
    #[must_use]
    pub fn is_interrupted(self) -> bool {
        matches!(
            self,
            Self::Ended(Ending::Interrupted)
                | Self::Unready(LaunchError::Guest(GuestError::Interrupted))
        )
    }
}

/// Boots a guest and runs `script` in it. The guest is gone when this returns.
///
/// # Errors
/// When there is no guest; [`launch_status`] returns the exit status.
pub fn run_script(
    script: &Script,
    setup: Setup,
    stop: &Stop,
    observer: &mut dyn Observer,
) -> Result<Session, LaunchError> {
    run_script_then(script, setup, stop, observer, |_, _| ())
        .map(|(session, ())| session)
        .map_err(|unlaunched| unlaunched.error)
}

/// Boots a guest, runs `script` in it, and lets `look` at it before it is gone, however the script
/// ended: a guest that died shows what it died with, in its boot as well.
///
/// # Errors
/// When there is no guest, or its kernel did not become ready; [`launch_status`] returns the
/// exit status.
pub fn run_script_then<T: std::fmt::Debug>(
    script: &Script,
    setup: Setup,
    stop: &Stop,
    observer: &mut dyn Observer,
    look: impl FnOnce(&Guest, Standstill<'_>) -> T,
) -> Result<(Session, T), Unlaunched<T>> {
    // 1. A guest.
    let mut builder = script.furnish(setup.builder.seed(setup.seed).timeout(stop.limit()));
    if setup.pressure.as_ref().is_some_and(Schedule::needs_balloon) {
        builder = builder.balloon();
    }
    let mut guest = match builder.start(setup.console) {
        Ok(guest) => guest,
        Err(error) => {
            let (seen, log) = (None, String::new());
            return Err(Unlaunched { error, seen, log, console_error: None, dropped_lines: 0 });
        }
    };
    // 2. From here on an interrupt reaches it, also one that came before.
    stop.watch(&guest);
    if let Err(error) = guest.await_ready() {
        let seen = Some(look(&guest, Standstill::Unready(&error)));
        let (log, LogEnd { error: console_error, dropped: dropped_lines, .. }) =
            GuestTarget::new(guest).end();
        return Err(Unlaunched { error, seen, log, console_error, dropped_lines });
    }
    // 3. The run.
    let environment = EnvironmentReport::from(guest.environment());
    let mut target = GuestTarget::new(guest).under(setup.pressure);
    let ending = run(script, &mut target, setup.seed, stop, observer);
    // 4. The last questions to the guest.
    let pressure = target.end_pressure();
    let stats = stats(&mut target);
    let seen = look(target.guest(), Standstill::Ended(&ending));
    let (log, LogEnd { error: console_error, dropped: dropped_lines, .. }) = target.end();
    let session =
        Session { ending, stats, environment, log, console_error, dropped_lines, pressure };
    Ok((session, seen))
}

/// Every counter that can be read, under the names that scripts use.
#[must_use]
pub fn stats(target: &mut dyn Target) -> BTreeMap<String, Stat> {
    let mut stats = BTreeMap::new();
    for (name, value) in target.counters() {
        stats.insert(name.to_owned(), Stat::Count(value));
    }
    for (name, map) in MapId::NAMED {
        for field in MapField::ALL {
            if let Ok(value) = target.map_field(map, field) {
                let stat = match field {
                    MapField::Min | MapField::Max => Stat::Address(value),
                    MapField::Size | MapField::Entries | MapField::MaxFree => Stat::Count(value),
                };
                stats.insert(format!("{name}.{}", field.name()), stat);
            }
        }
    }
    stats
}

impl<T: std::fmt::Debug> Unlaunched<T> {
    /// The JSON object.
    #[must_use]
    pub fn report(&self, environment: EnvironmentReport) -> RunReport {
        let dropped_log_lines = self.dropped_lines;
        RunReport { dropped_log_lines, ..launch_report(&self.error, environment) }
    }
}

impl Session {
    /// The JSON object, with the steps that were collected on the way.
    #[must_use]
    pub fn report(&self, steps: Vec<StepReport>) -> RunReport {
        let (stats, environment) = (self.stats.clone(), self.environment.clone());
        RunReport {
            dropped_log_lines: self.dropped_lines,
            pressure: self.pressure.clone(),
            ..RunReport::ended(&self.ending, steps, stats, environment)
        }
    }
}

impl From<&Environment> for EnvironmentReport {
    fn from(environment: &Environment) -> Self {
        Self {
            accelerator: environment.accelerator,
            kvm: Some(environment.kvm.name()),
            privilege: Some(environment.privilege.name()),
            vcpus: environment.vcpus,
            memory: environment.memory,
            seed: environment.seed,
            abi: environment.abi,
        }
    }
}

/// The exit status that a failed launch means.
#[must_use]
pub fn launch_status(error: &LaunchError) -> Status {
    match error {
        LaunchError::NoKvm(_) | LaunchError::Io(_) | LaunchError::Unemulated(_) => Status::NoKvm,
        LaunchError::Config(_) | LaunchError::Image(_) => Status::Usage,
        LaunchError::Guest(error) => guest_status(error),
    }
}

/// The exit status that a guest's failure means where no script expected it.
#[must_use]
pub fn guest_status(error: &GuestError) -> Status {
    match error {
        GuestError::Crashed(_) => Status::Panicked,
        GuestError::Timeout { .. } => Status::Timeout,
        GuestError::Interrupted => Status::Interrupted,
        GuestError::Kvm(_) => Status::NoKvm,
        _ => Status::Broken,
    }
}

/// The JSON object of a failed launch.
#[must_use]
pub fn launch_report(error: &LaunchError, environment: EnvironmentReport) -> RunReport {
    let expected = match error {
        LaunchError::NoKvm(_) | LaunchError::Io(_) => "a host that can run guests",
        LaunchError::Unemulated(_) => "a host that can run the kernel at CPL0",
        LaunchError::Config(_) => "a valid guest configuration",
        LaunchError::Image(_) => "a kernel image that can be booted",
        LaunchError::Guest(_) => "a guest that boots",
    };
    let failure = FailureReport { line: 0, expected: expected.to_owned(), got: error.to_string() };
    let mut report = RunReport::refused(launch_status(error), vec![failure], environment);
    if let LaunchError::Guest(GuestError::Crashed(crash)) = error {
        report.panic = Some(PanicReport::from(&Panic::from(&**crash)));
    }
    report
}
