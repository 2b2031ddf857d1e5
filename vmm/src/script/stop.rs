//! What ends a run from outside: Ctrl-C and the time limit.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::target::TargetError;

/// Looked at between statements, so that a script that never asks the guest for anything ends too.
#[derive(Debug)]
pub struct Stop {
    interrupted: AtomicBool,
    looks: AtomicU32,
    limit: Duration,
    deadline: Option<Instant>,
}

impl Stop {
    /// Ends a run after `limit` from now on.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        let deadline = Instant::now().checked_add(limit);
        Self { interrupted: AtomicBool::new(false), looks: AtomicU32::new(0), limit, deadline }
    }

    /// Ends the run at its next statement.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Time left, or `None` for more than a clock can say.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Whether the run may go on. The clock is read at every 256th call.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self) -> Result<(), TargetError> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(TargetError::Interrupted);
        }
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        if look.is_multiple_of(256) && self.remaining() == Some(Duration::ZERO) {
            return Err(TargetError::Timeout(self.limit));
        }
        Ok(())
    }
}
