//! Data that interrupt handlers and threads of all CPUs share.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU32, Ordering};

use crate::arch::interrupt::Masked;
use crate::arch::tlb;

/// A value that one CPU at a time can access, with interrupts deferred.
pub struct MaskedCell<T> {
    is_taken: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: `with` is the only access, and admits one CPU at a time.
unsafe impl<T: Send> Sync for MaskedCell<T> {}

impl<T> MaskedCell<T> {
    /// A cell that holds `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self { is_taken: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    /// Calls `f` with the value, interrupts deferred. `f` must not call `with` of the same cell,
    /// nor switch threads.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let _masked = Masked::new();
        let mut spins = 0;
        while self.is_taken.swap(1, Ordering::Acquire) != 0 {
            tlb::spin(spins);
            spins += 1;
        }
        // SAFETY: only this CPU has taken the cell; no handler and no other thread runs on it, and
        // `f` does not call `with` again.
        let result = f(unsafe { &mut *self.value.get() });
        self.is_taken.store(0, Ordering::Release);
        result
    }
}
