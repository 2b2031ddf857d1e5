//! Where the kernel's first structures lie, and which memory a boot touches.
//!
//! The kernel follows this plan. A host that knows the plan can prepare those pages, which saves
//! the boot a fault for each.

use core::ops::Range;

use super::{ISADMA_END, KernelRoots, Pcpu, VmPage, VmPhysSeg};
use crate::addr::{GuestPhys, PAGE_SIZE};
use crate::kva::NKPT;

/// Order of the smallest block cut off memory that was never used: as many pages as one page of the
/// page array describes.
pub const FRESH_ORDER: usize = 6;
/// Pages of such a block.
pub const FRESH_BLOCK: u64 = 1 << FRESH_ORDER;

/// Pages of the first such block up to the last one that a boot and the first request after it
/// touch: in the stack of the thread that the request is for.
pub const BOOT_USES: u64 = 20;
/// Page tables that the boot makes besides one for each MiB of memory, where that is less than
/// [`NKPT`]. They are enough for its own maps and more, and take 0.4 to 0.8 % of memory.
const FEWEST_TABLES: u64 = 8;
const MIB: u64 = 1 << 20;
/// Pages of an aligned group. A KVM that shadows page tables makes, on one fault, those of the
/// group present that the host has, from the first on (`PTE_PREFETCH_NUM`).
pub const PREFETCH: u64 = 8;

/// The boot region, at the end of the largest range of managed memory.
///
/// The parts that a boot touches lie side by side, from the start of a group of pages: the page
/// directory, the roots, the segments, and the first page table, in which kmem_map begins. The
/// other page tables follow, and up to seven unused pages, so the groups are whole up to the end of
/// memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootRegion {
    /// The page array, where the region begins.
    pub vm_page_array: GuestPhys,
    /// The page directory for the first addresses of kernel_map.
    pub kpd: GuestPhys,
    /// [`KernelRoots`], in a page of its own.
    pub roots: GuestPhys,
    /// The segments.
    pub segs: GuestPhys,
    /// The [`Pcpu`] of the CPU that boots.
    pub boot_pcpu: GuestPhys,
    /// The page tables for the first addresses of kernel_map, in a row.
    pub kpt: GuestPhys,
    /// Their number: [`NKPT`], or fewer if memory is small.
    pub nkpt: u64,
    /// Where the region ends.
    pub end: GuestPhys,
    /// Number of the page that the array's first element describes.
    pub first_page: u64,
    /// Elements of the array.
    pub array_size: u64,
}

impl BootRegion {
    /// Plans the region for the managed `ranges` of page numbers (first, and first past the range),
    /// ascending; `None` when memory is too small for it.
    #[must_use]
    pub fn plan(ranges: impl ExactSizeIterator<Item = (u64, u64)> + Clone) -> Option<Self> {
        // 1. The pages that the array describes, and the largest range, at whose end the region is.
        let count = ranges.len() as u64;
        let pages = || ranges.clone().filter(|(first, end)| first < end);
        // A page of the array describes the pages of one block, so the pages of a fresh block do
        // not touch a second page of the array.
        let first_page = pages().map(|(first, _)| first & !(FRESH_BLOCK - 1)).min()?;
        let last = pages().map(|(_, end)| end).max()?;
        let (first, end) = pages().max_by_key(|(first, end)| end - first)?;
        // 2. Sizes, in the order of the region: array, segments and CPU, page tables.
        let array_size = last - first_page;
        let array_pages = (array_size * size_of::<VmPage>() as u64).div_ceil(PAGE_SIZE);
        let segs_bytes = (count + 1) * size_of::<VmPhysSeg>() as u64;
        // Aligned to a power of two that is at least its size, the CPU's structure lies in one
        // page.
        let pcpu_size = (size_of::<Pcpu>() as u64).next_power_of_two();
        let pcpu_at = segs_bytes.next_multiple_of(pcpu_size);
        let segs_pages = (pcpu_at + pcpu_size).div_ceil(PAGE_SIZE);
        let nkpt = (FEWEST_TABLES + GuestPhys::from_pfn(last).get() / MIB).min(NKPT as u64);
        // 3. The whole region, which must leave a page of the range.
        let groups = (2 + segs_pages + nkpt).next_multiple_of(PREFETCH);
        let start = end.checked_sub(array_pages + groups).filter(|&start| start > first)?;
        let page = |number| GuestPhys::from_pfn(start + array_pages + number);
        Some(Self {
            vm_page_array: GuestPhys::from_pfn(start),
            kpd: page(0),
            roots: page(1),
            segs: page(2),
            boot_pcpu: page(2).add(pcpu_at),
            kpt: page(2 + segs_pages),
            nkpt,
            end: GuestPhys::from_pfn(end),
            first_page,
            array_size,
        })
    }

