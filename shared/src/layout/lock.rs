//! Lock words.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::field::Field;

/// A mutex (`struct mtx`). All zero is a free one.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Mtx {
    /// Number of the thread that owns it plus 1, or 0.
    pub owner: Field<u32>,
}

const _: () = assert!(size_of::<Mtx>() == 4);
