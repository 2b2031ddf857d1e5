//! Kernel threads, and the structures of the scheduler.
//!
//! All of it is guarded by [`Scheduler::lock`], a spin lock, except where a field says otherwise. A
//! thread is on at most one of: a run queue (state Runnable), a sleep queue (Sleeping), the list of
//! zombies.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::Mtx;
use super::lock_class::HeldLocks;
use super::stall::Pressure;
use crate::addr::{GuestVirt, KPtr};
use crate::codes::codes;
use crate::field::{Code, Field, Flag};
use crate::kmem::WaitMessage;
use crate::pressure::{STALL_CAUSES, StallCause};

codes! {
    /// What a thread is doing (`td_state`).
    pub enum ThreadState: u32 {
        /// Not a thread yet, or no longer one.
        Inactive = 0,
        /// It has the CPU.
        Running = 1,
        /// It can run: it is on a run queue, or it is the idle thread.
        Runnable = 2,
        /// It waits on [`Thread::wchan`].
        Sleeping = 3,
        /// It has exited; its stack and its structure are still to be freed.
        Zombie = 4,
    }
}

/// A thread of the kernel (`struct thread`). Lives in the direct map, in a zone of its own.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Thread {
    /// Its number: unique among the threads that have not exited.
    pub tid: Field<u32>,
    /// What it is doing.
    pub state: Field<Code<ThreadState>>,
    /// Its current priority, 0 to 255; the smallest runs first.
    pub priority: Field<u8>,
    /// The priority with which it was created, and to which it returns after a sleep has lent it
    /// another.
    pub base_priority: Field<u8>,
    /// Set when a preemption was deferred until its outermost critical section ends
    /// (`td_owepreempt`). Only the thread writes it.
    pub owepreempt: Field<Flag<u8>>,
    /// The CPU on which it runs, or ran last (`td_lastcpu`).
    pub lastcpu: Field<u8>,
    /// Depth of its critical sections (`td_critnest`). Only the thread writes it.
    pub critnest: Field<u16>,
    /// Event lists whose handlers it is calling, each from a handler of the one before. Only the
    /// thread writes it, together with [`super::EventhandlerList::runcount`].
    pub event_nesting: Field<u16>,
    /// Its name: a [`WaitMessage`] in two words.
    pub name: [Field<u64>; 2],
    /// What it waits for: a [`WaitMessage`] in two words, 0 while it does not sleep.
    pub wmesg: [Field<u64>; 2],
    /// The channel on which it sleeps, 0 while it does not sleep.
    pub wchan: Field<GuestVirt>,
    /// sx locks that it owns (`td_locks`). Only the thread writes it.
    pub sx_held: Field<u32>,
    /// Set when its last sleep timed out (`TDF_TIMEOUT`).
    pub timed_out: Field<Flag<u16>>,
    /// Interrupt handlers that run on it, each nested in the one before (`td_intr_nesting_level`).
    /// Only the thread writes it.
    pub intr_nesting: Field<u16>,
    /// Lowest address of its kernel stack, without its guard page; 0 for the thread that the boot
    /// became.
    pub kstack: Field<GuestVirt>,
    /// Pages of its kernel stack, without the guard page.
    pub kstack_pages: Field<u32>,
    /// Classes of the mutexes that it holds. Only the thread writes it.
    pub held_locks: Field<HeldLocks>,
    /// The next of all threads.
    pub all_next: Field<KPtr<Thread>>,
    /// The thread before it among all threads.
    pub all_prev: Field<KPtr<Thread>>,
    /// The next thread whose number has the same hash.
    pub tid_next: Field<KPtr<Thread>>,
    /// The next on its run queue or on the list of zombies.
    pub rq_next: Field<KPtr<Thread>>,
    /// The thread before it on its run queue.
    pub rq_prev: Field<KPtr<Thread>>,
    /// The next that sleeps on the same channel.
    pub sq_next: Field<KPtr<Thread>>,
    /// The thread before it on the same channel.
    pub sq_prev: Field<KPtr<Thread>>,
    /// The sleep queue that it owns while it does not sleep.
    pub sleepqueue: Field<KPtr<SleepQueue>>,
    /// Its time-out, if it has one.
    pub callout: Callout,
    /// Words that the machine needs to switch to the thread.
    pub md: [Field<u64>; 8],
    /// Times it was switched to.
    pub switches: Field<u64>,
    /// When its sleep began, in microseconds since boot, while it sleeps for memory
    /// ([`StallCause`](crate::pressure::StallCause)); otherwise 0.
    pub stall_since: Field<u64>,
    /// Microseconds that its sleeps for memory have taken, without one that goes on, by cause.
    pub stalled: [Field<u64>; STALL_CAUSES],
    #[doc(hidden)]
    pub _pad: Field<u64>,
}

