//! Making a range of a map a submap.

use vmkern_abi::addr::{GuestVirt, KPtr};
use vmkern_abi::kmem::KernReturn;
use vmkern_abi::layout::{EntryFlags, VmMap};

use super::{Lookup, Map, header};
use crate::machine::Machine;

impl<M: Machine> Map<M> {
    /// Makes `[start, end)` of `map`, an entry or part of one, the submap `submap`
    /// (`vm_map_submap`). Takes the map's lock. Entries cut at the ends stay cut, whatever the
    /// result.
    ///
    /// # Errors
    /// [`KernReturn::InvalidArgument`] unless the range is one entry without an object,
    /// submap or copy on write; [`KernReturn::ResourceShortage`] when there is no page for the
    /// entries of the cuts.
    pub fn vm_map_submap(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        end: GuestVirt,
        submap: KPtr<VmMap>,
    ) -> Result<(), KernReturn> {
        // 1. The entry, cut to the range.
        let _locked = self.vm_map_locked(map);
        let m = self.get(map);
        let (start, end) = self.map_range_clamp(m, start, end);
        self.map_reserve(m, 2).map_err(|_| KernReturn::ResourceShortage)?;
        let entry = match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry) => self.vm_map_clip_start(map, entry, start),
            Lookup::After(entry) => self.get(entry).next.get(),
        };
        if entry == header(map) {
            return Err(KernReturn::InvalidArgument);
        }
        // A range that starts in a hole may end below the next entry.
        if self.get(entry).start.get() < end {
            self.vm_map_clip_end(map, entry, end);
        }
        // 2. It must be empty, and all of the range, to become a submap.
        let e = self.get(entry);
        let is_whole = e.start.get() == start && e.end.get() == end;
        if !is_whole || e.eflags.get().contains(EntryFlags::COW) || !e.object.get().is_null() {
            return Err(KernReturn::InvalidArgument);
        }
        self.map_plain_leave(m, e.len());
        e.object.set(KPtr::new(submap.addr()));
        e.eflags.update_locked(|eflags| eflags | EntryFlags::IS_SUB_MAP);
        Ok(())
    }
}
