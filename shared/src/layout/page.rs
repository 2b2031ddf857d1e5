//! `vm_page` and the physical memory allocator's structures.

use bitflags::bitflags;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::object::VmObject;
use crate::addr::{GuestPhys, KPtr};
use crate::field::Field;
use crate::flags_word;

bitflags! {
    /// Flags of a page (`PG_*`); FreeBSD's values where FreeBSD has the flag.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PageFlags: u16 {
        /// Free, and in a CPU's cache (`PG_PCPU_CACHE` of later FreeBSD; in 2008 the bit means
        /// something else, which does not apply to any page here).
        const PCPU_CACHE = 0x0001;
        /// Handed out. FreeBSD's `PG_FREE` inverted, so that a zero word means free.
        const ALLOCATED = 0x0002;
        /// Freed as a zeroed page, or allocated zeroed because a zeroed page was requested.
        const ZERO = 0x0040;
        /// On no paging queue, without pv entries.
        const UNMANAGED = 0x0800;
        /// In the balloon: handed out to the driver of the virtio balloon, which alone sets it. Not
        /// one of FreeBSD's.
        const BALLOON = 0x1000;
        /// Holds the home of a map that requests can name by its address. Not one of FreeBSD's.
        const MAP_HOME = 0x8000;
        /// Heads a block that the host has seized ([`crate::seize`]). Not one of FreeBSD's.
        const SEIZED = 0x2000;
        /// Has been handed out since boot. A page without this flag is as the boot left it.
        const TOUCHED = 0x4000;
    }
}

bitflags! {
    /// Flags of a page that its object's lock guards (`VPO_*`), with FreeBSD's values.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct PageOflags: u16 {
        /// An operation on it is in progress.
        const BUSY = 0x0001;
        /// A thread waits for the end of that operation.
        const WANTED = 0x0002;
    }
}

flags_word!(PageFlags, u16);
flags_word!(PageOflags, u16);

/// All of a page is valid (`VM_PAGE_BITS_ALL`).
pub const VM_PAGE_BITS_ALL: u8 = 0xff;

/// On the inactive queue (`VmPage::queue`).
pub const PQ_INACTIVE: u8 = 1;
/// On the active queue (`VmPage::queue`).
pub const PQ_ACTIVE: u8 = 2;

/// One page of physical memory, number `first_page + index in the array`.
///
/// All zero is a free page that is not the head of a block in a free list: an inner page of such a
/// block, or one of its segment's untouched rest ([`VmPhysSeg::fresh`]). Guarded by the object's
/// lock (`pindex`, `oflags`, `valid`, `dirty`, `left`, `right`, `parent`), the page-queue lock
/// (`wire_count`, `hold_count`, `queue`, `act_count`) and, while free, the free-queue lock, or the
/// lock of the CPU's cache that it is in.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmPage {
    /// The object it belongs to, or null.
    pub object: Field<KPtr<VmObject>>,
    /// Its index there.
    pub pindex: Field<u64>,
    /// Page number of the next one in its free list, cache or paging queue, or 0.
    pub next: Field<u32>,
    /// Page number of the one before.
    pub prev: Field<u32>,
    /// How often it is wired.
    pub wire_count: Field<u32>,
    /// Short-term holds.
    pub hold_count: Field<u32>,
    /// A count for the owner's use: valid entries of a page-table page; for the head of a seized
    /// block, its order plus 1.
    pub private: Field<u32>,
    /// Flags.
    pub flags: Field<PageFlags>,
    /// Flags that the object's lock guards.
    pub oflags: Field<PageOflags>,
    /// Number of its segment; meaningful for heads of free blocks, in caches, and for pages handed
    /// out.
    pub segind: Field<u16>,
    /// Shared-busy count.
    pub busy: Field<u16>,
    /// Order of the free block that it heads plus 1, or 0 when it heads none.
    pub block: Field<u8>,
    /// Paging queue: NONE 0, INACTIVE 1, ACTIVE 2, HOLD 3.
    pub queue: Field<u8>,
    /// How active it is.
    pub act_count: Field<u8>,
    /// Valid 512-byte chunks.
    pub valid: Field<u8>,
    /// Dirty 512-byte chunks.
    pub dirty: Field<u8>,
    #[doc(hidden)]
    pub _pad: [Field<u8>; 3],
    /// Page number of the page below it in its object's index that has the lower indices, or 0.
    pub left: Field<u32>,
    /// Page number of the page below it in its object's index that has the higher indices, or 0.
    pub right: Field<u32>,
    /// Page number of the page above it in its object's index, or 0 for the root.
    pub parent: Field<u32>,
}

const _: () = assert!(size_of::<VmPage>() == 64);

/// Orders of free blocks, 0 to 12: 4 KiB to 16 MiB (`VM_NFREEORDER`).
pub const VM_NFREEORDER: usize = 13;
/// Free lists, in the order of search (`VM_NFREELIST`).
pub const VM_NFREELIST: usize = 2;
/// Free list of memory from [`ISADMA_END`] up.
pub const VM_FREELIST_DEFAULT: usize = 0;
/// Free list of memory below [`ISADMA_END`].
pub const VM_FREELIST_ISADMA: usize = 1;
/// End of the memory that ISA DMA reaches.
pub const ISADMA_END: GuestPhys = GuestPhys::new(16 << 20);

/// A contiguous range of managed memory (`struct vm_phys_seg`): pages `[start, end)` by number.
///
/// Pages from `fresh` on have never been on a free list nor handed out; they are free. Pages from
/// `end` to `limit` are seized ([`crate::seize`]), and were fresh before.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmPhysSeg {
    /// First page.
    pub start: Field<u32>,
    /// First page past it. The host may move it, down to `fresh`.
    pub end: Field<u32>,
    /// First page of the rest that was never used.
    pub fresh: Field<u32>,
    /// Its free list.
    pub freelist: Field<u32>,
    /// First page past the segment when nothing is seized. Never changes.
    pub limit: Field<u32>,
    #[doc(hidden)]
    pub _pad: [Field<u32>; 3],
}

const _: () = assert!(size_of::<VmPhysSeg>() == 32);

/// The blocks of one order in one free list (`struct vm_freelist`), or the pages of a queue or
/// cache.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct VmFreeList {
    /// Page number of the first block's head, or 0.
    pub head: Field<u32>,
    /// Page number of the last block's head, or 0.
    pub tail: Field<u32>,
    /// Blocks.
    pub count: Field<u64>,
}

const _: () = assert!(size_of::<VmFreeList>() == 16);
