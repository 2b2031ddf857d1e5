//! From bare memory to a working memory system (`vm_init.c`, `vm_page_startup`).
//!
//! The boot region ([`BootRegion`]), at the end of the largest range, holds the page array, the
//! roots, the segments, the structure of the CPU that boots, and the first page tables of
//! kernel_map. If RAM is known to be zero, the boot touches neither the array nor the memory that
//! it describes, nor a page table before its first use: an all-zero page structure is a free page,
//! and an all-zero table maps nothing.

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SHIFT, PAGE_SIZE};
use vmkern_abi::boot::Tunables;
use vmkern_abi::clock::DEFAULT_HZ;
use vmkern_abi::kva::{KERNBASE, MAX_PHYS, VM_MAX_KERNEL_ADDRESS, phys_to_dmap};
use vmkern_abi::layout::{BootRegion, ISADMA_END, VM_FREELIST_DEFAULT, VM_FREELIST_ISADMA};

use super::map::Map;
use super::object::Object;
use super::pagecache::PAGE_CACHE_MAX;
use super::phys::Phys;
use super::pmap::Pmap;
use super::{Vm, VmMachine};
use crate::kern::Kern;
use crate::machine::Mark;
use crate::num::to_u32;

/// A range of physical memory, `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysRange {
    /// First byte.
    pub start: GuestPhys,
    /// First byte past it.
    pub end: GuestPhys,
}

impl PhysRange {
    /// The whole pages of the range that the direct map can map, by number: the first, and the
    /// first past them.
    pub(crate) fn pages(self) -> (u64, u64) {
        let first = self.start.get().div_ceil(PAGE_SIZE);
        let end = self.end.min(MAX_PHYS).pfn();
        (first, end.max(first))
    }
}

/// Whether memory is known to be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroed {
    /// Every managed byte is 0.
    Yes,
    /// It may hold anything.
    No,
}

/// The boot's description of memory.
#[derive(Clone, Copy, Debug)]
pub struct BootMemory<'a> {
    /// RAM that may be managed: ascending, disjoint, without the first page, the kernel image, and
    /// anything else that the boot made and still needs.
    pub ranges: &'a [PhysRange],
    /// Root page table. The direct map of all RAM and the image's mapping at [`KERNBASE`] exist,
    /// with their tables.
    pub pml4: GuestPhys,
    /// End of the image's mapping, page aligned. Where 2 MiB pages map it, a multiple of 2 MiB.
    pub virtual_avail: GuestVirt,
    /// Whether the ranges hold only zeros.
    pub zeroed: Zeroed,
    /// Tunables.
    pub tunables: Tunables,
}

