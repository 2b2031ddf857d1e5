//! The roots of the kernel's structures.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::balloon::Balloon;
use super::eventhandler::EventhandlerList;
use super::lock::Mtx;
use super::lock_class::HeldLocks;
use super::map::VmMap;
use super::meter::VmMeter;
use super::object::VmObject;
use super::page::{VM_NFREELIST, VM_NFREEORDER, VmFreeList, VmPage, VmPhysSeg};
use super::pcpu::Pcpu;
use super::thread::{Scheduler, Thread};
use super::zone::{SlabZone, ZONE_COUNT};
use crate::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SIZE};
use crate::field::{Field, Flag};
use crate::kmem::MapId;
use crate::kva::NKPT;

/// `struct pmap` of the kernel. Guarded by its lock.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct KernelPmap {
    /// The pmap's mutex.
    pub lock: Mtx,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Root page table.
    pub pml4: Field<GuestPhys>,
    /// Pages entered by `pmap_enter`.
    pub resident_count: Field<u64>,
    /// Those of them that are wired.
    pub wired_count: Field<u64>,
    /// Pages taken for page tables since boot.
    pub table_count: Field<u64>,
}

/// The page tables that the boot made for the first addresses of kernel_map. They lie in a row
/// outside of managed memory, so no [`VmPage`] counts their entries. They are never freed.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct BootTables {
    /// The page directory that leads to them (`KPDphys`).
    pub kpdphys: Field<GuestPhys>,
    /// The first of them (`KPTphys`).
    pub kptphys: Field<GuestPhys>,
    /// Their number (`nkpt`), at most [`NKPT`].
    pub nkpt: Field<u64>,
    /// Valid entries of each, which [`VmPage::private`] counts for other page tables. Guarded by
    /// the pmap's lock.
    pub valid: [Field<u32>; NKPT],
}

impl Default for BootTables {
    fn default() -> Self {
        Self {
            kpdphys: Field::default(),
            kptphys: Field::default(),
            nkpt: Field::default(),
            valid: core::array::from_fn(|_| Field::default()),
        }
    }
}

impl BootTables {
    /// The index of the page table at `table`, if it is one of them.
    #[must_use]
    pub fn number(&self, table: GuestPhys) -> Option<usize> {
        let number = table.get().checked_sub(self.kptphys.get().get())? / PAGE_SIZE;
        usize::try_from(number).ok().filter(|_| number < self.nkpt.get())
    }

    /// The count of valid entries of the page table at `table`, if it is one of them.
    #[must_use]
    pub fn count(&self, table: GuestPhys) -> Option<&Field<u32>> {
        self.valid.get(self.number(table)?)
    }
}

/// Maps in [`KernelRoots::maps`].
pub const MAP_COUNT: usize = 5;

