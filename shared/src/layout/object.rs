//! `vm_object`, and the order of its page index.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::Mtx;
use crate::codes::codes;
use crate::field::{Code, Field};
use crate::flags_word;

codes! {
    /// Type of an object (`OBJT_*`), with FreeBSD's values.
    pub enum ObjectType: u32 {
        /// Anonymous memory without a pager yet.
        Default = 0,
        /// Anonymous memory with swap space.
        Swap = 1,
        /// Unmanaged physical pages.
        Phys = 4,
        /// About to be destroyed.
        Dead = 5,
    }
}

bitflags! {
    /// Flags of an object (`OBJ_*`), with FreeBSD's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ObjectFlags: u32 {
        /// Being destroyed.
        const DEAD = 0x0008;
        /// Every page is mapped by at most one entry.
        const ONEMAPPING = 0x2000;
    }
}

flags_word!(ObjectFlags, u32);

/// An object, which holds the pages of map entries. Guarded by its lock.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmObject {
    /// The object's mutex.
    pub lock: Mtx,
    /// References: one for its creation and one for each entry.
    pub ref_count: Field<u32>,
    /// Its type.
    pub kind: Field<Code<ObjectType>>,
    /// Flags.
    pub flags: Field<ObjectFlags>,
    /// Its capacity in pages.
    pub size: Field<u64>,
    /// Pages that are resident in it.
    pub resident_page_count: Field<u64>,
    /// Changes with every page that is inserted or removed.
    pub generation: Field<u64>,
    /// Page number of the page at the root of the index, or 0 when there is none.
    pub root: Field<u32>,
    /// Page number of the last page at or before the place where the last search ended, or 0.
    pub before: Field<u32>,
    /// Page number of the page that follows `before` in the order of the index, or 0. When both are
    /// 0, nothing is known.
    pub after: Field<u32>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
}

const _: () = assert!(size_of::<VmObject>() == 56);

/// Whether the page at index `one` is above the page at index `other` in the index of an object
/// that has both.
///
/// The index is a binary tree of the pages themselves ([`super::VmPage::left`],
/// [`super::VmPage::right`]): ordered by page index from left to right, and from the root down by
/// the page index with its bits in reverse, the largest first. So the shape follows from the
/// indices alone. With equally spaced indices, whatever the distance, the tree is balanced to
/// within one level; with random indices it is about as unbalanced as a treap with random
/// priorities.
#[must_use]
pub const fn index_above(one: u64, other: u64) -> bool {
    let differ = one ^ other;
    one & differ & differ.wrapping_neg() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reversed_bits_decide_which_page_stands_above() {
        let numbers =
            (0..64).chain((1..64).map(|n| n << 20 | 5)).chain([u64::MAX, 1 << 63, 1 << 62]);
        for one in numbers.clone() {
            for other in numbers.clone() {
                let above = one.reverse_bits() > other.reverse_bits();
                assert_eq!(index_above(one, other), above, "{one:#x} and {other:#x}");
            }
        }
    }
}
