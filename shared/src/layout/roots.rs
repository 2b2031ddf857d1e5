//! Where each structure begins.

use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use super::lock::Mtx;
use super::map::VmMap;
use super::meter::VmMeter;
use super::object::VmObject;
use super::page::{VM_NFREELIST, VM_NFREEORDER, VmFreeList, VmPage, VmPhysSeg};
use crate::addr::{GuestPhys, GuestVirt, KPtr};
use crate::field::Field;

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

/// Maps with a number from boot on: [`crate::control::MapId::NAMED`].
pub const MAP_COUNT: usize = 5;

/// The table that the host starts from. One, at the start of a page of the direct map, named by the control region.
#[derive(Debug, Default, FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct KernelRoots {
    /// [`crate::ABI_VERSION`].
    pub abi_version: Field<u32>,
    /// 1 when memory was all zero at boot: pages without [`super::PageFlags::TOUCHED`] still are.
    pub boot_zeroed: Field<u32>,
    /// Counters.
    pub meter: VmMeter,
    /// The kernel's pmap.
    pub kernel_pmap: KernelPmap,
    /// End of the kernel's address space that has page tables, from [`crate::kva::VM_MIN_KERNEL_ADDRESS`] on.
    pub kernel_vm_end: Field<GuestVirt>,
    /// End of the kernel image's mapping.
    pub virtual_avail: Field<GuestVirt>,
    /// Maps by number, null where there is none.
    pub maps: [Field<KPtr<VmMap>>; MAP_COUNT],
    /// Holds the pages of `kmem_alloc`.
    pub kernel_object: VmObject,
    /// Holds the pages of `kmem_malloc`.
    pub kmem_object: VmObject,
    /// The page array: an element for each page number from `first_page` on, those of holes included.
    pub vm_page_array: Field<KPtr<VmPage>>,
    /// Page number of the array's first element.
    pub first_page: Field<u64>,
    /// Elements of the array.
    pub vm_page_array_size: Field<u64>,
    /// Segments, ascending.
    pub vm_phys_segs: Field<KPtr<VmPhysSeg>>,
    /// How many.
    pub vm_phys_nsegs: Field<u64>,
    /// Free blocks by list and order.
    pub vm_phys_free_queues: [[VmFreeList; VM_NFREEORDER]; VM_NFREELIST],
    /// Free pages known to be zero.
    pub vm_page_zero_count: Field<u64>,
    /// Pages that allocations asked for in vain.
    pub vm_pageout_deficit: Field<u64>,
    /// Guards the free lists and the free count.
    pub vm_page_queue_free_mtx: Mtx,
    /// Guards the paging queues and wire counts.
    pub vm_page_queue_mtx: Mtx,
    /// Lock classes that are held now, one bit each.
    pub held_locks: Field<u32>,
    #[doc(hidden)]
    pub _pad: Field<u32>,
    /// Pages that maps have for themselves, their entries and the nodes of their indexes.
    pub map_pages: Field<u64>,
}

const _: () = assert!(size_of::<KernelRoots>() <= 4096);