/// The table from which the host starts. There is one, at the start of a page of the direct map;
/// the control region holds its address.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct KernelRoots {
    /// [`crate::ABI_VERSION`].
    pub abi_version: Field<u32>,
    /// Set when memory was all zero at boot: pages without [`super::PageFlags::TOUCHED`] still are.
    pub boot_zeroed: Field<Flag>,
    /// Counters.
    pub meter: VmMeter,
    /// The kernel's pmap.
    pub kernel_pmap: KernelPmap,
    /// End of the kernel's address space that has page tables, from
    /// [`crate::kva::VM_MIN_KERNEL_ADDRESS`] on.
    pub kernel_vm_end: Field<GuestVirt>,
    /// End of the kernel image's mapping.
    pub virtual_avail: Field<GuestVirt>,
    /// Maps by number, null for a number without a map.
    pub maps: [Field<KPtr<VmMap>>; MAP_COUNT],
    /// All maps, the youngest first, linked by [`VmMap::next_map`]. A map lives for ever. Guarded
    /// by `map_sleep_mtx`.
    pub map_list: Field<KPtr<VmMap>>,
    /// The parent of buffer_map and pager_map (a local variable in FreeBSD).
    pub clean_map: Field<KPtr<VmMap>>,
    /// pager_map.
    pub pager_map: Field<KPtr<VmMap>>,
    /// Holds the pages of `kmem_alloc`.
    pub kernel_object: VmObject,
    /// Holds the pages of `kmem_malloc`.
    pub kmem_object: VmObject,
    /// The page array: an element for each page number from `first_page` on, including holes and up
    /// to 63 pages before the first managed page.
    pub vm_page_array: Field<KPtr<VmPage>>,
    /// Page number of the array's first element.
    pub first_page: Field<u64>,
    /// Elements of the array.
    pub vm_page_array_size: Field<u64>,
    /// Segments, ascending.
    pub vm_phys_segs: Field<KPtr<VmPhysSeg>>,
    /// Number of segments.
    pub vm_phys_nsegs: Field<u64>,
    /// Free blocks by list and order.
    pub vm_phys_free_queues: [[VmFreeList; VM_NFREEORDER]; VM_NFREELIST],
    /// Blocks that the host has seized ([`crate::seize`]), by order. The host alone writes it.
    pub vm_seized_queues: [VmFreeList; VM_NFREEORDER],
    /// Free pages known to be zero.
    pub vm_page_zero_count: Field<u64>,
    /// Set once enough free pages are zero, and until too few are (`zero_state`).
    pub zero_state: Field<Flag>,
    /// Whether free pages are cleared while nothing else runs (`vm.idlezero_enable`).
    pub idlezero_enable: Field<Flag>,
    /// Whether the thread that clears pages sleeps (`wakeup_needed`).
    pub pagezero_sleeps: Field<Flag>,
    /// Number of the page that this thread examines next.
    pub zeroidle_cursor: Field<u32>,
    /// Pages that this thread has cleared (`cnt_prezero`).
    pub cnt_prezero: Field<u64>,
    /// CPUs do not use their caches of pages while there are this many free pages or fewer; 0 when
    /// there are no caches. Changes only under the free-queue mutex.
    pub page_cache_floor: Field<u64>,
    /// Most pages in a CPU's cache (`vm.pgcache_zone_max_pcpu`). Never changes.
    pub page_cache_max: Field<u64>,
    /// Pages that allocations requested but did not get.
    pub vm_pageout_deficit: Field<u64>,
    /// The inactive and the active paging queue, the least recently used page first.
    /// `VmPage::queue` says which one a page is on: [`super::PQ_INACTIVE`], [`super::PQ_ACTIVE`],
    /// or 0 for none.
    pub vm_page_queues: [VmFreeList; 2],
    /// Set when pages are short, and cleared when the pagedaemon has dealt with it. Guarded by the
    /// free-queue mutex.
    pub vm_pages_needed: Field<Flag>,
    /// Set while the pagedaemon itself waits for pages. Guarded by the free-queue mutex.
    pub vm_pageout_pages_needed: Field<Flag>,
    /// The smallest number of free pages for which a thread that needs many at once sleeps, or 0.
    /// Guarded by the free-queue mutex.
    pub vm_pages_wanted: Field<u64>,
    /// Lists of event handlers, by [`super::EventhandlerList::next_list`].
    pub eventhandler_lists: Field<KPtr<EventhandlerList>>,
    /// The pagedaemon's thread, or null before it has been made.
    pub pageproc: Field<KPtr<Thread>>,
    /// Guards the lists of event handlers and their entries.
    pub eventhandler_mtx: Mtx,
    /// The interlock of threads that wait for a map: no thread misses a wakeup between unlocking
    /// the map and sleeping.
    pub map_sleep_mtx: Mtx,
    /// Guards the free lists and the free count.
    pub vm_page_queue_free_mtx: Mtx,
    /// Guards the paging queues and wire counts.
    pub vm_page_queue_mtx: Mtx,
    /// Classes of the mutexes that the boot holds while there are no threads.
    pub boot_held_locks: Field<HeldLocks>,
    /// Guards what the threads that receive the host's requests share with those that work on them.
    pub driver_mtx: Mtx,
    /// Pages that hold maps, their entries, and the nodes of their indexes.
    pub map_pages: Field<u64>,
    /// Zones by number.
    pub zones: [SlabZone; ZONE_COUNT],
    /// Threads, sleep queues and time-outs.
    pub sched: Scheduler,
    /// All CPUs, by [`Pcpu::allcpu_next`]: the one that booted, which is in no zone, first.
    pub cpuhead: Field<KPtr<Pcpu>>,
    /// The page tables of the boot.
    pub boot_tables: BootTables,
    /// The balloon's pages.
    pub balloon: Balloon,
}

impl KernelRoots {
    /// Where the boot stores the map `id`; `None` for an id that is not a map of the boot.
    #[must_use]
    pub fn map_slot(&self, id: MapId) -> Option<&Field<KPtr<VmMap>>> {
        match id {
            MapId::CLEAN => Some(&self.clean_map),
            MapId::PAGER => Some(&self.pager_map),
            MapId(number) => self.maps.get(usize::try_from(number).ok()?),
        }
    }

    /// Pages in blocks that the host has seized, by the counts of their lists; saturates. What is
    /// seized of segments' ends comes on top.
    #[must_use]
    pub fn seized_in_blocks(&self) -> u64 {
        let blocks = self.vm_seized_queues.iter().enumerate();
        let pages = blocks.map(|(order, list)| list.count.get().saturating_mul(1 << order));
        pages.fold(0, u64::saturating_add)
    }

    /// The maps of the boot: name, number, and where each is stored.
    pub fn named_maps(&self) -> impl Iterator<Item = (&'static str, MapId, &Field<KPtr<VmMap>>)> {
        MapId::NAMED.into_iter().filter_map(|(name, id)| Some((name, id, self.map_slot(id)?)))
    }
}

const _: () = assert!(size_of::<KernelRoots>() <= 4096);
