//! The reserve of a map: entries and index nodes that it owns but does not use.
//!
//! A change of a map takes what it needs from here, and what it no longer needs goes back here;
//! both lie in the map's pools ([`super::pool`]). Three rules make sure that the reserve is never
//! empty when something must be taken:
//!
//! 1. A change that adds an entry calls `map_reserve` first, and fails cleanly when that fails.
//! 2. Nodes: tree and reserve together have [`max_nodes`] for all entries of map and reserve. So
//!    there is a node for every shape that a tree of these entries can take, whatever the order of
//!    changes.
//! 3. Entries: freeing a range needs two cuts at most. [`FLOOR`] entries are reserved for them, and
//!    replaced after the change; if the range had pages, these are free by then. Ranges without an
//!    object have no pages: there every merge of two entries keeps one in reserve (`credits`),
//!    until a cut needs it. Entries plus credits are never fewer than the ranges that were
//!    allocated, so each of them can be freed alone.
//!
//! Whenever the map's lock is released, the reserve is brought to just these rules (`map_settle`):
//! then the pages of a map follow from its entries and credits alone, whatever its history, and a
//! map that has been emptied has no more pages than a new one. A map of few entries lives in its
//! home and takes no page at all.

use vmkern_abi::addr::{KPtr, PAGE_SHIFT};
use vmkern_abi::layout::{MapNode, VmMap, VmMapEntry};

use super::Map;
use super::index::{Index, NodeStore, Relocation, max_nodes};
use super::pool::PoolItem;
use crate::kern::queue::{PointerSList, pointer_links};
use crate::machine::Machine;
use crate::vm::page::Shortage;

/// Entries that a map keeps in reserve for frees: two cuts, and a few more for shortages.
pub const FLOOR: u64 = 8;

pointer_links! {
    /// The nodes that have left the tree.
    Unlinked: MapNode { next: spare_next }
}

/// The nodes of a map's index, in the direct map, with the map's reserve behind them.
#[derive(Debug)]
pub(super) struct MapNodes<'a, M: Machine> {
    maps: &'a Map<M>,
    map: &'a VmMap,
}

impl<M: Machine> MapNodes<'_, M> {
    /// The index.
    pub fn index(&self) -> Index<'_, Self> {
        Index::new(&self.map.index, self, self.map.min_offset(), self.map.max_offset())
    }

    /// The nodes that have left the tree, and not yet the pool.
    fn unlinked(&self) -> PointerSList<'_, M, Unlinked> {
        self.maps.slist(&self.map.reserve.unlinked)
    }

    /// Removes `node` from the list of nodes that have left the tree, if it is there.
    fn unchain(&self, node: KPtr<MapNode>) -> bool {
        let there = self.unlinked().remove_if_there(node);
        if there {
            self.maps.get(node).spare_next.set(KPtr::NULL);
        }
        there
    }
}

impl<M: Machine> NodeStore for MapNodes<'_, M> {
    #[inline]
    fn node(&self, node: KPtr<MapNode>) -> &MapNode {
        self.maps.get(node)
    }

    fn take(&self) -> KPtr<MapNode> {
        let node: KPtr<MapNode> =
            self.maps.pool_take(self.map).unwrap_or_else(|| self.maps.map_exhausted());
        self.maps.get(node).spare_next.set(KPtr::NULL);
        node
    }

    fn give(&self, node: KPtr<MapNode>) {
        self.unlinked().insert_head(node);
    }

    fn compact(&self) -> Option<Relocation> {
        while let Some(gone) = self.unlinked().first() {
            let last = self.maps.pool_last(self.map);
            if self.unchain(last) {
                self.maps.pool_drop_last::<MapNode>(self.map);
                continue;
            }
            self.unlinked().remove_head();
            return Some(Relocation { from: self.maps.pool_give(self.map, gone), to: gone });
        }
        None
    }
}

impl<M: Machine> Map<M> {
    /// The index of `map` with its nodes.
    #[inline]
    pub(super) fn map_nodes<'a>(&'a self, map: &'a VmMap) -> MapNodes<'a, M> {
        MapNodes { maps: self, map }
    }