/// Words of [`Thread::md`], as the x86_64 kernel stores them for a thread that does not run.
pub mod md {
    /// Stack pointer, 0 for a thread that has never run.
    pub const RSP: usize = 0;
    /// End of the next free trap slot.
    pub const SLOT: usize = 1;
    /// Lowest address of the stack proper.
    pub const LOW: usize = 2;
    /// First address past the stack proper.
    pub const HIGH: usize = 3;
    /// Lowest address of the trap slots.
    pub const SLOTS: usize = 4;
    /// First address past the trap slots.
    pub const SLOTS_END: usize = 5;
    /// Depth of interrupt deferral.
    pub const DEPTH: usize = 6;
    /// The function that a new thread calls.
    pub const START: usize = 7;
    /// The argument of a thread that has never run.
    pub const ARG: usize = SLOT;
}

impl Thread {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> WaitMessage {
        WaitMessage::from_words([self.name[0].get(), self.name[1].get()])
    }

    /// What it waits for, if it sleeps.
    #[must_use]
    pub fn wait_message(&self) -> Option<WaitMessage> {
        let words = [self.wmesg[0].get(), self.wmesg[1].get()];
        (self.wchan.get() != GuestVirt::new(0)).then(|| WaitMessage::from_words(words))
    }

    /// What it is stalled by, if it sleeps for memory.
    #[must_use]
    pub fn stall(&self) -> Option<StallCause> {
        self.wait_message().and_then(StallCause::of)
    }

    /// What it is doing, or `None` when the structure is damaged.
    #[must_use]
    pub fn state(&self) -> Option<ThreadState> {
        self.state.known()
    }
}

const _: () = assert!(size_of::<Thread>() == 320);
const _: () = assert!(core::mem::offset_of!(Thread, name) == 16);
const _: () = assert!(core::mem::offset_of!(Thread, wchan) == 48);
const _: () = assert!(core::mem::offset_of!(Thread, kstack) == 64);
const _: () = assert!(core::mem::offset_of!(Thread, callout) == 144);
const _: () = assert!(core::mem::offset_of!(Thread, md) == 184);

/// The end of a thread's timed sleep: a node of a pairing heap, whose root is the time-out that is
/// due next.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Callout {
    /// The tick at which it is due.
    pub deadline: Field<u64>,
    /// Orders time-outs that are due at the same tick; 0 when the thread has no time-out.
    pub sequence: Field<u64>,
    /// Its first child in the heap; no child is due earlier than it.
    pub child: Field<KPtr<Thread>>,
    /// The next child of the same parent.
    pub sibling: Field<KPtr<Thread>>,
    /// The previous child of the same parent, or the parent if it is the first child.
    pub prev: Field<KPtr<Thread>>,
}

