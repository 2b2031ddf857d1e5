//! Searches in a map: the entry at an address, and room for a range.

use vmkern_abi::addr::{GuestVirt, KPtr, round_page};
use vmkern_abi::fail::FailSite;
use vmkern_abi::kmem::{KernReturn, MapId};
use vmkern_abi::layout::VmMap;

use super::{EntrySpec, Lookup, Map, header};
use crate::machine::Machine;

/// Whether [`Map::vm_map_find`] may choose the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindSpace {
    /// The lowest room at or above the address given.
    Any,
    /// The address given and no other.
    Exact,
}

/// Why a range of a map could not be taken. The map is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRange {
    /// It is not free, or not in the map.
    Refused(KernReturn),
    /// There are too few free pages for its entry and page tables; another try is worthwhile when
    /// this many are free.
    Pages(u64),
    /// Its entry and page tables take more pages than are managed. No page was requested.
    Never,
}

impl NoRange {
    /// The reason as a return code.
    #[must_use]
    pub const fn code(self) -> KernReturn {
        match self {
            Self::Refused(code) => code,
            Self::Pages(_) | Self::Never => KernReturn::ResourceShortage,
        }
    }
}

impl<M: Machine> Map<M> {
    /// The entry that holds `va`, or the one before it (`vm_map_lookup_entry`). Changes nothing.
    #[must_use]
    pub fn vm_map_lookup_entry(&self, map: KPtr<VmMap>, va: GuestVirt) -> Lookup {
        let entry = self.map_nodes(self.get(map)).index().lookup(va).entry;
        if entry != header(map) && va < self.get(entry).end.get() {
            Lookup::Inside(entry)
        } else {
            Lookup::After(entry)
        }
    }

    /// The lowest address at or above `start` (page aligned) from which `length` bytes (whole
    /// pages) are free (`vm_map_findspace`). In kernel_map the page tables for the range exist
    /// afterwards (`pmap_growkernel`).
    ///
    /// The room is free as long as the map stays locked.
    ///
    /// # Errors
    /// [`KernReturn::NoSpace`] when there is no such room; a lack of pages for page tables or for
    /// an entry. The map is unchanged.
    pub fn vm_map_findspace(
        &self,
        map: KPtr<VmMap>,
        start: GuestVirt,
        length: u64,
    ) -> Result<GuestVirt, NoRange> {
        if self.fails(FailSite::VmMapFindspace) {
            return Err(NoRange::Refused(KernReturn::NoSpace));
        }
        // 1. The lowest gap.
        let m = self.get(map);
        let start = start.max(m.min_offset());
        if start.checked_add(length).is_none_or(|end| end > m.max_offset()) {
            return Err(NoRange::Refused(KernReturn::NoSpace));
        }
        let addr = if length == 0 {
            self.map_findspace_nothing(map, start)
        } else {
            let gap = self.map_nodes(m).index().find_gap(start, length);
            gap.ok_or(NoRange::Refused(KernReturn::NoSpace))?
        };
        // 2. What the range will need besides its pages: an entry, and page tables if kernel_map
        // grows. The range is inside the map, so neither sum can wrap.
        let end = GuestVirt::new(round_page(addr.add(length).get()).unwrap_or(u64::MAX))
            .min(m.max_offset());
        let grows =
            map == self.named_map(MapId::KERNEL).get() && end > self.state().kernel_vm_end.get();
        let tables = if grows { self.pmap_growkernel_pages(end) } else { 0 };
        let pages = self.map_reserve_pages(m, 1) + tables;
        if pages > self.cnt().v_page_count.get() {
            return Err(NoRange::Never);
        }
        // 3. All of it is allocated now, so entering the range cannot fail.
        self.map_reserve(m, 1).map_err(|_| NoRange::Pages(pages))?;
        if grows {
            self.pmap_growkernel(end).map_err(|_| NoRange::Pages(pages))?;
        }
        Ok(addr)
    }

    /// The address at which FreeBSD finds room for zero bytes: `start`, or the end of the entry
    /// that contains `start`.
    fn map_findspace_nothing(&self, map: KPtr<VmMap>, start: GuestVirt) -> GuestVirt {
        match self.vm_map_lookup_entry(map, start) {
            Lookup::Inside(entry) if self.get(entry).start.get() < start => {
                self.get(entry).end.get()
            }
            _ => start,
        }
    }

    /// Finds room for `length` bytes from `start` on and inserts an entry there (`vm_map_find`).
    /// Takes the map's lock.
    ///
    /// # Errors
    /// Those of [`Map::vm_map_findspace`] and [`Map::vm_map_insert`]. The map is unchanged.
    pub fn vm_map_find(
        &self,
        map: KPtr<VmMap>,
        spec: &EntrySpec,
        start: GuestVirt,
        length: u64,
        find_space: FindSpace,
    ) -> Result<GuestVirt, NoRange> {
        let _locked = self.vm_map_locked(map);
        let result = match find_space {
            FindSpace::Any => self.vm_map_findspace(map, start, length),
            FindSpace::Exact => Ok(start),
        };
        result.and_then(|addr| {
            let end =
                addr.checked_add(length).ok_or(NoRange::Refused(KernReturn::InvalidAddress))?;
            let pages = self.map_reserve_pages(self.get(map), 1);
            match self.vm_map_insert(map, spec, addr, end) {
                Err(KernReturn::ResourceShortage) => Err(NoRange::Pages(pages)),
                result => result.map(|()| addr).map_err(NoRange::Refused),
            }
        })
    }
}
