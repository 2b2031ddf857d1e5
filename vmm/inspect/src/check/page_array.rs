//! The page array and its segments.
//!
//! Only the elements below each segment's `fresh` mark are read: the rest was never used, and
//! reading it would make the memory of a large guest resident. Elements below the mark in a page
//! that a dump does not hold are zero, like the elements of fresh pages, and take no room here. So
//! a wrong mark does not decide how much memory the check needs.

use std::ops::Range;

use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr};
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::{KernelRoots, PageFlags, PageOflags, VmObject, VmPage, VmPhysSeg};
use zerocopy::FromBytes;

use super::finding::Findings;
use super::free_lists::SEGMENT_ORDER;
use super::memory::Memory;
use super::rule::rules;
use crate::InspectError;

rules! {
    None;
    Owners {
        SEGMENT_FRESH = "segment-fresh":
            "the fresh pages of a segment lie inside it, and so does what the host has seized of \
             its end";
    }
}

/// Elements of the page array in a page.
const PER_PAGE: usize = 4096 / size_of::<VmPage>();

/// Elements of the page array, in the order of the pages.
#[derive(Debug, Default)]
pub(super) struct Elements {
    /// By page of the array; `None` for a page of zeros.
    chunks: Vec<Option<Box<[Page]>>>,
    /// Elements at the start of the first chunk that belong to earlier pages.
    skipped: usize,
    len: usize,
}

impl Elements {
    /// The number of elements.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The element at `index`, if there is one.
    pub(super) fn get(&self, index: usize) -> Option<&Page> {
        let place = index.checked_add(self.skipped).filter(|_| index < self.len)?;
        match self.chunks.get(place / PER_PAGE)? {
            None => Some(&Page::FRESH),
            Some(chunk) => chunk.get(place % PER_PAGE),
        }
    }

    /// All elements.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Page> {
        (0..self.len).filter_map(|index| self.get(index))
    }
}

/// A [`VmPage`], copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub object: KPtr<VmObject>,
    pub pindex: u64,
    pub next: u32,
    pub prev: u32,
    pub wire_count: u32,
    pub hold_count: u32,
    pub private: u32,
    pub flags: PageFlags,
    pub oflags: PageOflags,
    pub segind: u16,
    pub busy: u16,
    pub block: u8,
    pub queue: u8,
    pub act_count: u8,
    pub valid: u8,
    pub dirty: u8,
    pub left: u32,
    pub right: u32,
    pub parent: u32,
}

impl Page {
    /// The element of a page that was never used.
    pub(super) const FRESH: Self = Self {
        object: KPtr::NULL,
        pindex: 0,
        next: 0,
        prev: 0,
        wire_count: 0,
        hold_count: 0,
        private: 0,
        flags: PageFlags::empty(),
        oflags: PageOflags::empty(),
        segind: 0,
        busy: 0,
        block: 0,
        queue: 0,
        act_count: 0,
        valid: 0,
        dirty: 0,
        left: 0,
        right: 0,
        parent: 0,
    };

    fn of(page: &VmPage) -> Self {
        Self {
            object: page.object.get(),
            pindex: page.pindex.get(),
            next: page.next.get(),
            prev: page.prev.get(),
            wire_count: page.wire_count.get(),
            hold_count: page.hold_count.get(),
            private: page.private.get(),
            flags: page.flags.get(),
            oflags: page.oflags.get(),
            segind: page.segind.get(),
            busy: page.busy.get(),
            block: page.block.get(),
            queue: page.queue.get(),
            act_count: page.act_count.get(),
            valid: page.valid.get(),
            dirty: page.dirty.get(),
            left: page.left.get(),
            right: page.right.get(),
            parent: page.parent.get(),
        }
    }

    pub(super) fn is_allocated(&self) -> bool {
        self.flags.contains(PageFlags::ALLOCATED)
    }
}

