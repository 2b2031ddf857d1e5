//! The gate at which a vCPU's thread waits while somebody looks at its guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The gate. The vCPU's thread passes it whenever it comes out of the guest; an open gate costs one load.
#[derive(Debug, Default)]
pub(super) struct Gate {
    closed: AtomicBool,
    parked: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the gate. The vCPU's thread is kicked next, so that it comes here.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Opens the gate and lets the vCPU's thread go on.
    pub(super) fn open(&self) {
        let _parked = self.lock();
        self.closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits until the vCPU's thread stands at the gate; whether it does.
    pub(super) fn wait_parked(&self, limit: Duration) -> bool {
        let result = self.changed.wait_timeout_while(self.lock(), limit, |parked| !*parked);
        *result.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Passes the gate: at once when it is open, else when it opens. `park` is called before anybody is told that the
    /// thread stands here.
    pub(super) fn pass(&self, park: impl FnOnce()) {
        if !self.closed.load(Ordering::SeqCst) {
            return;
        }
        park();
        let mut parked = self.lock();
        *parked = true;
        self.changed.notify_all();
        while self.closed.load(Ordering::SeqCst) {
            parked = self.changed.wait(parked).unwrap_or_else(PoisonError::into_inner);
        }
        *parked = false;
    }
}

/// Keeps the gate closed.
#[derive(Debug)]
#[must_use = "the vCPU goes on when this is dropped"]
pub(crate) struct Held<'a>(pub(super) &'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}
