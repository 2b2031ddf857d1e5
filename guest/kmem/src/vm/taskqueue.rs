//! The thread that does for others what may sleep (FreeBSD's `taskqueue_thread`).
//!
//! Whoever takes the host's requests never sleeps. What he would have to wait for, the making of a
//! thread while pages are short, is work for this thread: it is made at boot, when there are pages.
//! What it does, and how it is asked, is the machine's affair; here is how it sleeps in between.

use core::mem::offset_of;

use vmkern_abi::layout::{KernelRoots, Mtx};

use super::thread::ThreadSpec;
use super::{Shortage, Vm, VmMachine, Wait};
use crate::kern::lock::LockClass;
use crate::kern::sched::PVM;
use crate::kern::sleepq::WaitChannel;
use crate::kern::synch::{Relock, Sleep};
use crate::kern::thread::TASKQ_TID;
use crate::machine::ThreadStart;

/// What it shows while there is nothing to do, as FreeBSD's does.
const IDLE: &str = "-";

impl<M: VmMachine> Vm<M> {
    /// Makes the thread, asleep (`taskqueue_start_threads`). Once it is woken it calls `run`, which
    /// never returns.
    ///
    /// # Errors
    /// [`Shortage`] when there is no memory for the thread.
    pub fn taskqueue_start(&self, run: ThreadStart<Self>) -> Result<(), Shortage> {
        let spec =
            ThreadSpec { tid: TASKQ_TID, name: "thread taskq", priority: PVM, start: run, arg: 0 };
        self.kthread_create_asleep(&spec, self.taskqueue_channel(), IDLE, Wait::No).map(drop)
    }

    /// Wakes the thread: there is something to do (`taskqueue_enqueue`). Locks: that of whoever
    /// knows what, under which the thread looks for it.
    pub fn taskqueue_wakeup(&self) {
        self.wakeup(self.taskqueue_channel());
    }

    /// Sleeps until there is something to do. Locks: `interlock` is held, and released meanwhile.
    pub fn taskqueue_sleep(&self, interlock: (LockClass, &Mtx)) {
        // There may be more to do by now, or nothing: the caller looks again.
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(self.taskqueue_channel(), interlock, 0, IDLE, 0, Relock::Yes);
    }

    /// What it sleeps on (the address of what stands between the host's requests and threads).
    fn taskqueue_channel(&self) -> WaitChannel {
        WaitChannel::from(self.roots().addr().add(offset_of!(KernelRoots, driver_mtx) as u64))
    }
}