/// A segment with the pages below its `fresh` mark.
#[derive(Debug)]
pub(super) struct Segment {
    /// First page number.
    pub start: u64,
    /// First page number past it.
    pub end: u64,
    /// First page number past those that the host has seized of its end.
    pub limit: u64,
    /// First page that was never used.
    pub fresh: u64,
    /// Its free list.
    pub freelist: u32,
    /// Pages `start` to `fresh`, or as many as could be read.
    pub pages: Elements,
}

/// The page array.
#[derive(Debug, Default)]
pub(super) struct PageArray {
    at: GuestVirt,
    first_page: u64,
    /// Segments, ascending and disjoint.
    pub segments: Vec<Segment>,
}

/// The elements in the page of the array at `at`; `None` if the source does not hold the page,
/// which is then zero.
fn chunk(memory: &Memory<'_>, at: GuestPhys) -> Result<Option<Box<[Page]>>, InspectError> {
    let mut bytes = [0; PER_PAGE * size_of::<VmPage>()];
    if !memory.holds(at) {
        return memory.page("vm_page", at).map(|_| None);
    }
    memory.read("vm_page", at, &mut bytes)?;
    let page =
        |bytes: &[u8]| VmPage::read_from_bytes(bytes).map_or(Page::FRESH, |page| Page::of(&page));
    Ok(Some(bytes.chunks_exact(size_of::<VmPage>()).map(page).collect()))
}

impl PageArray {
    /// Reads segments and pages. A segment out of order ends the reading, with a finding.
    pub(super) fn read(memory: &Memory<'_>, roots: &KernelRoots, findings: &Findings) -> Self {
        // 1. The segments, in order of their addresses.
        let at = roots.vm_page_array.get().addr();
        let (first_page, size) = (roots.first_page.get(), roots.vm_page_array_size.get());
        let mut array = Self { at, first_page, segments: Vec::new() };
        let mut below = first_page;
        for number in 0..roots.vm_phys_nsegs.get() {
            let bytes = number.checked_mul(size_of::<VmPhysSeg>() as u64);
            let Some(place) =
                bytes.and_then(|bytes| roots.vm_phys_segs.get().addr().checked_add(bytes))
            else {
                break;
            };
            // 2. One that is out of order makes all behind it doubtful.
            let limit = first_page.saturating_add(size);
            let Some(segment) = array.segment_at(memory, place, below..limit, findings) else {
                break;
            };
            below = segment.limit;
            array.segments.push(segment);
        }
        array
    }

    /// The segment described at `place`, with its pages, which lie within `room`.
    fn segment_at(
        &self,
        memory: &Memory<'_>,
        place: GuestVirt,
        room: Range<u64>,
        findings: &Findings,
    ) -> Option<Segment> {
        // 1. It lies after the previous one, and within the array. Nothing may be left of it, if
        //    all of it is seized.
        let seg: VmPhysSeg = match memory.get("vm_phys_seg", KPtr::new(place)) {
            Ok(seg) => seg,
            Err(error) => {
                findings.unreadable(&error);
                return None;
            }
        };
        let (start, end) = (u64::from(seg.start.get()), u64::from(seg.end.get()));
        let is_empty = u64::from(seg.limit.get()) <= start;
        if start < room.start || end < start || is_empty || end > room.end {
            findings.add(&SEGMENT_ORDER, "vm_phys_seg", place, || {
                let Range { start: below, end: limit } = room;
                format!(
                    "it holds pages {start:#x} to {end:#x}, but must lie between {below:#x} and \
                     {limit:#x}"
                )
            });
            return None;
        }
        // 2. Only pages below `fresh` were ever used.
        let fresh = u64::from(seg.fresh.get());
        if fresh < start || fresh > end {
            findings.add(&SEGMENT_FRESH, "vm_phys_seg", place, || {
                format!("its fresh pages begin at {fresh:#x}, outside pages {start:#x} to {end:#x}")
            });
        }
        // 3. Pages behind its end are seized, up to a limit.
        let limit = u64::from(seg.limit.get());
        if limit < end || limit > room.end {
            findings.add(&SEGMENT_FRESH, "vm_phys_seg", place, || {
                format!("it ends with page {end:#x}, but its limit is {limit:#x}")
            });
        }
        let (limit, fresh) = (limit.clamp(end, room.end), fresh.clamp(start, end));
        let pages = self.read_pages(memory, start, fresh, findings);
        Some(Segment { start, end, limit, fresh, freelist: seg.freelist.get(), pages })
    }

