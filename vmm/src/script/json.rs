//! The result of a run, as the JSON object of `--json`.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use vmkern_abi::ABI_VERSION;

use super::outcome::{Ending, Failure, Status, Step};
use super::pressed::PressureRun;
use super::target::Panic;
use super::{Diagnostic, NotUtf8};
use crate::check::Report;
use crate::inspect::InspectError;
use crate::style::BAD;

/// Version of the object.
pub const SCHEMA: u32 = 1;

/// A number of JSON that keeps its digits: one that programs may read as a double, which is exact
/// up to 2^53, is a number, one beyond is a string of its digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact(pub u64);

impl Serialize for Exact {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const EXACT: u64 = 1 << 53;
        if self.0 <= EXACT {
            serializer.serialize_u64(self.0)
        } else {
            serializer.collect_str(&self.0)
        }
    }
}

fn exact<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    Exact(*value).serialize(serializer)
}

/// A figure of the guest at the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stat {
    /// A count, or a number of bytes.
    Count(u64),
    /// An address: a string in JSON.
    Address(u64),
}

impl Serialize for Stat {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Count(value) => exact(value, serializer),
            Self::Address(value) => serializer.collect_str(&format_args!("{value:#x}")),
        }
    }
}

/// The object.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Whether the exit status is 0.
    pub ok: bool,
    /// The exit status.
    pub status: u8,
    /// `finished`, `failed`, `panic`, `timeout` or `error`.
    pub outcome: &'static str,
    /// Every finished statement that asked the guest for something, and every `print`.
    pub steps: Vec<StepReport>,
    /// Expectations that did not hold, or errors.
    pub failures: Vec<FailureReport>,
    /// How the guest died, if it did.
    pub panic: Option<PanicReport>,
    /// The kernel's counters at the end, by name; empty when nothing booted.
    pub stats: BTreeMap<String, Stat>,
    /// Lines that are missing in the kernel's log: there was no room for them, and no waiting for
    /// it.
    #[serde(serialize_with = "exact")]
    pub dropped_log_lines: u64,
    /// Where it ran.
    pub environment: EnvironmentReport,
    /// What the schedule of pressure did, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<PressureRun>,
}

/// A finished statement.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct StepReport {
    line: usize,
    thread: String,
    verb: &'static str,
    arguments: Vec<String>,
    result: ResultReport,
    #[serde(serialize_with = "exact")]
    cycles: u64,
    /// Microseconds of the guest's clock; null if it was not read.
    time: Option<Exact>,
    ticks: Option<Exact>,
    /// Counters that are different from those after the step before: then, and now.
    changed: BTreeMap<&'static str, [Exact; 2]>,
    output: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
struct ResultReport {
    kind: &'static str,
    value: Option<String>,
}

impl StepReport {
    /// About how many bytes it takes in memory.
    #[must_use]
    pub fn weight(&self) -> usize {
        const OF_CHANGE: usize = 64;
        let texts = [&self.thread]
            .into_iter()
            .chain(&self.arguments)
            .chain(&self.result.value)
            .chain(&self.output);
        size_of::<Self>()
            + texts.map(|text| size_of::<String>() + text.len()).sum::<usize>()
            + self.changed.len() * OF_CHANGE
    }
}

impl From<Step> for StepReport {
    fn from(step: Step) -> Self {
        let Step { line, runner, verb, result, cycles, output, arguments, seen } = step;
        let (thread, result) =
            (runner.to_string(), ResultReport { kind: result.kind(), value: result.value() });
        let (time, ticks) = (
            seen.as_ref().map(|seen| Exact(seen.now)),
            seen.as_ref().map(|seen| Exact(seen.ticks)),
        );
        let changes = seen.into_iter().flat_map(|seen| seen.changed);
        let changed = changes.map(|(name, then, now)| (name, [Exact(then), Exact(now)])).collect();
        Self { line, thread, verb, arguments, result, cycles, time, ticks, changed, output }
    }
}

