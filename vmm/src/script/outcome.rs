//! How a run ends, and with which exit status.

use std::fmt;

use vmkern_abi::control::{KernReturn, Outcome};

use super::ast::Runner;
use super::diagnostic::Diagnostic;
use super::lexer::Radix;
use super::observe::Seen;
use super::source::Span;
use super::target::Panic;

/// Exit status of the command: one table for every subcommand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Status {
    /// All held.
    Ok = 0,
    /// An expectation or assertion failed.
    Failed = 1,
    /// The command line or the script is wrong.
    Usage = 2,
    /// The guest panicked and the script did not expect it.
    Panicked = 3,
    /// This host cannot run guests.
    NoKvm = 4,
    /// The time limit was reached.
    Timeout = 5,
    /// The VMM or the guest broke its contract.
    Broken = 6,
    /// Output could not be written, after a run that held.
    Unwritten = 7,
    /// Ended by SIGHUP.
    HungUp = 129,
    /// Ended by SIGINT, as by Ctrl-C.
    Interrupted = 130,
    /// Ended by SIGTERM.
    Terminated = 143,
}

/// The meaning of an exit status.
#[derive(Clone, Copy, Debug)]
pub struct StatusRow {
    /// The statuses that mean it.
    pub statuses: &'static [Status],
    /// The meaning in a few words.
    pub brief: &'static str,
    /// The whole meaning.
    pub says: &'static str,
}

impl Status {
    /// Every status, in the order of the numbers.
    pub const TABLE: [StatusRow; 9] = [
        row(&[Self::Ok], "all held", "all held"),
        row(&[Self::Failed], "an expectation failed", "an expectation or assertion failed"),
        row(
            &[Self::Usage],
            "the command line or the script is wrong",
            "the command line or the script is wrong",
        ),
        row(
            &[Self::Panicked],
            "the guest panicked unexpectedly",
            "the guest panicked and the script did not expect it",
        ),
        row(
            &[Self::NoKvm],
            "this host cannot run guests",
            "this host cannot run guests, or not this one; the message says what is missing \
             and how to get it",
        ),
        row(&[Self::Timeout], "time limit", "the time limit was reached"),
        row(
            &[Self::Broken],
            "a bug of vmkern",
            "the VMM or the guest broke its contract: a bug of ours",
        ),
        row(
            &[Self::Unwritten],
            "output could not be written",
            "all held, but output could not be written: the message says which and why",
        ),
        row(
            &[Self::HungUp, Self::Interrupted, Self::Terminated],
            "ended by SIGHUP, SIGINT or SIGTERM",
            "ended by SIGHUP, SIGINT (Ctrl-C), SIGTERM",
        ),
    ];
}

const fn row(statuses: &'static [Status], brief: &'static str, says: &'static str) -> StatusRow {
    StatusRow { statuses, brief, says }
}

impl StatusRow {
    /// The numbers, joined by `last` before the last one and by commas.
    #[must_use]
    pub fn numbers(&self, last: &str) -> String {
        let numbers: Vec<_> =
            self.statuses.iter().map(|status| (*status as u8).to_string()).collect();
        match numbers.split_last() {
            Some((end, rest)) if !rest.is_empty() => format!("{}{last}{end}", rest.join(", ")),
            _ => numbers.join(""),
        }
    }
}

/// The result of a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepResult {
    /// An answer of the guest.
    Given(Outcome),
    /// The guest died with this message.
    Panicked(String),
}

impl StepResult {
    /// The JSON schema's word for it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Given(Outcome::Ok) => "ok",
            Self::Given(Outcome::Value(_)) => "value",
            Self::Given(Outcome::Null) => "null",
            Self::Given(Outcome::Error(_) | Outcome::Mismatch { .. }) => "error",
            Self::Given(Outcome::Blocked { .. }) => "blocked",
            Self::Panicked(_) => "panic",
        }
    }

    /// The JSON schema's value, where the kind has one.
    #[must_use]
    pub fn value(&self) -> Option<String> {
        match self {
            Self::Given(Outcome::Ok | Outcome::Null) => None,
            Self::Given(Outcome::Value(value)) => Some(format!("{value:#x}")),
            Self::Given(Outcome::Error(error)) => Some(error.to_string()),
            Self::Given(Outcome::Mismatch { .. }) => Some(self.to_string()),
            Self::Given(Outcome::Blocked { waits_for }) => Some(waits_for.to_string()),
            Self::Panicked(text) => Some(text.clone()),
        }
    }
}

