//! Removing ranges from a map.
//!
//! **Addresses and translations.** An address must not be allocated again while a CPU caches its
//! old translation. With several CPUs, a flush waits for all of them, and during that wait no other
//! thread could use the map. A system map is therefore unlocked during the wait, of which there is
//! one for a whole range. The entries stay, unwired and unmapped, and marked
//! ([`EntryFlags::DELETING`], [`VmMapEntry::deleter`]): their addresses are taken, but for all
//! other threads they are gone. Another deletion skips them, a fault finds nothing, and because
//! they are also in transition, no thread cuts or merges them. Interrupts stay deferred, so on one
//! CPU the deletion is as atomic as under the lock.
//!
//! **Holes.** Entries that others make in the holes of the range during the wait count as made
//! after the deletion, and stay. Those threads may find no room, or room at a higher address, while
//! in FreeBSD they would wait for the lock and find the freed addresses.

use vmkern_abi::addr::{GuestVirt, KPtr, PAGE_SHIFT};
use vmkern_abi::layout::{EntryFlags, ObjectFlags, VmMap, VmMapEntry};

use super::transition::Waiters;
use super::{Lookup, Map, header};
use crate::machine::Machine;
use crate::vm::object::LockedObject;
use crate::vm::pmap::TlbFlush;

/// The result of the first pass of a deletion.
struct Marked {
    /// The first entry that was marked.
    first: Option<KPtr<VmMapEntry>>,
    /// The translations that CPUs may still cache.
    flush: TlbFlush,
    /// Where to go on, and the entry there, on which another thread works.
    resume: Option<(GuestVirt, KPtr<VmMapEntry>)>,
}

impl<M: Machine> Map<M> {
    /// Removes everything in `[start, end)`, confined to the map, from it (`vm_map_remove`). Never
    /// fails. Takes the map's lock.
    pub fn vm_map_remove(&self, map: KPtr<VmMap>, start: GuestVirt, end: GuestVirt) {
        let _locked = self.vm_map_locked(map);
        let (start, end) = self.map_range_clamp(self.get(map), start, end);
        self.vm_map_delete(map, start, end);
    }

    /// Removes every entry of `[start, end)`, page aligned, from the map, and cuts those at its
    /// ends (`vm_map_delete`). Holes, and entries that another thread is deleting, do not matter.
    /// Never fails. Waits for entries in transition and, with several CPUs, for the flush of
    /// translations; the map is unlocked during these waits.
    ///
    /// An entry is removed in this order: its wiring, its translations (so that nothing can reach
    /// the pages any more), its pages, its reference to the object, and the entry itself. All
    /// entries of the range lose wiring and translations before one flush for all of them, and
    /// pages after it. An empty range inside an entry cuts that entry, as in FreeBSD.
    pub fn vm_map_delete(&self, map: KPtr<VmMap>, start: GuestVirt, end: GuestVirt) {
        let mut resume = Some(start);
        while let Some(start) = resume {
            let marked = self.map_delete_mark(map, start, end);
            resume = marked.resume.map(|(start, _)| start);
            match (marked.first, marked.resume) {
                (Some(first), _) => {
                    self.intr_window();
                    let first = self.map_flush(map, first, marked.flush);
                    self.intr_window();
                    self.map_delete_marked(map, first, end);
                }
                // The map was unlocked: the next turn starts at the address, not at the entry.
                (None, Some((_, entry))) => self.map_wait_for_transition(map, entry),
                (None, None) => {}
            }
        }
    }

