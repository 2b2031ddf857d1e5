//! The structures of each CPU.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::{LockStats, Mtx};
use super::lock_class::LOCK_CLASSES;
use super::page::VmFreeList;
use super::thread::{RunQueue, Thread};
use crate::addr::KPtr;
use crate::codes::codes;
use crate::field::{Code, Field, Flag};

/// A CPU, as the kernel sees it (`struct pcpu`). The fields up to its run queue are guarded by
/// [`super::Scheduler::lock`]. The fields after it, in cache lines of their own, are changed by
/// this CPU alone, with interrupts deferred, except for the cache of pages.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Pcpu {
    /// The CPU after it in the list that begins at [`super::KernelRoots::cpuhead`] (`pc_allcpu`),
    /// or null.
    pub allcpu_next: Field<KPtr<Pcpu>>,
    /// The thread that it runs (`pc_curthread`).
    pub curthread: Field<KPtr<Thread>>,
    /// The thread that it runs when it has no other (`pc_idlethread`). No other CPU ever runs that
    /// thread.
    pub idlethread: Field<KPtr<Thread>>,
    /// Its number, from 0 (`pc_cpuid`).
    pub cpuid: Field<u32>,
    /// Whether its thread should give way at the next occasion (`TDF_NEEDRESCHED`).
    pub need_resched: Field<Code<Preempt>>,
    /// Ticks for which its thread may go on while others of its priority wait.
    pub slice: Field<u64>,
    /// Threads that will run on it, unless an idle CPU takes them.
    pub runq: RunQueue,
    /// Set while its idle thread works for others, the host or a thread that has exited; clear
    /// while it sleeps or looks for work. Only this CPU writes it.
    pub serving: Field<Flag<u64>>,
    #[doc(hidden)]
    pub _pad: Field<u64>,
    /// Its counts for mutexes and sx locks, by class.
    pub locks: [LockStats; LOCK_CLASSES],
    /// Set when the cycles that locks are held are counted (`debug.lock.prof.enable`). Never
    /// changes.
    pub lock_prof: Field<Flag<u64>>,
    /// Its counts for flushes of translations.
    pub tlb: TlbStats,
    /// Pages that it has worked on since it could last take interrupts, while it owns a mutex.
    pub pages: Field<u64>,
    /// The largest value of `pages` so far.
    pub longest_pages: Field<u64>,
    /// Interrupts of its timer.
    pub clock_interrupts: Field<u64>,
    #[doc(hidden)]
    pub _pad_tlb: [Field<u64>; 4],
    /// Free pages that it allocates and frees without the buddy lists.
    pub page_cache: PageCache,
}

/// A CPU's cache of free pages (the per-CPU half of FreeBSD's later `vm_pgcache`). Its lock guards
/// all fields.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct PageCache {
    /// Taken with or without the free-page queues' mutex held, and by other CPUs too.
    pub lock: Mtx,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Its pages, linked like those of a free list; the next page to be allocated is first. At most
    /// [`super::KernelRoots::page_cache_max`].
    pub pages: VmFreeList,
    /// Pages that were allocated from it.
    pub allocs: Field<u64>,
    /// Pages that were freed to it.
    pub frees: Field<u64>,
    /// Times that it was filled from the buddy lists.
    pub refills: Field<u64>,
    /// Times that it was full and returned a batch to the buddy lists.
    pub spills: Field<u64>,
    /// Pages that CPUs, this one or others, took from it after they had found the buddy lists
    /// empty.
    pub drained: Field<u64>,
}

// The lock and the list do not share a cache line with the lock or list of another CPU.
const _: () = assert!(size_of::<PageCache>() == 64);

/// Counts of the flushes of translations that a CPU has made or asked for.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct TlbStats {
    /// Ranges whose translations it flushed of its own accord, whether or not other CPUs had to as
    /// well.
    pub flushes: Field<u64>,
    /// Ranges for which it had to ask other CPUs (shootdowns).
    pub shootdowns: Field<u64>,
    /// CPUs that it asked.
    pub asked: Field<u64>,
    /// CPUs that it had to interrupt, because they did not handle the request by themselves in
    /// time.
    pub interrupts: Field<u64>,
    /// CPUs that it did not ask because they were idle and flush everything before they go on.
    pub skipped: Field<u64>,
    /// Times that it answered other CPUs.
    pub answered: Field<u64>,
    /// Answers for which it needed no flush besides its own.
    pub merged: Field<u64>,
    /// Times that it flushed everything because it had been skipped.
    pub caught_up: Field<u64>,
}

const _: () = assert!(size_of::<Pcpu>() == 1856);
const _: () = assert!(core::mem::offset_of!(Pcpu, cpuid) == 24);
const _: () = assert!(core::mem::offset_of!(Pcpu, runq) == 40);
// The fields that only this CPU changes do not share a cache line with those that others change.
const _: () =
    assert!(core::mem::offset_of!(Pcpu, locks) == 1088 && size_of::<Pcpu>().is_multiple_of(64));
const _: () = assert!(core::mem::offset_of!(Pcpu, page_cache).is_multiple_of(64));

codes! {
    /// Values of [`Pcpu::need_resched`]: why the running thread should give way.
    pub enum Preempt: u32 {
        /// It should not.
        No = 0,
        /// A thread of better priority can run: this thread keeps its place among its equals.
        Better = 1,
        /// Its time slice is over: this thread goes behind its equals.
        SliceOver = 2,
    }
}