/// Something that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailureReport {
    /// The line, or 0 when no line is concerned.
    pub line: usize,
    /// The required result.
    pub expected: String,
    /// The actual result.
    pub got: String,
}

impl From<&Failure> for FailureReport {
    fn from(failure: &Failure) -> Self {
        Self {
            line: failure.span.line,
            expected: failure.expected.clone(),
            got: failure.got.clone(),
        }
    }
}

impl From<&Diagnostic> for FailureReport {
    fn from(error: &Diagnostic) -> Self {
        Self { line: error.span.line, expected: error.expected.clone(), got: error.message.clone() }
    }
}

impl From<NotUtf8> for FailureReport {
    fn from(error: NotUtf8) -> Self {
        let got = format!("byte {:#04x} in column {}", error.byte, error.column);
        Self { line: error.line, expected: "UTF-8 text".to_owned(), got }
    }
}

/// How the guest died.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PanicReport {
    message: String,
    thread: Option<String>,
    cpu: u32,
    backtrace: Vec<String>,
}

impl From<&Panic> for PanicReport {
    fn from(panic: &Panic) -> Self {
        let Panic { message, thread, cpu, backtrace, text: _ } = panic.clone();
        Self { message, thread, cpu, backtrace }
    }
}

/// Where a script ran, or would have run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct EnvironmentReport {
    /// `kvm`.
    pub accelerator: &'static str,
    /// `hardware` or `software`; null when nothing booted.
    pub kvm: Option<&'static str>,
    /// `supervisor` or `user`; null when nothing booted.
    pub privilege: Option<&'static str>,
    /// CPUs of the guest.
    pub vcpus: u32,
    /// Bytes of guest memory.
    pub memory: u64,
    /// Seed of `rand`.
    #[serde(serialize_with = "exact")]
    pub seed: u64,
    /// Version of the interface between host and guest.
    pub abi: u32,
}

impl EnvironmentReport {
    /// The environment of a run that has not booted.
    #[must_use]
    pub fn asked(vcpus: u32, memory: u64, seed: u64) -> Self {
        Self {
            accelerator: "kvm",
            kvm: None,
            privilege: None,
            vcpus,
            memory,
            seed,
            abi: ABI_VERSION,
        }
    }
}

impl FailureReport {
    /// The failure of a check at the end of a run, if there is one, in words before it.
    #[must_use]
    pub fn of_check(checked: &Result<Report, InspectError>) -> Option<(String, Self)> {
        let (text, got) = match checked {
            Ok(report) if report.is_clean() => return None,
            Ok(report) => (report.to_string(), report.total()),
            Err(error) => (String::new(), format!("a guest that cannot be checked: {error}")),
        };
        let text = format!("{text}{BAD}check:{BAD:#} {got}\n");
        Some((text, Self { line: 0, expected: "no findings at the end".to_owned(), got }))
    }
}

impl RunReport {
    /// A run that never came to its first statement.
    #[must_use]
    pub fn refused(
        status: Status,
        failures: Vec<FailureReport>,
        environment: EnvironmentReport,
    ) -> Self {
        let outcome = match status {
            Status::Timeout => "timeout",
            Status::Panicked => "panic",
            Status::Failed => "failed",
            _ => "error",
        };
        Self {
            schema: SCHEMA,
            ok: false,
            status: status as u8,
            outcome,
            steps: Vec::new(),
            failures,
            panic: None,
            stats: BTreeMap::new(),
            dropped_log_lines: 0,
            environment,
            pressure: None,
        }
    }

    /// Adds something that did not hold beside the script: a run that held has failed then.
    pub fn add_failure(&mut self, failure: FailureReport) {
        if self.ok {
            (self.ok, self.status, self.outcome) = (false, Status::Failed as u8, "failed");
        }
        self.failures.push(failure);
    }

