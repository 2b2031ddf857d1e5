//! The thread that does, for others, work that may sleep (FreeBSD's `taskqueue_thread`).
//!
//! The thread that takes the host's requests never sleeps. The creation of a thread while pages are
//! short, which would have to wait, is work for this thread, which is created at boot, when there
//! are pages. The machine decides what the thread does and how it is asked; this module makes it
//! sleep in between.

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

/// Its wait message while there is nothing to do, as in FreeBSD.
const IDLE: &str = "-";

impl<M: VmMachine> Vm<M> {
    /// Creates the thread, asleep (`taskqueue_start_threads`). Once it is woken it calls `run`,
    /// which never returns.
    ///
    /// # Errors
    /// [`Shortage`] when there is no memory for the thread.
    pub fn taskqueue_start(&self, run: ThreadStart<Self>) -> Result<(), Shortage> {
        let spec =
            ThreadSpec { tid: TASKQ_TID, name: "thread taskq", priority: PVM, start: run, arg: 0 };
        self.kthread_create_asleep(&spec, self.taskqueue_channel(), IDLE, Wait::No).map(drop)
    }

    /// Wakes the thread, because there is work (`taskqueue_enqueue`). Locks: the lock under which
    /// the thread looks for its work.
    pub fn taskqueue_wakeup(&self) {
        self.wakeup(self.taskqueue_channel());
    }

    /// Sleeps until there is work. Locks: `interlock` is held, and released during the sleep.
    pub fn taskqueue_sleep(&self, interlock: (LockClass, &Mtx)) {
        // There may be more work by now, or none: the caller looks again.
        let (Sleep::Woken | Sleep::TimedOut) =
            self.msleep(self.taskqueue_channel(), interlock, 0, IDLE, 0, Relock::Yes);
    }

    /// The channel on which it sleeps (the address of the lock of the host's requests).
    fn taskqueue_channel(&self) -> WaitChannel {
        WaitChannel::from(self.roots().addr().add(offset_of!(KernelRoots, driver_mtx) as u64))
    }
}