    fn read_pages(
        &self,
        memory: &Memory<'_>,
        start: u64,
        fresh: u64,
        findings: &Findings,
    ) -> Elements {
        let slot =
            |at: GuestVirt| usize::try_from(at.page_offset()).unwrap_or(0) / size_of::<VmPage>();
        let mut pages = Elements { skipped: slot(self.address(start)), ..Elements::default() };
        let mut pfn = start;
        while pfn < fresh {
            let at = self.address(pfn);
            let place = dmap_to_phys(at).ok_or_else(|| {
                InspectError::damaged("vm_page", at, "its address is not in the direct map")
            });
            let chunk = match place.and_then(|at| chunk(memory, at.page())) {
                Ok(chunk) => chunk,
                Err(error) => {
                    findings.unreadable(&error);
                    break;
                }
            };
            let count = ((PER_PAGE - slot(at)) as u64).min(fresh - pfn);
            pages.chunks.push(chunk);
            pages.len += usize::try_from(count).unwrap_or(0);
            pfn += count;
        }
        pages
    }

    /// Where the element for page `pfn` lies.
    pub(super) fn address(&self, pfn: u64) -> GuestVirt {
        let bytes = pfn.saturating_sub(self.first_page).saturating_mul(size_of::<VmPage>() as u64);
        self.at.checked_add(bytes).unwrap_or(GuestVirt::new(u64::MAX))
    }

    fn segment(&self, pfn: u64) -> Option<&Segment> {
        let index = self.segments.partition_point(|segment| segment.end <= pfn);
        self.segments.get(index).filter(|segment| segment.start <= pfn)
    }

    /// Whether page `pfn` is managed.
    pub(super) fn is_managed(&self, pfn: u64) -> bool {
        self.segment(pfn).is_some()
    }

    /// Page `pfn`, if it is managed and could be read.
    pub(super) fn get(&self, pfn: u64) -> Option<&Page> {
        let segment = self.segment(pfn)?;
        if pfn >= segment.fresh {
            return Some(&Page::FRESH);
        }
        segment.pages.get(usize::try_from(pfn - segment.start).ok()?)
    }

    /// The index of the segment of page `pfn`, and the page's index in [`Segment::pages`], if it
    /// was ever used and could be read.
    pub(super) fn locate(&self, pfn: u64) -> Option<(usize, usize)> {
        let segment = self.segments.partition_point(|segment| segment.end <= pfn);
        let index = usize::try_from(pfn.checked_sub(self.segments.get(segment)?.start)?).ok()?;
        (index < self.segments[segment].pages.len()).then_some((segment, index))
    }

    /// All pages that were ever used, with their numbers.
    pub(super) fn used(&self) -> impl Iterator<Item = (u64, &Page)> {
        self.segments.iter().flat_map(|segment| (segment.start..).zip(segment.pages.iter()))
    }

    /// The number of managed pages, including those that are seized.
    pub(super) fn managed(&self) -> u64 {
        self.segments.iter().map(|segment| segment.limit - segment.start).sum()
    }

    /// Page number of the element at address `at`, if there is one.
    pub(super) fn number_at(&self, at: GuestVirt) -> Option<u64> {
        let bytes = at.get().checked_sub(self.at.get())?;
        let number = bytes / size_of::<VmPage>() as u64;
        let pfn = self.first_page.checked_add(number)?;
        (bytes.is_multiple_of(size_of::<VmPage>() as u64) && self.is_managed(pfn)).then_some(pfn)
    }

    /// Physical address of page `pfn`.
    pub(super) fn phys(pfn: u64) -> GuestPhys {
        GuestPhys::from_pfn(pfn)
    }
}