    /// A run with its end.
    #[must_use]
    pub fn ended(
        ending: &Ending,
        steps: Vec<StepReport>,
        stats: BTreeMap<String, Stat>,
        environment: EnvironmentReport,
    ) -> Self {
        // 1. The words for the ending.
        let outcome = match ending {
            Ending::Finished | Ending::ExpectedPanic(_) => "finished",
            Ending::Failed(_) => "failed",
            Ending::Panicked(..) => "panic",
            Ending::Timeout(_) => "timeout",
            Ending::Script(_) | Ending::Interrupted | Ending::Host(_) | Ending::Broken(_) => {
                "error"
            }
        };
        let failures = failures(ending);
        // 2. The panic, expected or not.
        let panic = match ending {
            Ending::ExpectedPanic(panic) | Ending::Panicked(panic, _) => {
                Some(PanicReport::from(&**panic))
            }
            _ => None,
        };
        // 3. All of it. Lines that are missing in the log are added later.
        let status = ending.status();
        Self {
            schema: SCHEMA,
            ok: status == Status::Ok,
            status: status as u8,
            outcome,
            steps,
            failures,
            panic,
            stats,
            dropped_log_lines: 0,
            environment,
            pressure: None,
        }
    }
}

/// Writes the object of a run as it comes: each step when it has finished, everything else at the
/// end.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunStream {
    steps: u64,
}

/// The failures of a run that ended so.
fn failures(ending: &Ending) -> Vec<FailureReport> {
    match ending {
        Ending::Finished | Ending::ExpectedPanic(_) => Vec::new(),
        Ending::Failed(failure)
        | Ending::Panicked(_, failure)
        | Ending::Timeout(failure)
        | Ending::Host(failure)
        | Ending::Broken(failure) => {
            vec![FailureReport::from(&**failure)]
        }
        Ending::Script(error) => vec![FailureReport::from(&**error)],
        Ending::Interrupted => {
            vec![FailureReport {
                line: 0,
                expected: "to run to the end".to_owned(),
                got: "interrupted".to_owned(),
            }]
        }
    }
}

impl RunStream {
    /// The text that stands before the first step, or between two, and the step.
    ///
    /// # Errors
    /// When the step is nothing that JSON can say.
    pub fn step(&mut self, step: &StepReport) -> serde_json::Result<String> {
        let before = match self.steps {
            0 => format!("{{\"schema\":{SCHEMA},\"steps\":["),
            _ => ",".to_owned(),
        };
        self.steps += 1;
        Ok(before + &serde_json::to_string(step)?)
    }

    /// The rest of the object, or, if there was no step, all of it.
    ///
    /// # Errors
    /// When the report is nothing that JSON can say.
    pub fn end(self, report: &RunReport) -> serde_json::Result<String> {
        let text = serde_json::to_string(&RunEnd::from(report))?;
        Ok(match (self.steps, text.strip_prefix('{')) {
            (1.., Some(rest)) => format!("],{rest}"),
            _ => serde_json::to_string(report)?,
        })
    }
}

/// The part of a [`RunReport`] behind its steps.
#[derive(Serialize)]
struct RunEnd<'r> {
    ok: bool,
    status: u8,
    outcome: &'static str,
    failures: &'r [FailureReport],
    panic: &'r Option<PanicReport>,
    stats: &'r BTreeMap<String, Stat>,
    dropped_log_lines: Exact,
    environment: &'r EnvironmentReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    pressure: Option<&'r PressureRun>,
}

impl<'r> From<&'r RunReport> for RunEnd<'r> {
    fn from(report: &'r RunReport) -> Self {
        let RunReport { schema: _, ok, status, outcome, steps: _, failures, panic, stats, .. } =
            report;
        let RunReport { dropped_log_lines, environment, pressure, .. } = report;
        let dropped_log_lines = Exact(*dropped_log_lines);
        let (ok, status, pressure) = (*ok, *status, pressure.as_ref());
        Self {
            ok,
            status,
            outcome,
            failures,
            panic,
            stats,
            dropped_log_lines,
            environment,
            pressure,
        }
    }
}
