//! Mutexes at FreeBSD's granularity (`kern_mutex.c`). The order in which they nest is checked at
//! every acquisition.
//!
//! The owner of a mutex has interrupts and preemption deferred until the release: it keeps running
//! on its CPU, and a handler that interrupts that CPU finds every mutex free or owned by another
//! CPU. A CPU that finds a mutex owned therefore spins, as FreeBSD's adaptive mutexes do while the
//! owner runs: mutexes and spin locks are the same. A sleep by the owner is a bug, and is reported
//! as one. [`LockClass`] lists the order: a lock of a class is taken only while no lock of the same
//! or a later class is held. A function that holds a mutex for a part of its body has a
//! [`Guard`](super::guard::Guard) for it.

use vmkern_abi::field::Field;
pub use vmkern_abi::layout::LockClass;
use vmkern_abi::layout::{HeldLocks, LockStats, Mtx, SX_CLASS};

use super::Kern;
use crate::kern::thread::THREAD0_TID;
use crate::machine::{Cpu, PhysMem};

/// Acquisitions of a recursive mutex after the first, in the high half of its word.
const RECURSION: u32 = 1 << 16;
/// The owner, in the low half of the word.
const OWNER: u32 = RECURSION - 1;

/// A mutex with its class, for threads that sleep with it as their interlock.
pub type Interlock<'a> = (LockClass, &'a Mtx);

impl<M: PhysMem + Cpu> Kern<M> {
    /// Acquires the lock `word` (`mtx_lock`, `mtx_lock_spin`), and defers interrupts until it is
    /// released. Panics when it is owned and not recursive, and when a lock of the same or a later
    /// class is held.
    #[inline]
    pub fn mtx_lock(&self, class: LockClass, word: &Field<u32>) {
        self.machine().intr_disable();
        let (owner, held) = self.lock_owner();
        if held.get().intersects(class.and_inner()) || word.acquire(0, owner).is_err() {
            return self.mtx_lock_hard(class, word, owner, held);
        }
        held.set(held.get() | class.bit());
        self.count_acquired(class);
    }

    /// This CPU's counts for locks of `class`. Interrupts are deferred.
    #[inline]
    fn lock_stats(&self, class: LockClass) -> &LockStats {
        &self.pcpu().locks[class as usize]
    }

    /// Counts an acquisition.
    #[inline]
    fn count_acquired(&self, class: LockClass) {
        let stats = self.lock_stats(class);
        stats.acquired.inc();
        if self.pcpu().lock_prof.is_set() {
            stats.since.set(self.machine().cycles());
        }
    }

    /// Counts the cycles since the acquisition, which was on this CPU.
    #[cold]
    fn count_held(&self, class: LockClass) {
        let stats = self.lock_stats(class);
        let cycles = self.machine().cycles().saturating_sub(stats.since.get());
        stats.held.update_locked(|n| n + cycles);
        stats.longest.update_locked(|n| n.max(cycles));
    }

    /// Counts a wait of `cycles` for a mutex.
    fn count_contested(&self, class: LockClass, cycles: u64) {
        let stats = self.lock_stats(class);
        stats.contested.inc();
        stats.waited.update_locked(|n| n + cycles);
    }

    /// Counts an acquisition of an sx lock. Locks: the scheduler's.
    pub(super) fn count_sx(&self) {
        self.pcpu().locks[SX_CLASS].acquired.inc();
    }

    /// Counts a wait for an sx lock. Locks: the scheduler's.
    pub(super) fn count_sx_contested(&self) {
        self.pcpu().locks[SX_CLASS].contested.inc();
    }

    /// The slow path of [`Kern::mtx_lock`]: recursion where it is allowed, panics, and the wait for
    /// another CPU.
    #[cold]
    fn mtx_lock_hard(
        &self,
        class: LockClass,
        word: &Field<u32>,
        owner: u32,
        held: &Field<HeldLocks>,
    ) {
        // 1. The running thread may own it: then only the recursion is counted, if it is allowed.
        let now = word.get();
        if now & OWNER == owner {
            if !class.is_recursive() {
                self.panic(format_args!(
                    "_mtx_lock_sleep: recursed on non-recursive mutex {}",
                    class.name()
                ));
            }
            word.set(now + RECURSION);
            return;
        }
        // 2. Another CPU may own it, which releases it soon: no owner sleeps. Waiting is safe only
        // in the order of locks, and with one CPU no other CPU can own it.
        if held.get().intersects(class.and_inner()) {
            self.panic(format_args!("lock order reversal: {} after {}", class.name(), held.get()));
        }
        let begun = self.machine().cycles();
        let mut spins = 0;
        while let Err(now) = word.acquire(0, owner) {
            if self.cnt().ncpu.get() == 1 {
                let other = (now & OWNER) - 1;
                self.panic(format_args!(
                    "mtx_lock: {} is owned by thread {other}, which is not running",
                    class.name()
                ));
            }
            while word.get() != 0 {
                self.machine().cpu_spinwait(spins);
                spins += 1;
            }
        }
        // 3. It is owned now.
        held.set(held.get() | class.bit());
        self.count_contested(class, self.machine().cycles().saturating_sub(begun));
        self.count_acquired(class);
    }

    /// Releases the lock `word` (`mtx_unlock`). Panics when the running thread does not own it. The
    /// release of the last lock handles the interrupts that were deferred, and may switch.
    #[inline]
    pub fn mtx_unlock(&self, class: LockClass, word: &Field<u32>) {
        self.mtx_assert_owned(class, word);
        let now = word.get();
        if now >= RECURSION {
            word.set(now - RECURSION);
        } else {
            let (_, held) = self.lock_owner();
            held.set(held.get() - class.bit());
            if held.get().is_empty() {
                self.pages_settle();
            }
            if self.pcpu().lock_prof.is_set() {
                self.count_held(class);
            }
            word.set_release(0);
        }
        self.machine().intr_restore();
    }

    /// Panics unless the running thread owns the lock `word` (`mtx_assert(MA_OWNED)`).
    #[inline]
    pub fn mtx_assert_owned(&self, class: LockClass, word: &Field<u32>) {
        if word.get() & OWNER != self.curtid() + 1 {
            self.panic(format_args!("mutex {} not owned", class.name()));
        }
    }

    /// Panics when any mutex is held: the caller is about to sleep, or to run code that may take
    /// any lock.
    #[inline]
    pub fn assert_no_locks(&self, what: &str) {
        let held = self.held_locks();
        if !held.is_empty() {
            self.panic(format_args!("{what} with locks held: {held}"));
        }
    }

    /// Classes of the mutexes that the running thread holds.
    #[inline]
    pub(crate) fn held_locks(&self) -> HeldLocks {
        self.lock_owner().1.get()
    }

    /// The running thread as the owner of a lock, and where its locks are recorded.
    #[inline]
    fn lock_owner(&self) -> (u32, &Field<HeldLocks>) {
        match self.machine().current_thread().non_null() {
            Some(thread) => {
                let t = self.get(thread);
                (t.tid.get() + 1, &t.held_locks)
            }
            None => (THREAD0_TID + 1, &self.state().boot_held_locks),
        }
    }

    /// Number of the running thread.
    #[inline]
    pub(crate) fn curtid(&self) -> u32 {
        match self.machine().current_thread().non_null() {
            Some(thread) => self.get(thread).tid.get(),
            None => THREAD0_TID,
        }
    }
}