/// The threads that sleep on one channel, first come first. Each thread brings one queue: the first
/// sleeper's becomes the queue, later sleepers add theirs to the spare ones, and each takes one
/// with it when it wakes (`struct sleepqueue`).
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct SleepQueue {
    /// The next queue with the same hash, or the next spare queue.
    pub hash_next: Field<KPtr<SleepQueue>>,
    /// The queue before it with the same hash.
    pub hash_prev: Field<KPtr<SleepQueue>>,
    /// The channel.
    pub wchan: Field<GuestVirt>,
    /// The threads that sleep.
    pub blocked: ThreadList,
    /// The queues of the sleepers after the first.
    pub spare: Field<KPtr<SleepQueue>>,
    #[doc(hidden)]
    pub _pad: [Field<u64>; 2],
}

const _: () = assert!(size_of::<SleepQueue>() == 64);

/// A list of threads.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ThreadList {
    /// The first.
    pub head: Field<KPtr<Thread>>,
    /// The last.
    pub tail: Field<KPtr<Thread>>,
}

/// Lists of the run queue (`RQ_NQS`).
pub const RQ_NQS: usize = 64;
/// Priorities that share a list (`RQ_PPQ`).
pub const RQ_PPQ: u8 = 4;

/// The threads that can run (`struct runq`).
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct RunQueue {
    /// A bit for each list that is not empty.
    pub status: Field<u64>,
    /// Threads by priority.
    pub queues: [ThreadList; RQ_NQS],
}

impl Default for RunQueue {
    fn default() -> Self {
        Self { status: Field::default(), queues: core::array::from_fn(|_| ThreadList::default()) }
    }
}

codes! {
    /// Where threads that become runnable go: [`Scheduler::spread`].
    pub enum Spread: u32 {
        /// They stay where they were woken.
        No = 0,
        /// They go to an idle CPU, if there is one.
        Yes = 1,
        /// They stay, and no other CPU takes them over: a thread that is woken here runs as if
        /// there were no other CPU.
        Never = 2,
    }
}

/// Chains of the table of threads by number.
pub const TID_HASH: usize = 32;
/// Chains of the table of sleep queues by channel (`SC_TABLESIZE`).
pub const SC_TABLESIZE: usize = 128;

/// The state that the CPUs' schedulers share.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Scheduler {
    /// Guards threads, run queues, sleep queues and time-outs: a spin lock (`sched_lock`).
    pub lock: Mtx,
    /// Set until threads can sleep (`cold`).
    pub cold: Field<Flag>,
    /// Whether threads that become runnable go to idle CPUs. Otherwise they stay where they were
    /// woken, in the order of their wakeups, and other CPUs take some over only when a time slice
    /// ends. What finishes before that happens in the same order with any number of CPUs.
    pub spread: Field<Code<Spread>>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// All threads that have not exited, in the order in which they were made.
    pub all: ThreadList,
    /// Threads that have exited and must be freed, linked by [`Thread::rq_next`].
    pub zombies: Field<KPtr<Thread>>,
    /// The time-out that is due next: the root of the heap.
    pub callouts: Field<KPtr<Thread>>,
    /// Time-outs armed since boot.
    pub callout_sequence: Field<u64>,
    /// Time-outs of the kernel's own daemons that expired while all threads, including the idle
    /// thread, slept.
    pub idle_passes: Field<u64>,
    /// Stalls on memory.
    pub pressure: Pressure,
    /// Threads by the hash of their number.
    pub tids: [Field<KPtr<Thread>>; TID_HASH],
    /// Sleep queues by the hash of their channel.
    pub sleepqueues: [Field<KPtr<SleepQueue>>; SC_TABLESIZE],
}

impl Default for Scheduler {
    fn default() -> Self {
        Self {
            lock: Mtx::default(),
            cold: Field::default(),
            spread: Field::default(),
            _pad: Field::default(),
            all: ThreadList::default(),
            zombies: Field::default(),
            callouts: Field::default(),
            callout_sequence: Field::default(),
            idle_passes: Field::default(),
            pressure: Pressure::default(),
            tids: core::array::from_fn(|_| Field::default()),
            sleepqueues: core::array::from_fn(|_| Field::default()),
        }
    }
}
