//! Lock words.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;

bitflags! {
    /// Classes of mutexes as [`super::Thread::held_locks`] has them, in the order of nesting,
    /// outermost first.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct HeldLocks: u32 {
        /// The requests of the host.
        const DRIVER = 1 << 0;
        /// The lists of event handlers.
        const EVENTHANDLER = 1 << 1;
        /// A system map.
        const MAP = 1 << 2;
        /// The interlock of those who wait for a map.
        const MAP_SLEEP = 1 << 3;
        /// An object.
        const OBJECT = 1 << 4;
        /// A zone.
        const ZONE = 1 << 5;
        /// The paging queues.
        const PAGE_QUEUE = 1 << 6;
        /// The pmap.
        const PMAP = 1 << 7;
        /// The free-page queues.
        const FREE_QUEUE = 1 << 8;
        /// A CPU's cache of free pages.
        const PAGE_CACHE = 1 << 9;
        /// The scheduler.
        const SCHED = 1 << 10;
    }
}

/// Classes of locks that are told apart in [`LockStats`]: those of mutexes by their bit in
/// [`HeldLocks`], then sx locks.
pub const LOCK_CLASSES: usize = 12;

/// The class of sx locks.
pub const SX_CLASS: usize = 11;

/// What FreeBSD calls the locks of each class.
pub const LOCK_CLASS_NAMES: [&str; LOCK_CLASSES] = [
    "driver",
    "eventhandler",
    "system map",
    "vm map sleep mutex",
    "vm object",
    "UMA zone",
    "vm page queue mutex",
    "pmap",
    "vm page free queue mutex",
    "pcpu page cache",
    "sched lock",
    "user map",
];

const _: () =
    assert!(HeldLocks::all().bits() == (1 << SX_CLASS) - 1 && SX_CLASS + 1 == LOCK_CLASSES);

/// What a CPU has done with the locks of a class since boot (`struct lock_prof`). Cycles are those
/// of the TSC.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct LockStats {
    /// Acquisitions; of a recursive lock, the outermost ones.
    pub acquired: Field<u64>,
    /// Those that found the lock owned by another thread.
    pub contested: Field<u64>,
    /// Cycles spent waiting in those. 0 for sx locks, whose waiters sleep.
    pub waited: Field<u64>,
    /// Cycles that mutexes were held, while [`super::Pcpu::lock_prof`] is set.
    pub held: Field<u64>,
    /// The most cycles that one was held at a stretch, while [`super::Pcpu::lock_prof`] is set.
    pub longest: Field<u64>,
    /// The TSC at the last acquisition, while [`super::Pcpu::lock_prof`] is set.
    pub since: Field<u64>,
}

/// A mutex (`struct mtx`). All zero is a free one.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Mtx {
    /// In the low half, the number of the thread that owns it plus 1, or 0; in the high half, how
    /// often that thread has acquired it again, for the mutexes that allow it.
    pub owner: Field<u32>,
}

const _: () = assert!(size_of::<Mtx>() == 4);

/// A lock that is held across sleeps (`struct sx`), exclusive only. All zero is a free one. Guarded
/// by [`super::Scheduler::lock`]. Those who wait sleep on its address, first come first served.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Sx {
    /// Number of the thread that owns it plus 1, or 0.
    pub owner: Field<u32>,
    /// Threads that wait for it.
    pub waiters: Field<u32>,
}

const _: () = assert!(size_of::<Sx>() == 8);