    /// Makes sure that `count` entries can be added to `map`, beyond what it keeps in reserve
    /// anyway.
    ///
    /// # Errors
    /// [`Shortage`] when a page was needed and none was available.
    pub(super) fn map_reserve(&self, map: &VmMap, count: u64) -> Result<(), Shortage> {
        let reserve = &map.reserve;
        let needed = entries_needed(map) + count;
        while reserve.entries.capacity.get() < needed {
            let nodes = max_nodes(reserve.entries.capacity.get() + VmMapEntry::PER_PAGE + 1);
            while reserve.nodes.capacity.get() < nodes {
                self.pool_grow::<MapNode>(map)?;
                self.page_point();
            }
            self.pool_grow::<VmMapEntry>(map)?;
            self.page_point();
        }
        Ok(())
    }

    /// Pages that [`Map::map_reserve`] takes for `count` entries.
    pub(in crate::vm) fn map_reserve_pages(&self, map: &VmMap, count: u64) -> u64 {
        let needed = entries_needed(map) + count;
        let (mut entries, mut nodes) =
            (map.reserve.entries.capacity.get(), map.reserve.nodes.capacity.get());
        let mut pages = 0;
        while entries < needed {
            entries += VmMapEntry::PER_PAGE;
            let more = (max_nodes(entries + 1).saturating_sub(nodes)).div_ceil(MapNode::PER_PAGE);
            nodes += more * MapNode::PER_PAGE;
            pages += 1 + more;
        }
        pages
    }

    /// Brings the reserve of `map` to its rules, before the lock is released: replaces what cuts
    /// took, and frees what is not needed.
    pub(super) fn map_settle(&self, map: &VmMap) {
        // When there is no page, the rest of the floor is used until there is one.
        let _ = self.map_reserve(map, 0);
        self.pool_shrink::<VmMapEntry>(map, entries_needed(map));
        self.pool_shrink::<MapNode>(map, max_nodes(map.reserve.entries.capacity.get() + 1));
    }

    /// An entry for `map` (`vm_map_entry_create`), with arbitrary contents.
    pub(super) fn vm_map_entry_create(&self, map: &VmMap) -> KPtr<VmMapEntry> {
        if map.reserve.entries.used.get() == map.reserve.entries.capacity.get()
            && self.map_reserve(map, 0).is_err()
        {
            self.map_exhausted();
        }
        self.pool_take(map).unwrap_or_else(|| self.map_exhausted())
    }

    /// Takes an entry that has left list and index of `map` (`vm_map_entry_dispose`). Another entry
    /// may move to its place: returns where `kept`, an entry of the map or its header, is
    /// afterwards.
    #[must_use = "the entry may have moved"]
    pub(super) fn vm_map_entry_dispose(
        &self,
        map: &VmMap,
        entry: KPtr<VmMapEntry>,
        kept: KPtr<VmMapEntry>,
    ) -> KPtr<VmMapEntry> {
        let moved = self.pool_give(map, entry);
        if moved == entry {
            return kept;
        }
        let e = self.get(entry);
        self.map_entries().moved(entry);
        self.map_nodes(map).index().set_entry(e.start.get(), entry);
        if kept == moved { entry } else { kept }
    }

    /// Records that two entries without an object were merged: the entry saved stays in reserve.
    pub(super) fn map_credit(&self, map: &VmMap) {
        map.reserve.credits.inc();
    }

    /// Records that an entry without an object was cut in two.
    pub(super) fn map_debit(&self, map: &VmMap) {
        map.reserve.credits.update_locked(|credits| credits.saturating_sub(1));
    }

    /// Records that a range of `length` bytes without an object was entered.
    pub(super) fn map_plain_enter(&self, map: &VmMap, length: u64) {
        map.reserve.plain_pages.update_locked(|pages| pages + (length >> PAGE_SHIFT));
    }

    /// Records that a range of `length` bytes without an object has left, or has become a submap.
    /// Credits of ranges that left together with others end here: at most as many ranges remain as
    /// pages.
    pub(crate) fn map_plain_leave(&self, map: &VmMap, length: u64) {
        let reserve = &map.reserve;
        reserve.plain_pages.update_locked(|pages| pages.saturating_sub(length >> PAGE_SHIFT));
        reserve.credits.update_locked(|credits| credits.min(reserve.plain_pages.get()));
    }

    #[cold]
    fn map_exhausted(&self) -> ! {
        self.panic(format_args!("vm_map_entry_create: kernel resources exhausted"))
    }
}

/// The entries that `map` must own: those in use, the floor, and one for each cut that could undo a
/// merge. Each range that is freed alone removes at least a page and adds at most an entry, so the
/// pages bound those cuts too.
fn entries_needed(map: &VmMap) -> u64 {
    let reserve = &map.reserve;
    reserve.entries.used.get() + FLOOR + reserve.credits.get().min(reserve.plain_pages.get() / 2)
}
