//! The list of threads, and the end of a thread (`kern_thread.c`, `kern_kthread.c`).
//!
//! From the moment it is linked to its end, a thread is on the list of all threads and can be found
//! by its number. Afterwards other threads free its structure and its stack (`zombie_take`); its
//! number is free at once. Threads are created in [`crate::vm::thread`], because that takes memory.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{TID_HASH, Thread, ThreadState};

use super::queue::{PointerSList, PointerTailQ, pointer_links};
use super::sched::PRI_MAX_IDLE;
use super::sleepq::WaitChannel;
use super::{Kern, stall};
use crate::machine::{Cpu, PhysMem};

/// The thread that the boot becomes: the host's dispatcher, which is also the idle thread.
pub const THREAD0_TID: u32 = 64;
/// The pagedaemon.
pub const PAGEDAEMON_TID: u32 = 65;
/// The thread that clears free pages when there is nothing else to do.
pub const PAGEZERO_TID: u32 = 66;
/// The thread that does, for others, work that may sleep. The numbers of idle threads are below it.
pub const TASKQ_TID: u32 = 500;
/// The driver of the balloon.
pub const BALLOON_TID: u32 = 501;

pointer_links! {
    /// The list of all threads (`td_plist`).
    AllThreads: Thread { next: all_next, prev: all_prev }
    /// The chains of threads by number.
    TidChain: Thread { next: tid_next }
    /// The threads that have exited. They are on no run queue.
    Zombies: Thread { next: rq_next }
}

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
        stall::exits(self, thread);
        t.state.put(ThreadState::Zombie);
        self.zombies().insert_head(thread);
        self.mi_throw()
    }

    /// The structure of a thread that has exited, which the caller owns from now on, or null.
    /// Locks: takes the scheduler's.
    pub(crate) fn zombie_take(&self) -> KPtr<Thread> {
        self.sched_lock();
        let zombies = self.zombies();
        let zombie = zombies.first().map_or(KPtr::NULL, |_| zombies.remove_head());
        self.sched_unlock();
        zombie
    }

    fn zombies(&self) -> PointerSList<'_, M, Zombies> {
        self.slist(&self.sched().zombies)
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
        let found = self.tid_chain(tid).find(|thread| self.get(thread).tid.get() == tid);
        self.sched_unlock();
        found
    }

    /// All threads that have not exited, in the order in which they were created. No thread may
    /// exit during the iteration.
    pub fn threads(&self) -> impl Iterator<Item = KPtr<Thread>> {
        self.all_threads().iter()
    }

    /// All threads, in the order in which they were made. Locks: the scheduler's.
    fn all_threads(&self) -> PointerTailQ<'_, M, AllThreads> {
        let all = &self.sched().all;
        self.tailq(&all.head, &all.tail)
    }

    /// The threads whose numbers are in the same chain as `tid`.
    fn tid_chain(&self, tid: u32) -> PointerSList<'_, M, TidChain> {
        self.slist(&self.sched().tids[tid as usize % TID_HASH])
    }

    /// Links `thread` into the list of all threads and the table of numbers. Locks: the
    /// scheduler's.
    pub(crate) fn thread_link(&self, thread: KPtr<Thread>) {
        self.all_threads().insert_tail(thread);
        self.tid_chain(self.get(thread).tid.get()).insert_head(thread);
        self.cnt().thread_count.inc();
    }

    /// Unlinks `thread` from both. Locks: the scheduler's.
    fn thread_unlink(&self, thread: KPtr<Thread>) {
        self.all_threads().remove(thread);
        self.tid_chain(self.get(thread).tid.get()).remove(thread);
        self.cnt().thread_count.dec();
    }
}
