//! What each CPU has for itself.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::{LOCK_CLASSES, LockStats};
use super::thread::{RunQueue, Thread};
use crate::addr::KPtr;
use crate::field::Field;

/// A CPU, as the kernel sees it (`struct pcpu`). Up to its run queue it is guarded by [`super::Scheduler::lock`]; the rest,
/// in cache lines of its own, is changed by this CPU alone, with interrupts deferred.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Pcpu {
    /// The CPU after it in the list that begins at [`super::KernelRoots::cpuhead`] (`pc_allcpu`), or null.
    pub allcpu_next: Field<KPtr<Pcpu>>,
    /// The thread that it runs (`pc_curthread`).
    pub curthread: Field<KPtr<Thread>>,
    /// The thread that it runs when it has no other (`pc_idlethread`). No other CPU ever runs that one.
    pub idlethread: Field<KPtr<Thread>>,
    /// Its number, from 0 (`pc_cpuid`).
    pub cpuid: Field<u32>,
    /// Not 0 when its thread should give way at the next occasion (`TDF_NEEDRESCHED`): [`Preempt`].
    pub need_resched: Field<u32>,
    /// Ticks that its thread may go on while others of its priority wait.
    pub slice: Field<u64>,
    /// Threads that are to run on it, unless another CPU has nothing to do.
    pub runq: RunQueue,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 2],
    /// What it has done with mutexes and sx locks, by class.
    pub locks: [LockStats; LOCK_CLASSES],
    /// Not 0 when the cycles that locks are held are counted (`debug.lock.prof.enable`). Never changes.
    pub lock_prof: Field<u64>,
    /// What it has done to keep translations true.
    pub tlb: TlbStats,
    #[doc(hidden)]
    pub _pad2: [Field<u64>; 6],
}

/// What a CPU has done to keep translations true.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TlbStats {
    /// Ranges that it dropped the translations of on its own account, whether other CPUs had to as well or not.
    pub flushes: Field<u64>,
    /// Those for which it had to ask other CPUs (shootdowns).
    pub shootdowns: Field<u64>,
    /// CPUs that it asked.
    pub asked: Field<u64>,
    /// Those that it had to interrupt, because they did not come to see to it by themselves.
    pub interrupts: Field<u64>,
    /// CPUs that it did not ask because they were idle, and drop everything before they go on.
    pub skipped: Field<u64>,
    /// Times that it answered other CPUs.
    pub answered: Field<u64>,
    /// Times that it dropped everything because it had been skipped.
    pub caught_up: Field<u64>,
}

const _: () = assert!(size_of::<Pcpu>() == 1728);
const _: () = assert!(core::mem::offset_of!(Pcpu, cpuid) == 24);
const _: () = assert!(core::mem::offset_of!(Pcpu, runq) == 40);
// What only this CPU changes shares no cache line with what others do.
const _: () = assert!(core::mem::offset_of!(Pcpu, locks) == 1088 && size_of::<Pcpu>().is_multiple_of(64));

/// Values of [`Pcpu::need_resched`]: why the running thread should give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Preempt {
    /// It should not.
    No = 0,
    /// A thread of a better priority can run: this one keeps its turn among its equals.
    Better = 1,
    /// Its time slice is over: it goes behind its equals.
    SliceOver = 2,
}
