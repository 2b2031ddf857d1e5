//! Data of one CPU that interrupt handlers and threads share.

use core::cell::UnsafeCell;

use crate::arch::interrupt::Masked;

/// A value that is only reached with interrupts deferred. There is one CPU, so that nobody else reaches it then.
pub struct MaskedCell<T>(UnsafeCell<T>);

// SAFETY: `with` is the only way in, and excludes everybody else on the one CPU.
unsafe impl<T: Send> Sync for MaskedCell<T> {}

impl<T> MaskedCell<T> {
    /// A cell that holds `value`.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// Calls `f` with the value, interrupts deferred. `f` must not call `with` of the same cell, nor switch threads.
    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let _masked = Masked::new();
        // SAFETY: interrupts and preemption are deferred, `f` does not come here again, and there is one CPU.
        f(unsafe { &mut *self.0.get() })
    }
}
