//! Inserting an entry into a map.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, ObjectFlags, VmMap, VmMapEntry, VmObject};

use super::{EntrySpec, Lookup, Map, header};
use crate::machine::Machine;
use crate::vm::object::Coalesced;

/// Sets every field of the new entry `e` except its links.
fn fill(
    e: &VmMapEntry,
    spec: &EntrySpec,
    (start, end): (GuestVirt, GuestVirt),
    (object, offset): (KPtr<VmObject>, u64),
) {
    e.start.set(start);
    e.end.set(end);
    e.object.set(object);
    e.offset.set(offset);
    e.eflags.set(spec.eflags());
    e.wired_count.set(0);
    e.protection.set(spec.protection);
    e.max_protection.set(spec.max_protection);
    e.inheritance.set(VmMapEntry::INHERIT_DEFAULT);
    e.deleter.set(0);
}

impl<M: Machine> Map<M> {
    /// Inserts an entry for `[start, end)`, page aligned, into `map` (`vm_map_insert`).
    ///
    /// A range without an object that continues the entry before it, equal in kind and not wired,
    /// extends that entry instead. The entry takes over the caller's reference to the object,
    /// unless this fails.
    ///
    /// # Errors
    /// [`KernReturn::InvalidAddress`] when the range is empty or not inside the map,
    /// [`KernReturn::NoSpace`] when part of it is taken, [`KernReturn::ResourceShortage`] when
    /// there is no page for an entry, which cannot happen after [`Map::vm_map_findspace`]. The map
    /// is unchanged.
    pub fn vm_map_insert(
        &self,
        map: KPtr<VmMap>,
        spec: &EntrySpec,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<(), KernReturn> {
        // 1. The place, and everything that can fail, before anything changes.
        let m = self.get(map);
        let before = self.map_free_after(map, start, end)?;
        let eflags = spec.eflags();
        if eflags.contains(EntryFlags::NOFAULT) && !spec.object.is_null() {
            self.panic(format_args!("vm_map_insert: paradoxical MAP_NOFAULT request"));
        }
        self.map_reserve(m, 1).map_err(|_| KernReturn::ResourceShortage)?;

        // 2. A range without an object may be more of the entry before it, or of that one's object.
        let (mut object, mut offset) = (spec.object, spec.offset);
        if !object.is_null() {
            self.map_note_second_mapping(object);
        } else if before != header(map) && self.map_continues(self.get(before), eflags, start, end)
        {
            let b = self.get(before);
            if b.inheritance.get() == VmMapEntry::INHERIT_DEFAULT
                && b.protection.get() == spec.protection
                && b.max_protection.get() == spec.max_protection
            {
                self.map_extend(map, before, (start, end));
                return Ok(());
            }
            object = b.object.get();
            offset = b.offset.get() + b.len();
            self.vm_object_reference(object);
        }

        // 3. An entry of its own.
        let entry = self.vm_map_entry_create(m);
        fill(self.get(entry), spec, (start, end), (object, offset));
        self.map_list_insert(m, before, entry);
        self.map_nodes(m).index().link(start, end, entry);
        if self.map_may_lack_pages(self.get(entry)) {
            self.map_plain_enter(m, end.since(start));
        }
        m.size.update_locked(|size| size + end.since(start));
        Ok(())
    }

    /// The entry, or the header, behind which `[start, end)` lies free. Errors as for
    /// [`Map::vm_map_insert`].
    fn map_free_after(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
    ) -> Result<KPtr<VmMapEntry>, KernReturn> {
        let m = self.get(map);
        debug_assert!(start.is_page_aligned() && end.is_page_aligned());
        if start < m.min_offset() || end > m.max_offset() || start >= end {
            return Err(KernReturn::InvalidAddress);
        }
        let Lookup::After(before) = self.vm_map_lookup_entry(map, start) else {
            return Err(KernReturn::NoSpace);
        };
        let next = self.get(before).next.get();
        if next != header(map) && self.get(next).start.get() < end {
            return Err(KernReturn::NoSpace);
        }
        Ok(before)
    }

    /// Makes `entry`, which ends at `start`, end at `end` instead. It may then merge with the next
    /// entry. The entry that was reserved for the range stays as a credit.
    fn map_extend(
        &self,
        map: KPtr<VmMap>,
        entry: KPtr<VmMapEntry>,
        (start, end): (GuestVirt, GuestVirt),
    ) {
        let (m, b) = (self.get(map), self.get(entry));
        m.size.update_locked(|size| size + end.since(start));
        b.end.set(end);
        self.map_nodes(m).index().set_end(b.start.get(), end);
        self.map_credit(m);
        self.map_plain_enter(m, end.since(start));
        self.vm_map_simplify_entry(map, entry);
    }

    /// Whether the range `[start, end)` without an object, with flags `eflags`, can extend `entry`.
    /// If `entry` has an object, the object covers the range too from now on.
    fn map_continues(
        &self,
        entry: &VmMapEntry,
        eflags: EntryFlags,
        start: GuestVirt,
        end: GuestVirt,
    ) -> bool {
        entry.eflags.get() == eflags
            && entry.end.get() == start
            && entry.wired_count.get() == 0
            && self.vm_object_coalesce(
                entry.object.get(),
                entry.offset.get(),
                entry.len(),
                end.since(start),
            ) == Coalesced::Yes
    }

    /// Records that an object with a second reference may be mapped twice from now on. The kernel's
    /// own objects never count as mapped once.
    fn map_note_second_mapping(&self, object: KPtr<VmObject>) {
        if self.is_kernels(object) {
            return;
        }
        let o = self.get(object);
        let _locked = self.vm_object_lock(object);
        if o.ref_count.get() > 1 {
            o.flags.update_locked(|flags| flags - ObjectFlags::ONEMAPPING);
        }
    }

    /// Inserts `entry` into the list after `before`, and counts it.
    pub(super) fn map_list_insert(
        &self,
        map: &VmMap,
        before: KPtr<VmMapEntry>,
        entry: KPtr<VmMapEntry>,
    ) {
        self.map_entries().insert_after(before, entry);
        map.nentries.inc();
    }

    /// Removes `entry` from the list and from the count.
    pub(super) fn map_list_remove(&self, map: &VmMap, entry: KPtr<VmMapEntry>) {
        self.map_entries().remove(entry);
        map.nentries.dec();
    }
}
