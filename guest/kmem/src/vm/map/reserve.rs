//! The reserve of a map: entries and index nodes that it owns and does not use now.
//!
//! A change of a map takes what it needs from here, and what it no longer needs goes back here. Three rules make sure
//! that the reserve is never empty when something must be taken:
//!
//! 1. A change that adds an entry calls `map_reserve` first, and fails cleanly when that fails.
//! 2. Nodes: tree and reserve together have [`max_nodes`] for all entries of map and reserve. So there is a node for
//!    every shape that a tree of these entries can take, whatever the order of changes.
//! 3. Entries: giving back a range needs two cuts at most. [`FLOOR`] entries are for that, and are brought in again
//!    after the change; where the range had pages, these are free by then. Ranges without an object have none: there
//!    every merge of two entries keeps one in reserve (`credits`), until a cut needs it. Entries plus credits are never
//!    fewer than the ranges that were allocated, so that each of them can be given back alone.

use vmkern_abi::addr::{KPtr, PAGE_SHIFT};
use vmkern_abi::field::Field;
use vmkern_abi::layout::{MapNode, VmMap, VmMapEntry};

use super::index::{Index, NodeStore, max_nodes};
use crate::machine::Machine;
use crate::vm::{Shortage, Vm};

/// Entries that a map keeps in reserve for giving back ranges: two cuts, and room for a few times of bad luck.
pub const FLOOR: u64 = 8;

/// Entries beyond the floor and the credits that a map keeps before it gives them back to the zone.
const SLACK: u64 = 32;

/// The nodes of a map's index, in the direct map, with the map's reserve behind them.
#[derive(Debug)]
pub(super) struct MapNodes<'a, M: Machine> {
    vm: &'a Vm<M>,
    map: &'a VmMap,
}

impl<M: Machine> MapNodes<'_, M> {
    /// The index.
    pub fn index(&self) -> Index<'_, Self> {
        Index::new(&self.map.index, self, self.map.min_offset(), self.map.max_offset())
    }
}

impl<M: Machine> NodeStore for MapNodes<'_, M> {
    #[inline]
    fn node(&self, node: KPtr<MapNode>) -> &MapNode {
        self.vm.get(node)
    }

    fn take(&self) -> KPtr<MapNode> {
        self.vm.reserve_take_node(self.map).unwrap_or_else(|| self.vm.map_exhausted())
    }

    fn give(&self, node: KPtr<MapNode>) {
        self.vm.reserve_give_node(self.map, node);
    }
}

impl<M: Machine> Vm<M> {
    /// The index of `map` with its nodes.
    #[inline]
    pub(super) fn map_nodes<'a>(&'a self, map: &'a VmMap) -> MapNodes<'a, M> {
        MapNodes { vm: self, map }
    }

    /// Makes sure that `count` entries can be added to `map`, beyond what it keeps in reserve anyway.
    ///
    /// # Errors
    /// [`Shortage`] when a page was needed and none was left.
    pub(super) fn map_reserve(&self, map: &VmMap, count: u64) -> Result<(), Shortage> {
        let reserve = &map.reserve;
        while reserve.entry_count.get() < FLOOR + count + reserve.credits.get() {
            // With this entry and the header.
            let items = map.nentries.get() + reserve.entry_count.get() + 2;
            while map.index.nodes.get() + reserve.node_count.get() < max_nodes(items) {
                let node = self.zone_alloc().ok_or(Shortage)?;
                self.reserve_give_node(map, node);
            }
            let entry = self.zone_alloc().ok_or(Shortage)?;
            self.reserve_give_entry(map, entry);
        }
        Ok(())
    }

    /// Gives back what `map` has in reserve beyond its needs, after entries went away.
    pub(super) fn map_reserve_trim(&self, map: &VmMap) {
        let reserve = &map.reserve;
        // Each range given back takes at least a page away and adds at most an entry.
        let pages = map.size.get() >> PAGE_SHIFT;
        let most_cuts = (pages - map.nentries.get()) / 2;
        reserve.credits.update(|credits| credits.min(most_cuts));
        let keep = FLOOR + reserve.credits.get();
        if reserve.entry_count.get() <= keep + SLACK {
            return;
        }
        while reserve.entry_count.get() > keep
            && let Some(entry) = self.reserve_take_entry(map)
        {
            self.zone_free(entry);
        }
        let needed = max_nodes(map.nentries.get() + reserve.entry_count.get() + 1);
        while map.index.nodes.get() + reserve.node_count.get() > needed
            && let Some(node) = self.reserve_take_node(map)
        {
            self.zone_free(node);
        }
    }

    /// Gives back all of a map's reserve.
    pub(super) fn map_reserve_release(&self, map: &VmMap) {
        while let Some(entry) = self.reserve_take_entry(map) {
            self.zone_free(entry);
        }
        while let Some(node) = self.reserve_take_node(map) {
            self.zone_free(node);
        }
    }

    /// An entry for `map` (`vm_map_entry_create`), with any contents.
    pub(super) fn vm_map_entry_create(&self, map: &VmMap) -> KPtr<VmMapEntry> {
        if map.reserve.entry_count.get() == 0 && self.map_reserve(map, 0).is_err() {
            self.map_exhausted();
        }
        self.reserve_take_entry(map).unwrap_or_else(|| self.map_exhausted())
    }

    /// Takes an entry that has left `map` (`vm_map_entry_dispose`).
    pub(super) fn vm_map_entry_dispose(&self, map: &VmMap, entry: KPtr<VmMapEntry>) {
        self.reserve_give_entry(map, entry);
    }

    /// Notes that two entries without an object became one: the entry saved stays in reserve.
    pub(super) fn map_credit(&self, map: &VmMap) {
        map.reserve.credits.update(|credits| credits + 1);
    }

    /// Notes that an entry without an object was cut in two.
    pub(super) fn map_debit(&self, map: &VmMap) {
        map.reserve.credits.update(|credits| credits.saturating_sub(1));
    }

    fn reserve_take_entry(&self, map: &VmMap) -> Option<KPtr<VmMapEntry>> {
        let reserve = &map.reserve;
        let entry = reserve.entries.get().non_null()?;
        reserve.entries.set(self.get(entry).next.get());
        reserve.entry_count.update(|n| n - 1);
        Some(entry)
    }

    fn reserve_give_entry(&self, map: &VmMap, entry: KPtr<VmMapEntry>) {
        push(&map.reserve.entries, &map.reserve.entry_count, &self.get(entry).next, entry);
    }

    fn reserve_take_node(&self, map: &VmMap) -> Option<KPtr<MapNode>> {
        let reserve = &map.reserve;
        let node = reserve.nodes.get().non_null()?;
        reserve.nodes.set(self.get(node).spare_next.get());
        self.get(node).spare_next.set(KPtr::NULL);
        reserve.node_count.update(|n| n - 1);
        Some(node)
    }

    fn reserve_give_node(&self, map: &VmMap, node: KPtr<MapNode>) {
        push(&map.reserve.nodes, &map.reserve.node_count, &self.get(node).spare_next, node);
    }

    #[cold]
    fn map_exhausted(&self) -> ! {
        self.panic(format_args!("vm_map_entry_create: kernel resources exhausted"))
    }
}

/// Puts `item`, whose link is `link`, before the first of a chain.
fn push<T>(first: &Field<KPtr<T>>, count: &Field<u64>, link: &Field<KPtr<T>>, item: KPtr<T>) {
    link.set(first.get());
    first.set(item);
    count.update(|n| n + 1);
}