impl<M: VmMachine> Vm<M> {
    /// Brings the memory system up on `machine` (`vm_mem_init`, `kmeminit`, `cpu_startup`), with
    /// the pagedaemon's thread asleep. Panics through the machine when memory is too small or its
    /// description is wrong.
    pub fn boot(machine: M, boot: &BootMemory<'_>) -> Self {
        // 1. The ranges from the loader, and the plan that follows from them.
        let ordered = boot.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start)
            && boot.ranges.iter().all(|range| range.start <= range.end && range.start.pfn() > 0);
        if !ordered {
            machine
                .panic(format_args!("vm_page_startup: memory ranges out of order or with page 0"));
        }
        let Some(region) = BootRegion::plan(boot.ranges.iter().map(|range| range.pages())) else {
            machine.panic(format_args!("vm_page_startup: no room for the page array"));
        };
        // 2. The structures on which everything is built, all zero, and the CPU that boots.
        if boot.zeroed == Zeroed::No {
            for pfn in region.vm_page_array.pfn()..region.end.pfn() {
                machine.zero_page(GuestPhys::from_pfn(pfn));
            }
        }
        let kern = Kern::new(machine, region.roots);
        let phys = Phys::new(kern, region.vm_page_array, region.first_page);
        let vm = Self { map: Map::new(Pmap::new(Object::new(phys))) };
        let pcpu = KPtr::new(phys_to_dmap(region.boot_pcpu));
        vm.machine().cpu_init(pcpu);
        vm.cpu_list().insert_head(pcpu);
        vm.state()
            .page_cache_max
            .set(boot.tunables.vm_pgcache_zone_max_pcpu.unwrap_or(PAGE_CACHE_MAX));
        vm.get(pcpu).lock_prof.set((boot.tunables.debug_lock_prof_enable == Some(1)).into());
        // 3. Pages, translations, objects, zones, and the running code as a thread.
        vm.vm_page_startup(boot, &region);
        vm.pmap_init(boot.pml4, &region);
        vm.vm_object_init();
        vm.zone_startup();
        vm.sched_init();
        // 4. The maps: kernel_map, kmem_map, and the other submaps.
        vm.kmem_init(boot.virtual_avail, VM_MAX_KERNEL_ADDRESS);
        vm.kmeminit(&boot.tunables);
        let physmem =
            boot.ranges.iter().map(|range| range.pages()).map(|(first, end)| end - first).sum();
        vm.vm_ksubmap_init(physmem, &boot.tunables);
        // 5. The kernel's own threads, asleep.
        if vm.vm_pageout_start().is_err() {
            vm.panic(format_args!("vm_pageout: no memory for the pagedaemon's thread"));
        }
        if vm.vm_pagezero_start(&boot.tunables).is_err() {
            vm.panic(format_args!("pagezero: no memory for its thread"));
        }
        vm
    }

    /// Describes memory: roots, segments, counts (`vm_page_startup`).
    fn vm_page_startup(&self, boot: &BootMemory<'_>, region: &BootRegion) {
        let state = self.state();
        state.abi_version.set(vmkern_abi::ABI_VERSION);
        state.boot_zeroed.set((boot.zeroed == Zeroed::Yes).into());
        if !boot.virtual_avail.is_page_aligned() || boot.virtual_avail < KERNBASE {
            self.panic(format_args!(
                "vm_page_startup: virtual_avail {:#x} is wrong",
                boot.virtual_avail
            ));
        }
        state.virtual_avail.set(boot.virtual_avail);
        state.vm_page_array.set(KPtr::new(phys_to_dmap(region.vm_page_array)));
        state.first_page.set(region.first_page);
        state.vm_page_array_size.set(region.array_size);
        state.vm_phys_segs.set(KPtr::new(phys_to_dmap(region.segs)));
        for range in boot.ranges {
            let (first, end) = range.pages();
            let end = if end == region.end.pfn() { region.vm_page_array.pfn() } else { end };
            let isadma = ISADMA_END.pfn().clamp(first, end);
            self.vm_phys_create_seg(first, isadma, VM_FREELIST_ISADMA);
            self.vm_phys_create_seg(isadma, end, VM_FREELIST_DEFAULT);
        }
        let cnt = &state.meter;
        cnt.v_free_count.set(cnt.v_page_count.get());
        if boot.zeroed == Zeroed::Yes {
            state.vm_page_zero_count.set(cnt.v_page_count.get());
        }
        cnt.hz.set(boot.tunables.kern_hz.unwrap_or(DEFAULT_HZ));
        cnt.ncpu.set(1);
    }

    /// Adds the segment of pages `[start, end)` (`vm_phys_create_seg`), all of them fresh.
    fn vm_phys_create_seg(&self, start: u64, end: u64, freelist: usize) {
        if start == end {
            return;
        }
        let number = self.state().vm_phys_nsegs.get();
        self.state().vm_phys_nsegs.set(number + 1);
        let seg = self.vm_phys_seg(number);
        seg.start.set(to_u32(start));
        seg.end.set(to_u32(end));
        seg.limit.set(to_u32(end));
        seg.fresh.set(to_u32(start));
        seg.freelist.set(to_u32(freelist));
        self.vm_phys_mark(seg.start.get(), end - start, Mark::Free);
        self.cnt().v_page_count.update_locked(|n| n + (end - start));
    }
}

const _: () = assert!(MAX_PHYS.get() >> PAGE_SHIFT <= u32::MAX as u64);
