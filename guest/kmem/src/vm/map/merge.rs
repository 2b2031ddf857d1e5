//! Merging two entries into one.

use vmkern_abi::addr::KPtr;
use vmkern_abi::layout::{EntryFlags, VmMap, VmMapEntry};

use super::{Map, header};
use crate::machine::Machine;

impl<M: Machine> Map<M> {
    /// Merges `entry` with each neighbour that continues it and is equal in everything else
    /// (`vm_map_simplify_entry`). `entry` survives, but may move: returns where it is. Each
    /// neighbour that is merged drops its reference to the object, so the object must be unlocked.
    /// A submap or an entry in transition is not merged.
    pub fn vm_map_simplify_entry(
        &self,
        map: KPtr<VmMap>,
        mut entry: KPtr<VmMapEntry>,
    ) -> KPtr<VmMapEntry> {
        let mut e = self.get(entry);
        if e.eflags.get().intersects(EntryFlags::IN_TRANSITION | EntryFlags::IS_SUB_MAP) {
            return entry;
        }
        let prev = e.prev.get();
        if prev != header(map) && mergeable(self.get(prev), e) {
            let p = self.get(prev);
            self.map_nodes(self.get(map)).index().join(e.start.get(), entry);
            e.start.set(p.start.get());
            e.offset.set(p.offset.get());
            entry = self.map_merged_away(map, prev, entry);
            e = self.get(entry);
        }
        let next = e.next.get();
        if next != header(map) && mergeable(e, self.get(next)) {
            let n = self.get(next);
            self.map_nodes(self.get(map)).index().join(n.start.get(), entry);
            e.end.set(n.end.get());
            entry = self.map_merged_away(map, next, entry);
        }
        entry
    }

    /// Disposes of `entry`, whose range now belongs to its neighbour `kept`. Returns where `kept`
    /// is then.
    fn map_merged_away(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
        kept: KPtr<VmMapEntry>,
    ) -> KPtr<VmMapEntry> {
        let (m, e) = (self.get(map), self.get(entry));
        self.map_list_remove(m, entry);
        if self.map_may_lack_pages(e) {
            self.map_credit(m);
        }
        self.vm_object_deallocate(e.object.get());
        self.vm_map_entry_dispose(m, entry, kept)
    }
}

/// Whether `low` and `high`, neighbours in the list, are one range in two pieces.
fn mergeable(low: &VmMapEntry, high: &VmMapEntry) -> bool {
    low.end.get() == high.start.get()
        && low.object.get() == high.object.get()
        && (low.object.get().is_null() || low.offset.get() + low.len() == high.offset.get())
        && low.eflags.get() == high.eflags.get()
        && low.protection.get() == high.protection.get()
        && low.max_protection.get() == high.max_protection.get()
        && low.inheritance.get() == high.inheritance.get()
        && low.wired_count.get() == high.wired_count.get()
}
