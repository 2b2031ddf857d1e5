//! Cutting entries in two.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT};
use vmkern_abi::layout::{EntryFlags, VmMap, VmMapEntry};

use super::Map;
use crate::machine::Machine;
use crate::vm::page::Shortage;

impl<M: Machine> Map<M> {
    /// Makes `entry` start at `va`, if it starts below: the part below becomes an entry of its own
    /// (`vm_map_clip_start`). First merges `entry` with its neighbours, as FreeBSD does, by which
    /// it may move: returns where it is.
    #[must_use = "the entry may have moved"]
    pub(super) fn vm_map_clip_start(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
        va: GuestVirt,
    ) -> KPtr<VmMapEntry> {
        if va <= self.get(entry).start.get() {
            return entry;
        }
        let entry = self.vm_map_simplify_entry(map, entry);
        let (m, e) = (self.get(map), self.get(entry));
        self.map_object_for_halves(m, e);
        let low = self.map_entry_copy(m, e);
        self.map_list_insert(m, e.prev.get(), low);
        self.map_nodes(m).index().split(va, low, entry);
        self.get(low).end.set(va);
        e.offset.update_locked(|offset| offset + va.since(e.start.get()));
        e.start.set(va);
        entry
    }

    /// Makes `entry` end at `va`, if it ends above: the part above becomes an entry of its own
    /// (`vm_map_clip_end`).
    pub(super) fn vm_map_clip_end(&self, map: KPtr<VmMap>, entry: KPtr<VmMapEntry>, va: GuestVirt) {
        let (m, e) = (self.get(map), self.get(entry));
        if va >= e.end.get() {
            return;
        }
        self.map_object_for_halves(m, e);
        let high = self.map_entry_copy(m, e);
        self.map_list_insert(m, entry, high);
        self.map_nodes(m).index().split(va, entry, high);
        let h = self.get(high);
        h.start.set(va);
        h.offset.update_locked(|offset| offset + va.since(e.start.get()));
        e.end.set(va);
    }

    /// Gives an object to an entry of a pageable map that is about to be cut, if it has none, so
    /// that its parts can merge again. If there is no page for an object, the entry stays without
    /// one, like the entries of system maps: a free must not wait for memory.
    fn map_object_for_halves(&self, map: &VmMap, entry: &VmMapEntry) {
        if !map.system_map.is_set() && entry.object.get().is_null() {
            let _ = self.map_object_make(entry);
        }
    }

    /// Gives `entry`, which has no object, an anonymous object of its length.
    ///
    /// # Errors
    /// [`Shortage`] when there is no page for it.
    pub(super) fn map_object_make(&self, entry: &VmMapEntry) -> Result<(), Shortage> {
        entry.object.set(self.vm_object_allocate(entry.len() >> PAGE_SHIFT)?);
        entry.offset.set(0);
        Ok(())
    }

    /// Whether freeing a part of `entry` may free no page: it has no object, or an anonymous one.
    pub(super) fn map_may_lack_pages(&self, entry: &VmMapEntry) -> bool {
        let object = entry.object.get();
        object.is_null() || !self.is_kernels(object)
    }

    /// A copy of `entry` with a reference of its own to the object, not in the list yet.
    fn map_entry_copy(&self, map: &VmMap, entry: &VmMapEntry) -> KPtr<VmMapEntry> {
        let copy = self.vm_map_entry_create(map);
        let c = self.get(copy);
        c.start.set(entry.start.get());
        c.end.set(entry.end.get());
        c.object.set(entry.object.get());
        c.offset.set(entry.offset.get());
        c.eflags.set(entry.eflags.get());
        c.wired_count.set(entry.wired_count.get());
        c.protection.set(entry.protection.get());
        c.max_protection.set(entry.max_protection.get());
        c.inheritance.set(entry.inheritance.get());
        c.deleter.set(0);
        if !entry.eflags.get().contains(EntryFlags::IS_SUB_MAP) {
            if self.map_may_lack_pages(entry) {
                self.map_debit(map);
            }
            self.vm_object_reference(entry.object.get());
        }
        copy
    }
}
