//! Changing what a range of a map allows.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, Protection, VmMap, VmMapEntry};

use super::{Lookup, Map, header};
use crate::machine::Machine;
use crate::vm::pmap::TlbFlush;

impl<M: Machine> Map<M> {
    /// Makes `[start, end)`, page aligned and confined to the map, allow the accesses in
    /// `protection` and no others (`vm_map_protect` with `set_max` FALSE). Holes are passed over.
    /// Translations that allow more are removed or reduced, and flushed, before it returns; those
    /// that allow less are left to the next fault. Entries are cut at the ends of the range, and
    /// merged with neighbours that are equal.
    ///
    /// An empty range changes nothing, as in later versions of FreeBSD; in 2008 it cut an entry of
    /// no bytes out of the one around it.
    ///
    /// Takes the map's lock. Waits, with the map unlocked, for entries in transition, as later
    /// versions of FreeBSD do: in 2008 a range that was being wired could be cut and closed under
    /// the thread that wired it. An entry that is being deleted counts as a hole.
    ///
    /// # Errors
    /// [`KernReturn::InvalidArgument`] when the range has a submap,
    /// [`KernReturn::ProtectionFailure`] when an entry's `max_protection` forbids an access,
    /// [`KernReturn::ResourceShortage`] when there is no page for the entries of the cuts. Nothing
    /// has changed then; FreeBSD leaves the first entry cut.
    pub fn vm_map_protect(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
        protection: Protection,
    ) -> Result<(), KernReturn> {
        let _locked = self.vm_map_locked(map);
        let (start, end) = self.map_range_clamp(self.get(map), start, end);
        if start == end {
            return Ok(());
        }
        // 1. Everything that can be refused, and the wait for other threads, before any change.
        let first = loop {
            self.map_reserve(self.get(map), 2).map_err(|_| KernReturn::ResourceShortage)?;
            let first = self.map_protect_first(map, start);
            match self.map_protect_check(map, first, end, protection)? {
                None => break first,
                // The map is unlocked during the wait: entries and reserve are looked at again.
                Some(entry) => self.map_wait_for_transition(map, entry),
            }
        };
        // 2. Entry after entry, cut to the range. No CPU uses an old translation after the flush.
        let mut flush = TlbFlush::NONE;
        let mut entry = first;
        while entry != header(map) && self.get(entry).start.get() < end {
            self.page_point();
            if self.map_protect_skips(entry) {
                entry = self.get(entry).next.get();
                continue;
            }
            entry = self.vm_map_clip_start(map, entry, start);
            self.vm_map_clip_end(map, entry, end);
            flush = flush.merge(self.map_protect_entry(self.get(entry), protection));
            entry = self.vm_map_simplify_entry(map, entry);
            entry = self.get(entry).next.get();
            self.page_worked();
        }
        self.tlb_flush(flush);
        Ok(())
    }

    /// The first entry that ends above `start`, or the header.
    fn map_protect_first(&self, map: KPtr<VmMap>, start: GuestVirt) -> KPtr<VmMapEntry> {
        match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry) => entry,
            Lookup::After(entry) => self.get(entry).next.get(),
        }
    }

    /// Whether another thread is deleting `entry`: it is a hole for all others.
    fn map_protect_skips(&self, entry: KPtr<VmMapEntry>) -> bool {
        self.get(entry).eflags.get().contains(EntryFlags::DELETING)
    }

    /// The first entry below `end`, from `first` on, on which another thread works; it must be
    /// waited for. Errors as for [`Map::vm_map_protect`].
    fn map_protect_check(
        &self,
        map: KPtr<VmMap>,
        first: KPtr<VmMapEntry>,
        end: GuestVirt,
        protection: Protection,
    ) -> Result<Option<KPtr<VmMapEntry>>, KernReturn> {
        let mut entry = first;
        let mut busy = None;
        while entry != header(map) && self.get(entry).start.get() < end {
            let e = self.get(entry);
            self.page_point();
            if !self.map_protect_skips(entry) {
                let eflags = e.eflags.get();
                if eflags.contains(EntryFlags::IS_SUB_MAP) {
                    return Err(KernReturn::InvalidArgument);
                }
                if !e.max_protection.get().contains(protection) {
                    return Err(KernReturn::ProtectionFailure);
                }
                if eflags.contains(EntryFlags::IN_TRANSITION) {
                    busy.get_or_insert(entry);
                }
            }
            entry = e.next.get();
            self.page_worked();
        }
        Ok(busy)
    }

    /// Makes `entry` allow `protection`. Returns the translations that CPUs may still cache.
    fn map_protect_entry(&self, entry: &VmMapEntry, protection: Protection) -> TlbFlush {
        let old = entry.protection.get();
        entry.protection.set(protection);
        if protection == old {
            return TlbFlush::NONE;
        }
        // `pmap_protect` notes which pages are dirty, a word that their object's lock guards.
        let _object = entry.object.get().non_null().map(|object| self.vm_object_lock(object));
        self.pmap_protect(entry.start.get(), entry.end.get(), protection)
    }
}
