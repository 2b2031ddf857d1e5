//! A node of the B+-tree over a map's entries.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::VmMapEntry;
use crate::addr::{GuestVirt, KPtr, PAGE_SHIFT};
use crate::field::Field;
use crate::kva::{VM_MAX_KERNEL_ADDRESS, VM_MIN_KERNEL_ADDRESS};

/// A node of a map's index: up to [`MapNode::FANOUT`] slots in three arrays, each of which begins
/// on a cache line of its own. Addresses are counted in pages from the map's `min_offset`, lengths
/// in pages.
///
/// | | key | gap | target |
/// |---|---|---|---|
/// | leaf (`level` 0) | the entry's start | free pages behind the entry | the entry |
/// | inner node | lowest key in the child | largest gap in the child | the child |
///
/// The pages behind an entry reach to the next entry or the map's end. An inner node's gap is
/// FreeBSD's `max_free`.
///
/// The map's header is the first slot of the first leaf, as an entry of no length at `min_offset`:
/// its gap is the free range below the first entry. Keys ascend strictly, except that an entry may
/// start at `min_offset` too. Slots past `count` hold [`MapNode::NO_KEY`] and gap 0, so a search
/// may read all slots. Every node but the root has at least [`MapNode::MIN_FILL`] slots, and an
/// inner root at least 2.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapNode {
    /// Slots in use.
    pub count: Field<u16>,
    /// Height above the leaves.
    pub level: Field<u16>,
    /// Keys.
    pub keys: [Field<u32>; MapNode::FANOUT],
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Gaps.
    pub gaps: [Field<u32>; MapNode::FANOUT],
    /// The next node of [`super::MapReserve::unlinked`]; null in the tree.
    pub spare_next: Field<KPtr<MapNode>>,
    /// Addresses of the entries or children.
    pub targets: [Field<GuestVirt>; MapNode::FANOUT],
}

impl MapNode {
    /// Most slots of a node.
    pub const FANOUT: usize = 15;
    /// Fewest slots of a node that is not the root.
    pub const MIN_FILL: usize = 7;
    /// Key of an unused slot.
    pub const NO_KEY: u32 = u32::MAX;
    /// Most pages of a map, just under 16 TiB: every page has a key, and so does the map's end.
    pub const MAX_PAGES: u64 = Self::NO_KEY as u64 - 1;
    /// Most levels of a tree: there are no more entries than pages, and every level has at least
    /// [`MapNode::MIN_FILL`] times as many nodes as the one above; the second has at least 2.
    pub const MAX_HEIGHT: usize = 12;

    /// The child of slot `slot` of an inner node.
    #[must_use]
    #[inline]
    pub fn child(&self, slot: usize) -> KPtr<Self> {
        KPtr::new(self.targets[slot].get())
    }

    /// The entry of slot `slot` of a leaf.
    #[must_use]
    #[inline]
    pub fn entry(&self, slot: usize) -> KPtr<VmMapEntry> {
        KPtr::new(self.targets[slot].get())
    }

    /// The largest gap in pages.
    #[must_use]
    #[inline]
    pub fn max_gap_pages(&self) -> u32 {
        self.gaps.iter().map(Field::get).fold(0, u32::max)
    }

    /// The largest gap in bytes.
    #[must_use]
    pub fn max_gap(&self) -> u64 {
        u64::from(self.max_gap_pages()) << PAGE_SHIFT
    }
}

const _: () = assert!(size_of::<MapNode>() == 256);
const _: () = assert!(core::mem::offset_of!(MapNode, gaps) == 68);
const _: () = assert!(core::mem::offset_of!(MapNode, targets) == 136);
// The kernel's address space fits.
const _: () =
    assert!(VM_MAX_KERNEL_ADDRESS.since(VM_MIN_KERNEL_ADDRESS) >> PAGE_SHIFT < MapNode::MAX_PAGES);
