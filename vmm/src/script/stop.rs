//! What ends a run from outside: Ctrl-C and the time limit.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::target::TargetError;
use crate::{Guest, deadline};

/// Ends the wait for a guest.
type Hook = Box<dyn Fn() + Send>;

/// Checked between statements, so a script that never calls the guest ends too.
pub struct Stop {
    interrupted: AtomicBool,
    hook: Mutex<Option<Hook>>,
    looks: AtomicU32,
    limit: Duration,
    deadline: Mutex<Instant>,
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stop")
            .field("interrupted", &self.interrupted)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Stop {
    /// Ends a run after `limit` from now on.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        let deadline = Mutex::new(deadline::after(limit));
        let (interrupted, looks) = (AtomicBool::new(false), AtomicU32::new(0));
        Self { interrupted, hook: Mutex::new(None), looks, limit, deadline }
    }

    /// Calls `hook` at each interruption from now on, and now for one that came before.
    pub fn on_interrupt(&self, hook: impl Fn() + Send + 'static) {
        // An interruption that comes during this waits for the lock, and finds the hook.
        let mut known = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_interrupted() {
            hook();
        }
        *known = Some(Box::new(hook));
    }

    /// Makes each interruption end the wait for `guest`, as [`Stop::on_interrupt`] does.
    pub fn watch(&self, guest: &Guest) {
        let handle = guest.interrupt_handle();
        self.on_interrupt(move || handle.interrupt());
    }

    /// Ends the run now: between statements, or in the wait for one.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
        if let Some(hook) = &*self.hook.lock().unwrap_or_else(PoisonError::into_inner) {
            hook();
        }
    }

    /// Gives the run its whole limit again, from now on.
    pub fn restart_clock(&self) {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline::after(self.limit);
    }

    /// Forgets an interruption.
    pub fn forget_interrupt(&self) {
        self.interrupted.store(false, Ordering::SeqCst);
    }

    fn deadline(&self) -> Instant {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The whole time limit of the run.
    #[must_use]
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether the run was interrupted.
    #[must_use]
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Whether the run's limit was more than `grace` ago.
    #[must_use]
    pub fn is_over(&self, grace: Duration) -> bool {
        Instant::now().saturating_duration_since(self.deadline()) > grace
    }

    /// Whether the run may go on. The clock is read at every 256th call.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check(&self) -> Result<(), TargetError> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Err(TargetError::Interrupted);
        }
        let look = self.looks.fetch_add(1, Ordering::Relaxed);
        if look.is_multiple_of(256) { self.check_now() } else { Ok(()) }
    }

    /// Whether the run may go on, by the clock as it stands now.
    ///
    /// # Errors
    /// Why it may not.
    pub fn check_now(&self) -> Result<(), TargetError> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Err(TargetError::Interrupted);
        }
        if self.left().is_zero() {
            return Err(TargetError::Timeout { limit: self.limit, at: None });
        }
        Ok(())
    }

    /// The time that the run has left.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.deadline().saturating_duration_since(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_hook_is_called_for_an_interruption_before_it_and_for_each_one_after() {
        let stop = Stop::after(Duration::from_secs(60));
        let calls = Arc::new(AtomicU32::new(0));
        let hook = |calls: &Arc<AtomicU32>| {
            let calls = Arc::clone(calls);
            move || {
                calls.fetch_add(1, Ordering::SeqCst);
            }
        };
        stop.on_interrupt(hook(&calls));
        assert_eq!(calls.load(Ordering::SeqCst), 0);
        stop.interrupt();
        stop.on_interrupt(hook(&calls));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        stop.forget_interrupt();
        stop.on_interrupt(hook(&calls));
        stop.interrupt();
        assert_eq!(calls.load(Ordering::SeqCst), 3);
    }
}