    /// Removes wiring and translations of the entries of `[start, end)` and marks these entries as
    /// being deleted, up to the first on which another thread works.
    fn map_delete_mark(&self, map: KPtr<VmMap>, start: GuestVirt, end: GuestVirt) -> Marked {
        let mut marked = Marked { first: None, flush: TlbFlush::NONE, resume: None };
        let mut entry = self.map_delete_from(map, start);
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            self.page_point();
            if e.eflags.get().contains(EntryFlags::DELETING) {
                entry = e.next.get();
                continue;
            }
            if e.eflags.get().contains(EntryFlags::IN_TRANSITION) {
                marked.resume = Some((e.start.get(), entry));
                break;
            }
            self.vm_map_clip_end(map, entry, end);
            if e.wired_count.get() != 0 {
                self.vm_map_entry_unwire(e);
                e.wired_count.set(0);
            }
            let flush = self.pmap_remove(e.start.get(), e.end.get());
            marked.flush = marked.flush.merge(flush);
            e.eflags
                .update_locked(|eflags| eflags | EntryFlags::IN_TRANSITION | EntryFlags::DELETING);
            e.deleter.set(self.curtid() + 1);
            marked.first.get_or_insert(entry);
            entry = e.next.get();
            self.page_worked();
        }
        marked
    }

    /// Makes all CPUs flush the translations in `flush`, which belong to the marked entries from
    /// `first` on; a system map is unlocked in the meantime if other CPUs take part. Returns where
    /// the first of the entries is then.
    fn map_flush(
        &self,
        map: KPtr<VmMap>,
        first: KPtr<VmMapEntry>,
        flush: TlbFlush,
    ) -> KPtr<VmMapEntry> {
        if flush == TlbFlush::NONE
            || self.cnt().ncpu.get() == 1
            || !self.get(map).system_map.is_set()
        {
            self.tlb_flush(flush);
            return first;
        }
        let start = self.get(first).start.get();
        self.machine().intr_disable();
        // Others may change the rest of the map. The marked entries stay, but may move.
        self.vm_map_unlock(map);
        self.tlb_flush(flush);
        self.vm_map_lock(map);
        self.machine().intr_restore();
        // Entries move when others leave.
        match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(first) => first,
            Lookup::After(_) => {
                self.panic(format_args!("vm_map_delete: the entry at {start} is gone"))
            }
        }
    }

    /// Removes from the map the entries that the running thread has marked, from `first` on and
    /// below `end`. Entries that others have made or marked in the meantime stay.
    fn map_delete_marked(&self, map: KPtr<VmMap>, first: KPtr<VmMapEntry>, end: GuestVirt) {
        let (me, mut waiters) = (self.curtid() + 1, Waiters::None);
        let mut entry = first;
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            self.page_point();
            if e.deleter.get() == me {
                waiters = waiters.max(self.map_transition_end(e));
                e.deleter.set(0);
                entry = self.vm_map_entry_delete(map, entry);
            } else {
                entry = e.next.get();
            }
            self.page_worked();
        }
        if waiters == Waiters::Some {
            self.vm_map_wakeup(map);
        }
    }

    /// The first entry that ends above `start`, cut so that it does not begin below it, unless the
    /// whole entry is removed anyway.
    fn map_delete_from(&self, map: KPtr<VmMap>, start: GuestVirt) -> KPtr<VmMapEntry> {
        match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry)
                if self.get(entry).eflags.get().contains(EntryFlags::DELETING) =>
            {
                entry
            }
            Lookup::Inside(entry) => self.vm_map_clip_start(map, entry, start),
            Lookup::After(entry) => self.get(entry).next.get(),
        }
    }

    /// Removes `entry`, unwired and unmapped, from the map, and its pages from its object
    /// (`vm_map_entry_delete`). Returns the entry above it.
    ///
    /// Unlike FreeBSD's, it leaves the size of a kernel object alone when the range ends at the
    /// object's end.
    fn vm_map_entry_delete(&self, map: KPtr<VmMap>, entry: KPtr<VmMapEntry>) -> KPtr<VmMapEntry> {
        let (m, e) = (self.get(map), self.get(entry));
        let next = e.next.get();
        self.map_nodes(m).index().unlink(e.start.get());
        self.map_list_remove(m, entry);
        m.size.update_locked(|size| size - e.len());
        let is_submap = e.eflags.get().contains(EntryFlags::IS_SUB_MAP);
        if !is_submap && self.map_may_lack_pages(e) {
            self.map_plain_leave(m, e.len());
        }
        if let Some(object) = e.object.get().non_null().filter(|_| !is_submap) {
            let mut object = self.vm_object_lock(object);
            self.map_object_forget(&mut object, e.offset.get(), e.len());
            self.vm_object_deallocate_locked(object);
        }
        self.vm_map_entry_dispose(m, entry, next)
    }

    /// Frees the pages of `object` in `length` bytes from `offset` on, if no other mapping can need
    /// them.
    fn map_object_forget(&self, object: &mut LockedObject<'_, M>, offset: u64, length: u64) {
        let o = self.get(object.pointer());
        let is_kernels = self.is_kernels(object.pointer());
        if o.ref_count.get() != 1 && (is_kernels || o.flags.get().contains(ObjectFlags::ONEMAPPING))
        {
            let (first, end) = (offset >> PAGE_SHIFT, (offset + length) >> PAGE_SHIFT);
            self.vm_object_page_remove(object, first, end);
            if !is_kernels && end >= o.size.get() && first < o.size.get() {
                o.size.set(first);
            }
        }
    }
}
