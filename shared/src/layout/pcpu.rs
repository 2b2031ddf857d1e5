//! What each CPU has for itself.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::{LockStats, Mtx};
use super::lock_class::LOCK_CLASSES;
use super::page::VmFreeList;
use super::thread::{RunQueue, Thread};
use crate::addr::KPtr;
use crate::codes::codes;
use crate::field::{Code, Field, Flag};

/// A CPU, as the kernel sees it (`struct pcpu`). Up to its run queue it is guarded by
/// [`super::Scheduler::lock`]; what follows, in cache lines of its own, is changed by this CPU
/// alone, with interrupts deferred, but for the cache of pages.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Pcpu {
    /// The CPU after it in the list that begins at [`super::KernelRoots::cpuhead`] (`pc_allcpu`),
    /// or null.
    pub allcpu_next: Field<KPtr<Pcpu>>,
    /// The thread that it runs (`pc_curthread`).
    pub curthread: Field<KPtr<Thread>>,
    /// The thread that it runs when it has no other (`pc_idlethread`). No other CPU ever runs that
    /// one.
    pub idlethread: Field<KPtr<Thread>>,
    /// Its number, from 0 (`pc_cpuid`).
    pub cpuid: Field<u32>,
    /// Whether its thread should give way at the next occasion (`TDF_NEEDRESCHED`).
    pub need_resched: Field<Code<Preempt>>,
    /// Ticks that its thread may go on while others of its priority wait.
    pub slice: Field<u64>,
    /// Threads that are to run on it, unless another CPU has nothing to do.
    pub runq: RunQueue,
    /// Set while its idle thread does something for others, the host or a thread that has exited;
    /// not while it rests, or looks for something to do. Its own.
    pub serving: Field<Flag<u64>>,
    #[doc(hidden)]
    pub _pad: Field<u64>,
    /// What it has done with mutexes and sx locks, by class.
    pub locks: [LockStats; LOCK_CLASSES],
    /// Set when the cycles that locks are held are counted (`debug.lock.prof.enable`). Never
    /// changes.
    pub lock_prof: Field<Flag<u64>>,
    /// What it has done to keep translations true.
    pub tlb: TlbStats,
    /// Pages that it has worked on since interrupts could last be taken there, while it owns a
    /// mutex.
    pub pages: Field<u64>,
    /// The most that these have been.
    pub longest_pages: Field<u64>,
    /// Interrupts of its timer.
    pub clock_interrupts: Field<u64>,
    #[doc(hidden)]
    pub _pad_tlb: [Field<u64>; 4],
    /// Free pages that it takes and gives without a look at the buddy lists.
    pub page_cache: PageCache,
}

/// A CPU's cache of free pages (the per-CPU half of FreeBSD's later `vm_pgcache`). Its lock guards
/// all of it.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PageCache {
    /// Taken under the free-page queues' mutex, or without it; by other CPUs, too.
    pub lock: Mtx,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Its pages, linked as those of a free list, the next one to be handed out first. No more than
    /// [`super::KernelRoots::page_cache_max`].
    pub pages: VmFreeList,
    /// Pages that were allocated from it.
    pub allocs: Field<u64>,
    /// Pages that were freed to it.
    pub frees: Field<u64>,
    /// Times that it was filled from the buddy lists.
    pub refills: Field<u64>,
    /// Times that it was full, and gave a batch back to the buddy lists.
    pub spills: Field<u64>,
    /// Pages that CPUs took out of it that had found the buddy lists empty, other CPUs or this one.
    pub drained: Field<u64>,
}

// The lock and the list share a cache line with nothing that another CPU's lock or list is in.
const _: () = assert!(size_of::<PageCache>() == 64);

/// What a CPU has done to keep translations true.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TlbStats {
    /// Ranges that it dropped the translations of on its own account, whether other CPUs had to as
    /// well or not.
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
    /// Those that cost it no flush besides its own.
    pub merged: Field<u64>,
    /// Times that it dropped everything because it had been skipped.
    pub caught_up: Field<u64>,
}

const _: () = assert!(size_of::<Pcpu>() == 1856);
const _: () = assert!(core::mem::offset_of!(Pcpu, cpuid) == 24);
const _: () = assert!(core::mem::offset_of!(Pcpu, runq) == 40);
// What only this CPU changes shares no cache line with what others do.
const _: () =
    assert!(core::mem::offset_of!(Pcpu, locks) == 1088 && size_of::<Pcpu>().is_multiple_of(64));
const _: () = assert!(core::mem::offset_of!(Pcpu, page_cache).is_multiple_of(64));

codes! {
    /// Values of [`Pcpu::need_resched`]: why the running thread should give way.
    pub enum Preempt: u32 {
        /// It should not.
        No = 0,
        /// A thread of a better priority can run: this one keeps its turn among its equals.
        Better = 1,
        /// Its time slice is over: it goes behind its equals.
        SliceOver = 2,
    }
}
