//! Lock words.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;

/// Counts of what a CPU has done with the locks of a class since boot (`struct lock_prof`). Cycles
/// are TSC cycles.
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
    /// The longest time in cycles for which one was held, while [`super::Pcpu::lock_prof`] is set.
    pub longest: Field<u64>,
    /// The TSC at the last acquisition, while [`super::Pcpu::lock_prof`] is set.
    pub since: Field<u64>,
}

/// A mutex (`struct mtx`). All zero is a free mutex.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Mtx {
    /// In the low half, the number of the thread that owns it plus 1, or 0; in the high half, for
    /// mutexes that allow recursion, how often that thread has acquired it again.
    pub owner: Field<u32>,
}

const _: () = assert!(size_of::<Mtx>() == 4);

/// A lock that is held across sleeps (`struct sx`), exclusive only. All zero is a free lock.
/// Guarded by [`super::Scheduler::lock`]. Threads that wait for it sleep on its address, first come
/// first served.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Sx {
    /// Number of the thread that owns it plus 1, or 0.
    pub owner: Field<u32>,
    /// Threads that wait for it.
    pub waiters: Field<u32>,
}

const _: () = assert!(size_of::<Sx>() == 8);
