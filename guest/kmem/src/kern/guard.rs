//! Mutexes that are held, as values: dropping one releases the lock.
//!
//! A [`Guard`] is also a proof. A function that needs a lock takes a reference to its guard, so
//! code without the lock cannot call it. Each lock has a guard type of its own (`FreeQueue`,
//! `PageQueues`, ..), made by the function that acquires it. The type does not say which of several
//! locks of one kind is held: functions that need one of many document it.
//!
//! **Locks without guards.** The scheduler's lock is acquired by the thread that leaves a CPU and
//! released by the one that arrives, so no scope holds it: `sched_lock` and `sched_unlock` stay. A
//! sleep releases its interlock in the middle and may not acquire it again
//! ([`Relock::Drop`](super::synch::Relock)): `msleep` takes the mutex itself, which a guard lends
//! (`interlock`) or hands over for good (`hand_over`).
//!
//! **Panics.** In the kernel a panic ends the system, and nothing is dropped. On machines where it
//! unwinds ([`Cpu::is_unwinding`]), the simulated one and loom's, a guard that a panic drops leaves
//! its lock owned, like a lock that was acquired by hand. So a test sees the stopped system as it
//! was at that moment, and a release, which checks and may switch, cannot panic a second time. A
//! guard that was made during unwinding, by a test's own destructors, releases its lock as usual.

use core::fmt;
use core::marker::PhantomData;

use vmkern_abi::layout::Mtx;

use super::Kern;
use super::lock::{Interlock, LockClass};
use crate::machine::{Cpu, PhysMem};

/// A kind of mutex, which has guards of its own.
pub trait Lock {
    /// Its class.
    const CLASS: LockClass;
}

/// A mutex of kind `L` that the running thread owns.
#[must_use = "the lock is released when its guard is dropped"]
pub struct Guard<'a, M: PhysMem + Cpu, L: Lock> {
    kern: &'a Kern<M>,
    mtx: &'a Mtx,
    /// Whether it was made while a panic was unwinding.
    in_unwinding: bool,
    /// Belongs to the thread that made it.
    kind: PhantomData<(L, *const ())>,
}

impl<'a, M: PhysMem + Cpu, L: Lock> Guard<'a, M, L> {
    /// The mutex as the interlock of a sleep that acquires it again.
    #[inline]
    pub(crate) fn interlock(&mut self) -> Interlock<'a> {
        (L::CLASS, self.mtx)
    }

    /// The mutex, which stays owned: the caller passes it on to be released, usually by a sleep.
    #[inline]
    pub(crate) fn hand_over(self) -> Interlock<'a> {
        let interlock = (L::CLASS, self.mtx);
        core::mem::forget(self);
        interlock
    }

    /// Calls `f` with the lock released. The data that it guards may have changed in any way
    /// afterwards.
    pub(crate) fn unlocked<R>(&mut self, f: impl FnOnce() -> R) -> R {
        // The data that the lock guards may change until it is acquired again. The exclusive borrow
        // of the guard keeps the caller from holding earlier proofs or references.
        self.kern.mtx_unlock(L::CLASS, &self.mtx.owner);
        let result = f();
        self.kern.mtx_lock(L::CLASS, &self.mtx.owner);
        result
    }
}

impl<M: PhysMem + Cpu, L: Lock> Drop for Guard<'_, M, L> {
    #[inline]
    fn drop(&mut self) {
        if self.in_unwinding || !self.kern.machine().is_unwinding() {
            self.kern.mtx_unlock(L::CLASS, &self.mtx.owner);
        }
    }
}

impl<M: PhysMem + Cpu, L: Lock> fmt::Debug for Guard<'_, M, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", L::CLASS.name())
    }
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// Acquires `mtx`, of kind `L`, until the guard is dropped. Panics as
    /// [`Kern::mtx_lock`] does.
    #[inline]
    pub(crate) fn mtx_guard<'a, L: Lock>(&'a self, mtx: &'a Mtx) -> Guard<'a, M, L> {
        self.mtx_lock(L::CLASS, &mtx.owner);
        let in_unwinding = self.machine().is_unwinding();
        Guard { kern: self, mtx, in_unwinding, kind: PhantomData }
    }
}
