//! The types of the arguments of operations, besides numbers, addresses and the types of
//! [`crate::kmem`], and how an argument is encoded.

use super::message::MAX_THREADS;
use crate::addr::GuestVirt;
use crate::codes::codes;
use crate::kmem::{MallocFlags, MapId};

codes! {
    /// The lock of a submap (FreeBSD's `system_map`).
    pub enum MapKind: u8 {
        /// An sx lock: `kmem_alloc_wait` may be used, `kmem_malloc` may not.
        User = 0,
        /// A mutex, as for mbuf maps: `kmem_malloc` may be used, `kmem_alloc_wait` may not.
        System = 1,
    }
}

codes! {
    /// The function with which [`Workload::Pairs`](super::Workload::Pairs) allocates; it frees with
    /// `kmem_free`.
    pub enum Allocator: u8 {
        /// `kmem_malloc` with M_NOWAIT.
        Malloc = 0,
        /// `kmem_alloc`.
        Alloc = 1,
    }
}

/// A type that an operation can take: one word of the request's slot.
pub(super) trait Argument: Copy {
    /// The word that encodes this value.
    fn to_word(self) -> u64;

    /// The value that `word` encodes, or `None` when no value has that word.
    fn from_word(word: u64) -> Option<Self>;
}

macro_rules! arguments {
    ($($type:ty: $to:expr, $from:expr;)+) => {$(
        impl Argument for $type {
            fn to_word(self) -> u64 {
                $to(self)
            }

            fn from_word(word: u64) -> Option<Self> {
                $from(word)
            }
        }
    )+};
}

arguments! {
    u64: |n| n, Some;
    MapId: |map: Self| map.0, |word| Some(Self(word));
    GuestVirt: Self::get, |word| Some(Self::new(word));
    MallocFlags: |flags: Self| flags.bits(), Self::from_bits;
    MapKind: |kind: Self| kind.code().into(), |word| Self::from_code(u8::try_from(word).ok()?);
    Allocator: |by: Self| by.code().into(), |word| Self::from_code(u8::try_from(word).ok()?);
}

/// The number of a thread.
impl Argument for u16 {
    fn to_word(self) -> u64 {
        self.into()
    }

    fn from_word(word: u64) -> Option<Self> {
        Self::try_from(word).ok().filter(|&thread| thread < MAX_THREADS)
    }
}
