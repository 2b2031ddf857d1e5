//! A node of the B+-tree over a map's entries.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::VmMapEntry;
use crate::addr::{GuestVirt, KPtr};
use crate::field::Field;

/// A node of a map's index: up to [`MapNode::FANOUT`] slots in three arrays, each of which fills two cache lines.
///
/// | | key | gap | target |
/// |---|---|---|---|
/// | leaf (`level` 0) | the entry's start | free bytes from the entry's end to the next entry or the map's end | the entry |
/// | inner node | lowest key in the child | largest gap in the child (FreeBSD's `max_free`) | the child |
///
/// The map's header is the first slot of the first leaf, as an entry of no length at `min_offset`: its gap is the free
/// range below the first entry. Keys ascend strictly, save that an entry may start at `min_offset` too. Slots past
/// `count` hold [`MapNode::NO_KEY`] and gap 0, so that a search may look at all slots. Every node but the root has at
/// least [`MapNode::MIN_FILL`] slots, and an inner root at least 2.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct MapNode {
    /// Slots in use.
    pub count: Field<u32>,
    /// Height above the leaves.
    pub level: Field<u32>,
    /// Keys.
    pub keys: [Field<GuestVirt>; MapNode::FANOUT],
    /// The next node of a chain of unused nodes; null in the tree.
    pub spare_next: Field<KPtr<MapNode>>,
    /// Gaps in bytes.
    pub gaps: [Field<u64>; MapNode::FANOUT],
    #[doc(hidden)]
    pub _pad: Field<u64>,
    /// Addresses of the entries or children.
    pub targets: [Field<GuestVirt>; MapNode::FANOUT],
}

impl MapNode {
    /// Most slots of a node.
    pub const FANOUT: usize = 15;
    /// Fewest slots of a node that is not the root.
    pub const MIN_FILL: usize = 7;
    /// Most levels of a tree: pages of the address space bound the entries, and every level holds
    /// [`MapNode::MIN_FILL`] times as many as the one above.
    pub const MAX_HEIGHT: usize = 19;
    /// Key of an unused slot.
    pub const NO_KEY: GuestVirt = GuestVirt::new(u64::MAX);

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

    /// The largest gap in bytes.
    #[must_use]
    #[inline]
    pub fn max_gap(&self) -> u64 {
        self.gaps.iter().map(Field::get).fold(0, u64::max)
    }
}

const _: () = assert!(size_of::<MapNode>() == 384);
const _: () = assert!(core::mem::offset_of!(MapNode, gaps) == 136);
const _: () = assert!(core::mem::offset_of!(MapNode, targets) == 264);
