//! The list of threads, and the end of a thread (`kern_thread.c`, `kern_kthread.c`).
//!
//! From the moment it is linked to its end, a thread is on the list of all threads and can be found
//! by its number. Afterwards other threads free its structure and its stack (`zombie_take`); its
//! number is free at once. Threads are created in [`crate::vm::thread`], because that takes memory.

use vmkern_abi::addr::KPtr;
use vmkern_abi::field::Field;
use vmkern_abi::layout::{TID_HASH, Thread, ThreadState};

use super::Kern;
use super::sched::PRI_MAX_IDLE;
use super::sleepq::WaitChannel;
use crate::machine::{Cpu, PhysMem};

/// The thread that the boot becomes: the host's dispatcher, which is also the idle thread.
pub const THREAD0_TID: u32 = 64;
/// The pagedaemon.
pub const PAGEDAEMON_TID: u32 = 65;
/// The thread that clears free pages when there is nothing else to do.
pub const PAGEZERO_TID: u32 = 66;
/// The thread that does, for others, work that may sleep. The numbers of idle threads are below it.
pub const TASKQ_TID: u32 = 500;

impl<M: PhysMem + Cpu> Kern<M> {
    /// Ends the boot: from now on threads can sleep (`configure_final`).
    pub fn configure_final(&self) {
        self.sched().cold.lower();
    }

    /// Ends the running thread (`kthread_exit`), and wakes the threads that sleep on its address.
    /// Panics when it owns a lock, and when it is the idle thread.
    pub fn kthread_exit(&self) -> ! {
        let thread = self.current_thread();
        let t = self.get(thread);
        let tid = t.tid.get();
        self.assert_no_locks("kthread_exit");
        if t.sx_held.get() != 0 {
            self.panic(format_args!(
                "kthread_exit: thread {tid} owns {} sx locks",
                t.sx_held.get()
            ));
        }
        if t.base_priority.get() == PRI_MAX_IDLE {
            self.panic(format_args!("kthread_exit: the idle thread exits"));
        }
        self.wakeup(WaitChannel::of(thread));
        self.sched_lock();
        self.thread_unlink(thread);
        t.state.put(ThreadState::Zombie);
        let zombies = &self.sched().zombies;
        t.rq_next.set(zombies.get());
        zombies.set(thread);
        self.mi_throw()
    }

    /// The structure of a thread that has exited, which the caller owns from now on, or null.
    /// Locks: takes the scheduler's.
    pub(crate) fn zombie_take(&self) -> KPtr<Thread> {
        self.sched_lock();
        let zombie = self.sched().zombies.get();
        if let Some(zombie) = zombie.non_null() {
            self.sched().zombies.set(self.get(zombie).rq_next.get());
        }
        self.sched_unlock();
        zombie
    }

    /// Whether an exited thread has left anything for `thread_reap`.
    #[inline]
    #[must_use]
    pub fn has_zombies(&self) -> bool {
        !self.sched().zombies.get().is_null()
    }

    /// The thread with this number, if it has not exited (`tfind`). Locks: takes the scheduler's.
    #[must_use]
    pub fn tfind(&self, tid: u32) -> Option<KPtr<Thread>> {
        self.sched_lock();
        let mut at = self.tid_chain(tid).get();
        while let Some(thread) = at.non_null().filter(|&thread| self.get(thread).tid.get() != tid) {
            at = self.get(thread).tid_next.get();
        }
        self.sched_unlock();
        at.non_null()
    }

    /// All threads that have not exited, in the order in which they were created. No thread may
    /// exit during the iteration.
    pub fn threads(&self) -> impl Iterator<Item = KPtr<Thread>> {
        let first = self.sched().all.head.get().non_null();
        core::iter::successors(first, |&thread| self.get(thread).all_next.get().non_null())
    }

    fn tid_chain(&self, tid: u32) -> &Field<KPtr<Thread>> {
        &self.sched().tids[tid as usize % TID_HASH]
    }

    /// Links `thread` into the list of all threads and the table of numbers. Locks: the
    /// scheduler's.
    pub(crate) fn thread_link(&self, thread: KPtr<Thread>) {
        let (t, all) = (self.get(thread), &self.sched().all);
        let last = all.tail.get();
        t.all_prev.set(last);
        last.non_null().map_or(&all.head, |last| &self.get(last).all_next).set(thread);
        all.tail.set(thread);
        let chain = self.tid_chain(t.tid.get());
        t.tid_next.set(chain.get());
        chain.set(thread);
        self.cnt().thread_count.inc();
    }

    /// Unlinks `thread` from both. Locks: the scheduler's.
    fn thread_unlink(&self, thread: KPtr<Thread>) {
        let (t, all) = (self.get(thread), &self.sched().all);
        let (prev, next) = (t.all_prev.get(), t.all_next.get());
        prev.non_null().map_or(&all.head, |prev| &self.get(prev).all_next).set(next);
        next.non_null().map_or(&all.tail, |next| &self.get(next).all_prev).set(prev);
        let mut link = self.tid_chain(t.tid.get());
        while link.get() != thread {
            link = &self.get(link.get()).tid_next;
        }
        link.set(t.tid_next.get());
        self.cnt().thread_count.dec();
    }
}
