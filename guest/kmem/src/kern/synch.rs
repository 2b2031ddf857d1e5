//! Sleeping and waking (`kern_synch.c`).
//!
//! A wakeup that finds no sleeper is lost. A thread therefore checks its condition under a mutex,
//! and sleeps with that mutex as its interlock: it is on the sleep queue before the mutex is
//! released, so a thread that changes the condition under the mutex cannot miss it.

use vmkern_abi::fail::FailSite;
use vmkern_abi::layout::{HeldLocks, Mtx};

use super::Kern;
use super::context::NoSleep;
use super::lock::Interlock;
use super::sleepq::WaitChannel;
use crate::machine::{Cpu, PhysMem};

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// By a wakeup (0).
    Woken,
    /// By its time-out (`EWOULDBLOCK`).
    TimedOut,
}

/// What happens to the interlock when a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relock {
    /// It is acquired again.
    Yes,
    /// It stays released (`PDROP`).
    Drop,
}

impl<M: PhysMem + Cpu> Kern<M> {
    /// Sleeps on `channel` until a wakeup, `timo` ticks at most and at least 1, with priority
    /// `priority` from then on (0: its own), showing `wmesg`, at most 15 bytes (`tsleep`). While
    /// the system is cold it returns at once.
    ///
    /// Panics in an interrupt, in a critical section, with a mutex held, and when `timo` is 0:
    /// without an interlock a wakeup could be missed. Locks: no mutex may be held. Sleeps.
    pub fn tsleep(&self, channel: WaitChannel, priority: u8, wmesg: &str, timo: u64) -> Sleep {
        if self.is_cold() {
            return Sleep::Woken;
        }
        if timo == 0 {
            self.panic(format_args!(
                "sleeping without a lock: thread {} in `{wmesg}`",
                self.curtid()
            ));
        }
        self.assert_may_sleep(wmesg, HeldLocks::empty());
        let early = self.fails(FailSite::Tsleep);
        self.sched_lock();
        let sleep = self.sleep_locked(channel, priority, wmesg, if early { 1 } else { timo }, None);
        if early { Sleep::Woken } else { sleep }
    }

    /// Sleeps as [`Kern::tsleep`] does, without a limit if `timo` is 0, and releases `interlock`
    /// for the sleep (`msleep`). While the system is cold it returns at once, with the interlock in
    /// the state that `relock` says.
    ///
    /// Panics as [`Kern::tsleep`] does. Locks: owns `interlock`, once, and no other mutex. Sleeps.
    pub fn msleep(
        &self,
        channel: WaitChannel,
        interlock: Interlock<'_>,
        priority: u8,
        wmesg: &str,
        timo: u64,
        relock: Relock,
    ) -> Sleep {
        let (class, Mtx { owner: word }) = interlock;
        self.mtx_assert_owned(class, word);
        if self.is_cold() {
            if relock == Relock::Drop {
                self.mtx_unlock(class, word);
            }
            return Sleep::Woken;
        }
        if word.get() != self.curtid() + 1 {
            self.panic(format_args!("sleeping in `{wmesg}` with recursed mutex {}", class.name()));
        }
        self.assert_may_sleep(wmesg, class.bit());
        let early = self.fails(FailSite::Tsleep);
        self.sched_lock();
        let timo = if early { 1 } else { timo };
        let sleep = self.sleep_locked(channel, priority, wmesg, timo, Some(interlock));
        if relock == Relock::Yes {
            self.mtx_lock(class, word);
        }
        if early { Sleep::Woken } else { sleep }
    }

    /// The sleep itself, without fail point. Locks: the scheduler's on entry, none on return.
    pub(super) fn sleep_locked(
        &self,
        channel: WaitChannel,
        priority: u8,
        wmesg: &str,
        timo: u64,
        interlock: Option<Interlock<'_>>,
    ) -> Sleep {
        // 1. The thread sleeps from here on, until it is woken or `timo` ticks have passed.
        let current = self.current_thread();
        let t = self.get(current);
        self.sleepq_add(current, channel, wmesg);
        if timo != 0 {
            let now = self.cnt().ticks.get().max(self.machine().ticks());
            self.callout_arm(current, now.saturating_add(timo));
        }
        if priority != 0 {
            t.priority.set(priority);
        }
        if let Some((class, Mtx { owner: word })) = interlock {
            // The data that the interlock guards may change now. A wakeup is not missed: this
            // thread is on the sleep queue, and the waker needs the scheduler's lock, which is
            // still held.
            self.mtx_unlock(class, word);
        }
        // 2. Other threads run. The caller's condition need not hold any more afterwards: it checks
        //    again.
        self.mi_switch();
        let timed_out = t.timed_out.is_set();
        t.timed_out.lower();
        self.sched_unlock();
        if timed_out { Sleep::TimedOut } else { Sleep::Woken }
    }

    /// Wakes all threads that sleep on `channel`, in the order in which they came (`wakeup`).
    /// Locks: takes the scheduler's. Never sleeps and never switches: the woken threads run at the
    /// next opportunity.
    pub fn wakeup(&self, channel: WaitChannel) {
        self.sched_lock();
        while let Some(thread) = self.sleepq_take_first(channel) {
            self.setrunnable(thread);
        }
        self.sched_unlock();
    }

    /// Wakes the thread that has slept longest on `channel` (`wakeup_one`). Otherwise like
    /// [`Kern::wakeup`].
    pub fn wakeup_one(&self, channel: WaitChannel) {
        self.sched_lock();
        if let Some(thread) = self.sleepq_take_first(channel) {
            self.setrunnable(thread);
        }
        self.sched_unlock();
    }

    /// Whether threads cannot sleep yet, because only the boot runs (`cold`).
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.sched().cold.is_set() || self.current_thread().is_null()
    }

    /// Panics where the running thread may not sleep. `allowed` contains the classes of the mutexes
    /// that it may hold.
    pub(crate) fn assert_may_sleep(&self, wmesg: &str, allowed: HeldLocks) {
        let Some(why) = self.no_sleep(allowed) else { return };
        let tid = self.curtid();
        match why {
            NoSleep::Interrupt => {
                self.panic(format_args!("sleeping in an interrupt handler: `{wmesg}`"))
            }
            NoSleep::Mutex(held) => {
                self.panic(format_args!("thread {tid} sleeps in `{wmesg}` with locks held: {held}"))
            }
            NoSleep::CriticalSection => {
                self.panic(format_args!("thread {tid} sleeps in `{wmesg}` in a critical section"))
            }
        }
    }
}
