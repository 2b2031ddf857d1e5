//! The watcher of a run: what is shown, kept or written of each step.

use super::outcome::Step;

/// How much a watcher wants to know of each step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// The result.
    #[default]
    Brief,
    /// Also its arguments, the time, and the counters that changed, which costs a look at the
    /// guest.
    Full,
}

/// The guest after a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Microseconds of the guest's clock since boot.
    pub now: u64,
    /// Clock ticks since boot.
    pub ticks: u64,
    /// The counters that are different from those after the step before: name, value then, value
    /// now.
    pub changed: Vec<(&'static str, u64, u64)>,
}

/// A watcher that keeps what it is shown takes no more: the run ends, and the script is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// The error, which names the excess.
    pub message: String,
    /// What the script may do.
    pub expected: String,
}

/// Watches a run.
pub trait Observer {
    /// How much of each step is needed.
    fn detail(&self) -> Detail {
        Detail::Brief
    }

    /// A step has finished.
    ///
    /// # Errors
    /// [`TooMuch`] when the run must end.
    fn step(&mut self, step: &Step) -> Result<(), TooMuch>;
}

impl<F: FnMut(&Step)> Observer for F {
    fn step(&mut self, step: &Step) -> Result<(), TooMuch> {
        self(step);
        Ok(())
    }
}
