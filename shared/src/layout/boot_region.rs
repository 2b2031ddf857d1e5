//! Where the kernel's first structures lie, and what of memory a boot touches.
//!
//! The kernel plans by it; a host that knows the plan can have those pages ready, which saves the boot a fault for each.

use core::ops::Range;

use super::{ISADMA_END, KernelRoots, Pcpu, VmPage, VmPhysSeg};
use crate::addr::{GuestPhys, PAGE_SIZE};

/// Order of the smallest block cut off memory that was never used: as many pages as one page of the page array describes.
pub const FRESH_ORDER: usize = 6;
/// Pages of such a block.
pub const FRESH_BLOCK: u64 = 1 << FRESH_ORDER;

/// The boot region, at the end of the largest range of managed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootRegion {
    /// [`KernelRoots`], in a page of its own, where the region begins.
    pub roots: GuestPhys,
    /// The segments.
    pub segs: GuestPhys,
    /// The [`Pcpu`] of the CPU that boots.
    pub boot_pcpu: GuestPhys,
    /// The page array.
    pub vm_page_array: GuestPhys,
    /// Where the region ends.
    pub end: GuestPhys,
    /// Number of the page that the array's first element describes.
    pub first_page: u64,
    /// Elements of the array.
    pub array_size: u64,
}

impl BootRegion {
    /// Plans the region for the managed `ranges` of page numbers, first and first past them, ascending; nothing when memory is
    /// too small for it.
    #[must_use]
    pub fn plan(ranges: impl ExactSizeIterator<Item = (u64, u64)> + Clone) -> Option<Self> {
        let count = ranges.len() as u64;
        let pages = || ranges.clone().filter(|(first, end)| first < end);
        // A page of the array describes the pages of one block: those of a fresh block touch no second one.
        let first_page = pages().map(|(first, _)| first & !(FRESH_BLOCK - 1)).min()?;
        let last = pages().map(|(_, end)| end).max()?;
        let (first, end) = pages().max_by_key(|(first, end)| end - first)?;
        let array_size = last - first_page;
        let segs_bytes = (count + 1) * size_of::<VmPhysSeg>() as u64;
        let array_bytes = array_size * size_of::<VmPage>() as u64;
        // A power of two that is large enough for it keeps the CPU's structure in one page.
        let pcpu_size = (size_of::<Pcpu>() as u64).next_power_of_two();
        let pcpu_at = segs_bytes.next_multiple_of(pcpu_size);
        let segs_pages = (pcpu_at + pcpu_size).div_ceil(PAGE_SIZE);
        let total = 1 + segs_pages + array_bytes.div_ceil(PAGE_SIZE);
        let roots = end.checked_sub(total).filter(|&roots| roots > first)?;
        Some(Self {
            roots: GuestPhys::from_pfn(roots),
            segs: GuestPhys::from_pfn(roots + 1),
            boot_pcpu: GuestPhys::from_pfn(roots + 1).add(pcpu_at),
            vm_page_array: GuestPhys::from_pfn(roots + 1 + segs_pages),
            end: GuestPhys::from_pfn(end),
            first_page,
            array_size,
        })
    }

    /// What a boot touches of the memory that it manages, when all of it is zero: the region up to the page array, and the
    /// block that allocations come from first, with its page of the array.
    #[must_use]
    pub fn touched_by_boot(&self, ranges: impl Iterator<Item = (u64, u64)> + Clone) -> [Range<GuestPhys>; 3] {
        // Memory from 16 MiB up is taken first.
        let above = ranges.clone().find(|(_, end)| *end > ISADMA_END.pfn());
        let first =
            above.map_or_else(|| ranges.map(|(first, _)| first).min(), |(first, _)| Some(first.max(ISADMA_END.pfn())));
        let first = first.unwrap_or(self.first_page);
        let element = first.saturating_sub(self.first_page) * size_of::<VmPage>() as u64;
        let described = GuestPhys::new(self.vm_page_array.add(element).get() & !(PAGE_SIZE - 1));
        [
            self.roots..self.vm_page_array,
            described..described.add(PAGE_SIZE),
            GuestPhys::from_pfn(first)..GuestPhys::from_pfn(first + FRESH_BLOCK),
        ]
    }
}

const _: () = assert!(size_of::<KernelRoots>() as u64 <= PAGE_SIZE);
const _: () = assert!(FRESH_BLOCK * size_of::<VmPage>() as u64 == PAGE_SIZE);
