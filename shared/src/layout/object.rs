//! `vm_object` and its page index.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::Mtx;
use crate::field::Field;
use crate::flags_word;

/// Type of an object (`OBJT_*`), with FreeBSD's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ObjectType {
    /// Anonymous memory without a pager yet.
    Default = 0,
    /// Anonymous memory with swap space.
    Swap = 1,
    /// Unmanaged physical pages.
    Phys = 4,
    /// About to disappear.
    Dead = 5,
}

impl ObjectType {
    /// The type with this number.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::Default,
            1 => Self::Swap,
            4 => Self::Phys,
            5 => Self::Dead,
            _ => return None,
        })
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

/// What holds the pages of map entries. Guarded by its lock.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmObject {
    /// The object's mutex.
    pub lock: Mtx,
    /// References: one for its creation and one for each entry.
    pub ref_count: Field<u32>,
    /// An [`ObjectType`].
    pub kind: Field<u32>,
    /// Flags.
    pub flags: Field<ObjectFlags>,
    /// Pages that it can hold.
    pub size: Field<u64>,
    /// Pages that it holds.
    pub resident_page_count: Field<u64>,
    /// Changes with every page that comes or goes.
    pub generation: Field<u64>,
    /// Page number of the root [`IndexNode`], or 0 when there is none.
    pub root: Field<u32>,
    /// Pages that the nodes of the index take.
    pub index_pages: Field<u32>,
    /// Levels of nodes in the index, 1 to [`INDEX_LEVELS`]: it holds page indices below `2^(INDEX_SHIFT * levels)`.
    pub index_levels: Field<u32>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
}

const _: () = assert!(size_of::<VmObject>() == 56);

/// Base-2 logarithm of the slots of an [`IndexNode`].
pub const INDEX_SHIFT: u32 = 10;
/// Most levels of an index, which kernel_object and kmem_object have: root, middle, leaf. The index of a small object
/// is a leaf alone.
pub const INDEX_LEVELS: u32 = 3;

/// A node of an object's index: one whole page. A leaf's slots hold the page numbers of resident pages, a higher
/// node's those of nodes below; 0 is nothing. Slot `(pindex >> (INDEX_SHIFT * level)) % 1024` is the way to `pindex`,
/// with level 0 for leaves. [`super::VmPage::private`] of the node's page counts its slots in use; for a leaf, its pins as well.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct IndexNode {
    /// Page numbers.
    pub slots: [Field<u32>; 1 << INDEX_SHIFT],
}

const _: () = assert!(size_of::<IndexNode>() == 4096);