impl fmt::Display for StepResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(Outcome::Ok) => f.write_str("ok"),
            Self::Given(Outcome::Value(value)) => write!(f, "{value:#x}"),
            Self::Given(Outcome::Null) => f.write_str("null"),
            Self::Given(Outcome::Error(error)) => write!(f, "error {}", KernReturn::name(*error)),
            Self::Given(Outcome::Mismatch { addr, got, want }) => {
                write!(f, "{got:#x} at {addr} instead of {want:#x}")
            }
            Self::Given(Outcome::Blocked { waits_for }) => write!(f, "blocked in \"{waits_for}\""),
            Self::Panicked(message) => write!(f, "panic {message:?}"),
        }
    }
}

/// A number for people, as the script wrote those that it was made of.
#[must_use]
pub(super) fn shown(value: u64, radix: Radix) -> String {
    match radix {
        Radix::Hexadecimal => format!("{value:#x}"),
        Radix::Decimal => number(value),
    }
}

/// A number for people: kernel addresses in hexadecimal, everything else in decimal.
#[must_use]
pub fn number(value: u64) -> String {
    if value >= 1 << 47 { format!("{value:#x}") } else { value.to_string() }
}

/// A finished statement.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Step {
    /// Its line, from 1.
    pub line: usize,
    /// Where it ran; for a join, the thread that was waited for.
    pub runner: Runner,
    /// Its verb, or `print`.
    pub verb: &'static str,
    /// Its result.
    pub result: StepResult,
    /// TSC cycles in the guest.
    pub cycles: u64,
    /// Its output.
    pub output: Option<String>,
    /// Its arguments, as reports show them; none for a watcher that wants no detail.
    pub arguments: Vec<String>,
    /// The guest after it, for a watcher that wants detail.
    pub seen: Option<Seen>,
}

impl Step {
    /// A step on the first thread that took no time and printed nothing.
    pub(crate) fn plain(line: usize, verb: &'static str, result: StepResult) -> Self {
        let (runner, cycles, output, arguments, seen) =
            (Runner::DEFAULT, 0, None, Vec::new(), None);
        Self { line, runner, verb, result, cycles, output, arguments, seen }
    }
}

/// An expectation that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failure {
    /// The line that says what was expected: the `expect` below the statement, or the statement
    /// itself.
    pub span: Span,
    /// The statement.
    pub statement: Span,
    /// The required result.
    pub expected: String,
    /// The actual result.
    pub got: String,
    /// The operation with its arguments' values.
    pub called: Option<String>,
    /// The names in the statement and their values, and the counters of the loops around it.
    pub values: Vec<(String, String)>,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The script came to its end.
    Finished,
    /// The guest panicked as the script had said.
    ExpectedPanic(Box<Panic>),
    /// Something did not hold.
    Failed(Box<Failure>),
    /// The guest panicked.
    Panicked(Box<Panic>, Box<Failure>),
    /// The script itself is wrong in a way that only running it shows.
    Script(Box<Diagnostic>),
    /// The time limit was reached.
    Timeout(Box<Failure>),
    /// The run was interrupted.
    Interrupted,
    /// The host refused what the running guest needed of it.
    Host(Box<Failure>),
    /// The VMM or the guest broke its contract.
    Broken(Box<Failure>),
}

impl Ending {
    /// The exit status.
    #[must_use]
    pub fn status(&self) -> Status {
        match self {
            Self::Finished | Self::ExpectedPanic(_) => Status::Ok,
            Self::Failed(_) => Status::Failed,
            Self::Panicked(..) => Status::Panicked,
            Self::Script(_) => Status::Usage,
            Self::Timeout(_) => Status::Timeout,
            Self::Interrupted => Status::Interrupted,
            Self::Host(_) => Status::NoKvm,
            Self::Broken(_) => Status::Broken,
        }
    }
}
