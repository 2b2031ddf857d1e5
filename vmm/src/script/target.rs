//! The target of a script.

use std::path::Path;
use std::time::Duration;

use vmkern_abi::addr::{GuestPhys, GuestVirt};
use vmkern_abi::control::{Context, MapId, Op, Outcome};
use vmkern_abi::fail::{FailSite, FailSpec};
use vmkern_abi::layout::VmMeter;

use super::look::Look;
use super::names::MapField;
use super::outcome::StepResult;
use super::stop::Stop;
use crate::Guest;
use crate::check::Report;
use crate::guest::{Pages, PressureReport, PressureTarget};

/// The end of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// It has finished, or its thread sleeps ([`Outcome::Blocked`]).
    Completed {
        /// Its result.
        outcome: Outcome,
        /// TSC cycles that it took in the guest.
        cycles: u64,
    },
    /// The guest died of it.
    Panicked(Box<Panic>),
}

impl Reply {
    /// The result, and the cycles that it took.
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
    /// The run was interrupted.
    #[error("interrupted")]
    Interrupted,
    /// The host cannot do it, without a bug: a file cannot be written.
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

/// Whether a result is the one that the script asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It is.
    Yes,
    /// It is not.
    No,
}

/// A target at which a fail point fires while a script runs. After the fire, expectations of the
/// script are not judged, and the target judges the results itself.
pub trait Swept {
    /// Whether the fail point has fired.
    fn has_fired(&self) -> bool;

    /// Whether the script holds everything that `op` uses: after a fire, it may not.
    fn admits(&self, op: &Op) -> bool;

    /// The last reply was the result of the statement on `line`.
    fn settled(&mut self, line: usize, wanted: Wanted);
}

/// A guest, or something that acts like one.
pub trait Target {
    /// Runs `op` in `context` until it has finished, blocks, or kills the guest. Callers give no
    /// operation but a join to a thread that is blocked or was started, and join no other thread.
    /// A start is answered at once.
    ///
    /// After [`TargetError::Interrupted`] the operation continues: the thread counts as started,
    /// and a join brings its result.
    ///
    /// # Errors
    /// When there will be no result, or the wait for it has ended.
    fn execute(&mut self, context: Context, op: Op) -> Result<Reply, TargetError>;

    /// Gives the target its whole time limit again, from now on.
    fn restart_clock(&mut self) {}

    /// Forgets an interruption that came while nothing was asked.
    fn forget_interrupt(&mut self) {}

    /// The guest, if it is one: for verbs that need more of it than a target gives.
    fn guest(&self) -> Option<&Guest> {
        None
    }

    /// How often the fail point `site` has executed a term.
    fn fires(&self, site: FailSite) -> u64 {
        self.guest().map_or(0, |guest| guest.fail_counts(site).fires)
    }

    /// The watcher of a sweep, if this target belongs to one.
    fn swept(&mut self) -> Option<&mut dyn Swept> {
        None
    }

    /// The counter of this name, one of those that expressions know. No operation is in flight
    /// except those of blocked threads.
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

    /// The guest's threads by name, each with its state as far as that is known, for reports.
    fn threads(&mut self) -> Vec<(String, String)>;

    /// Makes `spec` the programme of a fail point, from now on. Nothing runs for that.
    fn arm(&mut self, site: FailSite, spec: &FailSpec);

    /// Takes free memory of the guest as `target` says.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when nothing can be taken.
    fn seize(&mut self, target: PressureTarget) -> Result<PressureReport, TargetError>;

    /// Asks the guest's driver to have `target` in the balloon, and in virtual time lets the
    /// threads run that this wakes.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when the guest cannot be asked.
    fn squeeze(&mut self, target: Pages) -> Result<PressureReport, TargetError>;

    /// Gives all seized memory back, and in virtual time lets the threads run that wait for it.
    /// Returns the pages that are still seized.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when nothing can be given back.
    fn release(&mut self) -> Result<Pages, TargetError>;

    /// Writes a dump of the guest's memory to the file at `path`. The dump says that the guest ran
    /// `program`. `stop` can end this.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when the file cannot be written.
    fn dump(&mut self, path: &Path, program: &str, stop: &Stop) -> Result<(), TargetError>;

    /// Checks every structure in the guest's memory.
    ///
    /// # Errors
    /// When the kernel's roots cannot be found.
    fn check(&mut self) -> Result<Report, TargetError>;

    /// A view of the guest, as text for people, in which the guest is called `name`.
    ///
    /// # Errors
    /// [`TargetError::Unable`] when what is asked for does not exist, or a file cannot be read.
    fn inspect(&mut self, name: &str, look: &Look) -> Result<String, TargetError>;

    /// The physical address behind `addr`, by the host's own walk of the page tables.
    ///
    /// # Errors
    /// When the guest's page tables make no sense.
    fn vtop(&mut self, addr: GuestVirt) -> Result<Option<GuestPhys>, TargetError>;
}