    /// The memory, managed or in the region, that a boot and the first request after it touch when
    /// all of it is zero: the region up to its first page table, the first pages of the block that
    /// allocations come from, and the part of the array that describes them. The page table for the
    /// stacks of threads is not included: its place follows from the sizes of the maps before them.
    #[must_use]
    pub fn touched_by_boot(
        &self,
        ranges: impl Iterator<Item = (u64, u64)> + Clone,
    ) -> [Range<GuestPhys>; 3] {
        // Memory from 16 MiB up is taken first.
        let above = ranges.clone().find(|(_, end)| *end > ISADMA_END.pfn());
        let first = above.map_or_else(
            || ranges.map(|(first, _)| first).min(),
            |(first, _)| Some(first.max(ISADMA_END.pfn())),
        );
        let first = first.unwrap_or(self.first_page);
        // The elements of these pages may lie in two pages of the array.
        let element = |pfn: u64| {
            let before = pfn.saturating_sub(self.first_page) * size_of::<VmPage>() as u64;
            GuestPhys::new(self.vm_page_array.add(before).get() & !(PAGE_SIZE - 1))
        };
        [
            self.kpd..self.kpt.add(PAGE_SIZE),
            element(first)..element(first + BOOT_USES - 1).add(PAGE_SIZE),
            GuestPhys::from_pfn(first)..GuestPhys::from_pfn(first + BOOT_USES),
        ]
    }
}

const _: () = assert!(size_of::<KernelRoots>() as u64 <= PAGE_SIZE);
const _: () = assert!(FRESH_BLOCK * size_of::<VmPage>() as u64 == PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    /// The region of a machine with `mib` MiB, whose image ends below 2 MiB.
    fn plan(mib: u64) -> BootRegion {
        let end = mib * MIB / PAGE_SIZE;
        BootRegion::plan([(0x1c0, end)].into_iter()).expect("there is room for it")
    }

    #[test]
    fn the_boot_makes_nkpt_page_tables_or_eight_and_one_for_each_mib_of_memory() {
        for mib in [232, 1 << 10, 64 << 10] {
            assert_eq!(plan(mib).nkpt, NKPT as u64, "{mib} MiB");
        }
        for (mib, nkpt) in [(4, 12), (8, 16), (16, 24), (64, 72), (128, 136), (231, 239)] {
            assert_eq!(plan(mib).nkpt, nkpt, "{mib} MiB");
        }
    }

    #[test]
    fn what_a_boot_touches_of_the_region_begins_one_group_of_pages() {
        for mib in (4..70).chain([1 << 10, 64 << 10]) {
            let region = plan(mib);
            let parts = [region.kpd, region.roots, region.segs, region.kpt];
            assert_eq!(parts.map(|at| at.pfn() % PREFETCH), [0, 1, 2, 3], "{mib} MiB");
        }
    }

    #[test]
    fn the_parts_of_the_region_follow_one_another_up_to_the_end_of_memory() {
        for mib in [4, 8, 64, 64 << 10] {
            let region = plan(mib);
            let array = region.array_size * size_of::<VmPage>() as u64;
            assert_eq!(region.vm_page_array.add(array.next_multiple_of(PAGE_SIZE)), region.kpd);
            assert_eq!(region.kpd.add(PAGE_SIZE), region.roots);
            assert_eq!(region.roots.add(PAGE_SIZE), region.segs);
            assert_eq!(region.boot_pcpu.page(), region.segs);
            assert_eq!(region.segs.add(PAGE_SIZE), region.kpt);
            let unused = region.end.since(region.kpt.add(region.nkpt * PAGE_SIZE)) / PAGE_SIZE;
            assert!(unused < PREFETCH, "{mib} MiB: {unused} pages");
        }
    }
}
