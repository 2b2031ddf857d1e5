//! Where a thread may not sleep, and therefore may not cause a page fault.

use core::fmt;

use vmkern_abi::layout::HeldLocks;

use super::Kern;
use crate::machine::{Cpu, PhysMem};

/// Why the running thread may not sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSleep {
    /// An interrupt handler runs on it.
    Interrupt,
    /// It holds mutexes of these classes.
    Mutex(HeldLocks),
    /// It is in a critical section.
    CriticalSection,
}

impl fmt::Display for NoSleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interrupt => f.write_str("in an interrupt handler"),
            Self::Mutex(held) => write!(f, "while holding {held}"),
            Self::CriticalSection => f.write_str("in a critical section"),
        }
    }
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// Why the running thread may not sleep, if it may not. It may hold mutexes of the classes in
    /// `allowed`. A handler counts before the mutexes of the thread that it interrupted, of which
    /// there are none.
    #[must_use]
    pub fn no_sleep(&self, allowed: HeldLocks) -> Option<NoSleep> {
        if self.in_interrupt() {
            return Some(NoSleep::Interrupt);
        }
        let held = self.held_locks() - allowed;
        if !held.is_empty() {
            return Some(NoSleep::Mutex(held));
        }
        let current = self.current_thread().non_null()?;
        (self.get(current).critnest.get() != 0).then_some(NoSleep::CriticalSection)
    }
}
