//! What a script runs against.

use std::path::Path;
use std::time::Duration;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::control::{Context, MapId, Op, Outcome};
use vmkern_abi::layout::VmMeter;

use super::look::Look;
use super::names::MapField;
use super::outcome::StepResult;
use super::stop::Stop;
use crate::Guest;
use crate::check::Report;

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// It has finished, or its thread sleeps ([`Outcome::Blocked`]).
    Completed {
        /// What came of it.
        outcome: Outcome,
        /// TSC cycles that it took in the guest.
        cycles: u64,
    },
    /// The guest died of it.
    Panicked(Box<Panic>),
}

impl Reply {
    /// What it gave, and the cycles that it took.
    pub(super) fn parts(&self) -> (StepResult, u64) {
        match self {
            Self::Completed { outcome, cycles } => (StepResult::Given(*outcome), *cycles),
            Self::Panicked(panic) => (StepResult::Panicked(panic.message.clone()), 0),
        }
    }
}

/// How a guest died, for reports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Panic {
    /// The message.
    pub message: String,
    /// The thread that ran, as `tN`.
    pub thread: Option<String>,
    /// The CPU.
    pub cpu: u32,
    /// `function+0xoffset (file:line)`, innermost first.
    pub backtrace: Vec<String>,
    /// The whole record, for people.
    pub text: String,
}

/// Why an operation has no result.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// The run's time is over.
    #[error(
        "no answer within the time limit of {limit:?}{}",
        at.as_ref().map_or(String::new(), |at| format!("; the guest was stopped at {at}"))
    )]
    Timeout {
        /// The limit.
        limit: Duration,
        /// Where the guest stood, if it was the guest that did not come to an end.
        at: Option<String>,
    },
    /// Somebody wants the run to end.
    #[error("interrupted")]
    Interrupted,
    /// The host cannot do it, and it is nobody's bug: a file that cannot be written.
    #[error("{0}")]
    Unable(String),
    /// The host refused what the running guest needs of it.
    #[error("{0}")]
    Host(String),
    /// The VMM or the guest broke its contract.
    #[error("{0}")]
    Broken(String),
}

vmkern_inspect::debug_as_printed!(TargetError);

/// A guest, or something that acts like one.
pub trait Target {
    /// Runs `op` in `context` until it has finished, blocks, or kills the guest. No thread that is
    /// blocked or was started is given anything, and only such a one is joined. What is started is
    /// answered at once.
    ///
    /// After [`TargetError::Interrupted`] the operation goes on: the thread counts as started, and
    /// a join brings its result.
    ///
    /// # Errors
    /// When there will be no result, or nobody waits for it any more.
    fn execute(&mut self, context: Context, op: Op) -> Result<Reply, TargetError>;

    /// Gives the target its whole time limit again, from now on.
    fn restart_clock(&mut self) {}

    /// Forgets an interruption that came while nothing was asked.
    fn forget_interrupt(&mut self) {}

    /// The guest, if it is one: for verbs that need more of it than a target gives.
    fn guest(&self) -> Option<&Guest> {
        None
    }

    /// The counter of this name (one of `VmMeter::NAMES`). Nothing is outstanding but blocked
    /// threads.
    ///
    /// # Errors
    /// When the guest's memory makes no sense.
    fn counter(&mut self, name: &'static str) -> Result<u64, TargetError>;

    /// Microseconds of the guest's clock since boot.
    ///
    /// # Errors
    /// When the guest's memory makes no sense.
    fn now(&mut self) -> Result<u64, TargetError>;

    /// Every counter that can be read, by name.
    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        VmMeter::NAMES.iter().filter_map(|&name| Some((name, self.counter(name).ok()?))).collect()
    }

    /// A property of a map.
    ///
    /// # Errors
    /// When the guest's memory makes no sense.
    fn map_field(&mut self, map: MapId, field: MapField) -> Result<u64, TargetError>;

    /// The guest's threads by name, each with what it does, as far as that can be known: for
    /// reports.
    fn threads(&mut self) -> Vec<(String, String)>;

    /// Writes an image of the guest's memory to the file at `path`, which says that the guest ran
    /// `program`. Looks at `stop` now and then.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when the file cannot be written.
    fn dump(&mut self, path: &Path, program: &str, stop: &Stop) -> Result<(), TargetError>;

    /// Checks every structure in the guest's memory.
    ///
    /// # Errors
    /// When there is nothing to begin with: the kernel's roots cannot be found.
    fn check(&mut self) -> Result<Report, TargetError>;

    /// What there is to see, as text for people. `name` is what the text calls the guest.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when what is asked for does not exist, or a file cannot be read.
    fn inspect(&mut self, name: &str, look: &Look) -> Result<String, TargetError>;

    /// The physical address behind `addr` by a walk of the page tables that the guest has no part
    /// in.
    ///
    /// # Errors
    /// When the guest's page tables make no sense.
    fn vtop(&mut self, addr: GuestVirt) -> Result<Option<GuestPhys>, TargetError>;
}
