//! Lock words.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;

/// A mutex (`struct mtx`). All zero is a free one.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Mtx {
    /// In the low half, the number of the thread that owns it plus 1, or 0; in the high half, how often that thread has
    /// acquired it again, for the mutexes that allow it.
    pub owner: Field<u32>,
}

const _: () = assert!(size_of::<Mtx>() == 4);

/// A lock that is held across sleeps (`struct sx`), exclusive only. All zero is a free one. Guarded by
/// [`super::Scheduler::lock`]. Those who wait sleep on its address, first come first served.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Sx {
    /// Number of the thread that owns it plus 1, or 0.
    pub owner: Field<u32>,
    /// Threads that wait for it.
    pub waiters: Field<u32>,
}

const _: () = assert!(size_of::<Sx>() == 8);
