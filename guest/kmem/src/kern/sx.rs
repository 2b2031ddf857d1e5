//! Locks that are held across sleeps (`kern_sx.c`), exclusive only. Maps that are not system maps
//! have them.
//!
//! Threads that wait sleep on the lock's address, and its owner hands it to the first of them on
//! release: no thread overtakes another. Guarded by the scheduler's lock.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{HeldLocks, Sx};

use super::Kern;
use super::sleepq::WaitChannel;
use crate::machine::{Cpu, PhysMem};

impl<M: PhysMem + Cpu> Kern<M> {
    /// Acquires `sx` (`sx_xlock`), after all threads that came earlier; a waiting thread shows
    /// `name`. Panics when the running thread owns it already, holds a mutex, or may not sleep.
    /// Sleeps.
    pub fn sx_xlock(&self, sx: KPtr<Sx>, name: &str) {
        let lock = self.get(sx);
        let me = self.curtid() + 1;
        self.assert_no_locks("sx_xlock");
        self.sched_lock();
        if lock.owner.get() == me {
            self.panic(format_args!("_sx_xlock_hard: recursed on non-recursive sx {name}"));
        }
        if lock.owner.get() == 0 {
            lock.owner.set(me);
            self.sx_count();
        } else {
            // The owner may release the lock here: `sx_wait` checks it again.
            self.sched_unlock();
            self.assert_may_sleep(name, HeldLocks::empty());
            self.sched_lock();
            self.sx_wait(lock, sx, name);
        }
        self.sched_unlock();
    }

    /// Waits until the owner has handed `lock` over, unless it is free by then. Locks: the
    /// scheduler's.
    fn sx_wait(&self, lock: &Sx, sx: KPtr<Sx>, name: &str) {
        let me = self.curtid() + 1;
        if lock.owner.get() == 0 {
            lock.owner.set(me);
            return self.sx_count();
        }
        lock.waiters.inc();
        self.count_sx_contested();
        self.sleepq_add(self.current_thread(), WaitChannel::of(sx), name);
        // The owner made this thread the next owner before it woke it: the lock is held now.
        self.mi_switch();
    }

    /// Acquires `sx` unless a thread owns it (`sx_try_xlock`). Returns whether it did. Never
    /// sleeps.
    #[must_use]
    pub fn sx_try_xlock(&self, sx: KPtr<Sx>) -> bool {
        let lock = self.get(sx);
        self.sched_lock();
        let is_free = lock.owner.get() == 0;
        if is_free {
            let me = self.curtid() + 1;
            lock.owner.set(me);
            self.sx_count();
        }
        self.sched_unlock();
        is_free
    }

    /// Releases `sx` (`sx_xunlock`) to the first thread that waits for it. Panics when the running
    /// thread does not own it. Never sleeps.
    pub fn sx_xunlock(&self, sx: KPtr<Sx>) {
        let lock = self.get(sx);
        self.sx_assert_xlocked(sx);
        self.sched_lock();
        if let Some(current) = self.current_thread().non_null() {
            self.get(current).sx_held.dec();
        }
        match self.sleepq_take_first(WaitChannel::of(sx)) {
            Some(next) => {
                lock.waiters.dec();
                lock.owner.set(self.get(next).tid.get() + 1);
                self.get(next).sx_held.inc();
                self.count_sx();
                self.setrunnable(next);
            }
            None => lock.owner.set(0),
        }
        self.sched_unlock();
    }

    /// Whether the running thread owns `sx` (`sx_xlocked`).
    #[must_use]
    pub fn sx_xlocked(&self, sx: KPtr<Sx>) -> bool {
        self.get(sx).owner.get() == self.curtid() + 1
    }

    /// Panics unless the running thread owns `sx` (`sx_assert(SA_XLOCKED)`).
    pub fn sx_assert_xlocked(&self, sx: KPtr<Sx>) {
        if !self.sx_xlocked(sx) {
            let owner = self.get(sx).owner.get();
            self.panic(format_args!(
                "sx lock at {} not exclusively locked: owner word {owner}",
                sx.addr()
            ));
        }
    }

    /// Records that the running thread owns one more.
    fn sx_count(&self) {
        self.count_sx();
        if let Some(current) = self.current_thread().non_null() {
            self.get(current).sx_held.inc();
        }
    }
}
