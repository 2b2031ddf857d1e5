//! What every page of memory is used for.
//!
//! The structure of a managed page says whether it is free and to which object it belongs. An
//! allocated page without an object is found through the structures that use such pages: page
//! tables, the pools of maps, slabs, and mappings of `pmap_qenter`.

use serde::Serialize;
use vmkern_abi::addr::{GuestPhys, GuestVirt, KPtr, PAGE_SHIFT};
use vmkern_abi::kva::dmap_to_phys;
use vmkern_abi::layout::{
    KernelRoots, MapPool, PQ_ACTIVE, PQ_INACTIVE, PageFlags, SlabHeader, VmPage, VmPhysSeg,
};
use vmkern_abi::pte::PteFlags;
use zerocopy::IntoBytes;

use super::objects::{ObjectAt, objects};
use super::survey::{ObjectRef, Survey};
use crate::read::leaves::Leaves;

const PAGE: &str = "vm_page";
const SEGMENT: &str = "vm_phys_seg";

/// The most segments of memory.
const SEGMENTS_MAX: u64 = 256;
/// Page structures that are read at a time: as many as a page holds.
const CHUNK: usize = 64;

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
#[non_exhaustive]
pub enum Use {
    /// Not RAM.
    Hole,
    /// Unmanaged RAM: the kernel image, the loader's data, the page array; but not the page tables
    /// that the boot made for kernel_map.
    Unmanaged,
    /// Free, and never used since the boot.
    Fresh,
    /// Free, in a block of the buddy lists.
    Free,
    /// Free, in a CPU's cache.
    PerCpu,
    /// Seized by the host.
    Seized,
    /// In the balloon.
    Balloon,
    /// Belongs to kernel_object.
    Kernel,
    /// Belongs to kmem_object.
    Kmem,
    /// Belongs to another object.
    Anonymous,
    /// A page table.
    PageTable,
    /// Maps, their entries and the nodes of their indexes.
    Map,
    /// Mapped by `pmap_qenter`: kernel stacks, and pages that operations have mapped.
    Kenter,
    /// A slab.
    Slab,
    /// Allocated, but its user was not found.
    Other,
    /// Its structure cannot be read.
    Unreadable,
}

impl Use {
    /// All uses, in the order of reports.
    pub const ALL: [Self; 16] = [
        Self::Unmanaged,
        Self::Fresh,
        Self::Free,
        Self::PerCpu,
        Self::Seized,
        Self::Balloon,
        Self::Kernel,
        Self::Kmem,
        Self::Anonymous,
        Self::Kenter,
        Self::PageTable,
        Self::Map,
        Self::Slab,
        Self::Other,
        Self::Unreadable,
        Self::Hole,
    ];

    /// Whether an allocation can take the page.
    #[must_use]
    pub fn is_free(self) -> bool {
        matches!(self, Self::Fresh | Self::Free | Self::PerCpu)
    }

    /// Its letter in pictures.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Hole => ' ',
            Self::Unmanaged => '=',
            Self::Fresh => '.',
            Self::Free => ':',
            Self::PerCpu => ';',
            Self::Seized => 'H',
            Self::Balloon => 'B',
            Self::Kernel => 'K',
            Self::Kmem => 'M',
            Self::Anonymous => 'A',
            Self::PageTable => 'T',
            Self::Map => 'E',
            Self::Kenter => 'S',
            Self::Slab => 'Z',
            Self::Other => 'O',
            Self::Unreadable => '?',
        }
    }

    /// Its description.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Hole => "no memory",
            Self::Unmanaged => "not managed: kernel image, page array",
            Self::Fresh => "free, never used",
            Self::Free => "free, in buddy lists",
            Self::PerCpu => "free, in caches of CPUs",
            Self::Seized => "seized by the host",
            Self::Balloon => "in the balloon",
            Self::Kernel => "kernel_object",
            Self::Kmem => "kmem_object",
            Self::Anonymous => "anonymous objects",
            Self::PageTable => "page tables",
            Self::Map => "maps, entries and their indexes",
            Self::Kenter => "kernel stacks and pmap_qenter",
            Self::Slab => "slabs of zones",
            Self::Other => "handed out, owner unknown",
            Self::Unreadable => "unreadable",
        }
    }
}

/// A segment of managed memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SegmentReport {
    /// First page.
    pub start: u64,
    /// First page past it.
    pub end: u64,
    /// First page that was never used.
    pub fresh: u64,
    /// First page past those that the host has seized of its end.
    pub limit: u64,
}

/// Pages by the queue that they are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Queues {
    /// Wired.
    pub wired: u64,
    /// On the active queue.
    pub active: u64,
    /// On the inactive queue.
    pub inactive: u64,
}

/// Every page's use, and other counts taken on the way.
pub(super) struct Census {
    /// By page number.
    pub uses: Vec<Use>,
    pub segments: Vec<SegmentReport>,
    pub queues: Queues,
    pub objects: Vec<ObjectAt>,
    /// Page-table pages by level: PT, PD, PDPT, PML4.
    pub tables: [u64; 4],
}

impl Census {
    pub fn take(survey: &Survey<'_, '_>) -> Self {
        let mut census = Self {
            uses: Vec::new(),
            segments: Vec::new(),
            queues: Queues::default(),
            objects: objects(survey),
            tables: [0; 4],
        };
        for segment in survey.view.source().segments() {
            let (start, end) = (index(segment.start.pfn()), index(segment.end.pfn()));
            census.uses.resize(end.max(census.uses.len()), Use::Hole);
            census.uses[start..end].fill(Use::Unmanaged);
        }
        census.managed(survey);
        census.tables(survey);
        census.objects(survey);
        census.maps(survey);
        census.slabs(survey);
        census
    }

    pub fn of(&self, pfn: u64) -> Use {
        self.uses.get(index(pfn)).copied().unwrap_or(Use::Hole)
    }

    /// How many pages of each use there are, in the order of [`Use::ALL`].
    pub fn counts(&self) -> Vec<(Use, u64)> {
        let mut counts = [0; Use::ALL.len()];
        for page in &self.uses {
            counts[*page as usize] += 1;
        }
        Use::ALL.into_iter().map(|kind| (kind, counts[kind as usize])).collect()
    }

    /// Classifies the managed pages, from the page array.
    fn managed(&mut self, survey: &Survey<'_, '_>) {
        let Some(roots) = survey.roots() else { return };
        let segments = segments(survey);
        for segment in &segments {
            self.fill(segment.fresh, segment.end, Use::Fresh);
            self.fill(segment.end, segment.limit, Use::Seized);
            let mut pfn = segment.start;
            while pfn < segment.fresh {
                // Chunks are aligned, so that each lies in one page.
                let room = CHUNK as u64 - pfn.saturating_sub(roots.first_page.get()) % CHUNK as u64;
                let count = room.min(segment.fresh - pfn);
                self.chunk(survey, pfn, count);
                pfn += count;
            }
        }
        self.segments = segments;
        self.seized(survey, roots);
    }

    /// Marks the blocks that the host has seized. Their pages look like free ones.
    fn seized(&mut self, survey: &Survey<'_, '_>, roots: &KernelRoots) {
        for (order, list) in roots.vm_seized_queues.iter().enumerate() {
            let mut next = u64::from(list.head.get());
            for _ in 0..list.count.get().min(self.uses.len() as u64) {
                if next == 0 {
                    break;
                }
                self.fill(next, next.saturating_add(1 << order), Use::Seized);
                let page = page_at(survey, next).map(|at| survey.view.copy::<VmPage>(PAGE, at));
                let page = page.and_then(|page| survey.damage.ok(page));
                next = page.map_or(0, |page| page.next.get().into());
            }
        }
    }

    fn chunk(&mut self, survey: &Survey<'_, '_>, pfn: u64, count: u64) {
        if page_at(survey, pfn).is_some_and(|at| survey.view.is_blank(at.addr())) {
            // A structure of all zeros is a free page's.
            return self.fill(pfn, pfn + count, Use::Free);
        }
        let mut pages: [VmPage; CHUNK] = std::array::from_fn(|_| VmPage::default());
        let pages = &mut pages[..index(count)];
        let read =
            page_at(survey, pfn).map(|at| survey.view.read(PAGE, at.addr(), pages.as_mut_bytes()));
        if let Some(Err(error)) = read {
            survey.damage.note(error);
            return self.fill(pfn, pfn + count, Use::Unreadable);
        }
        for (pfn, page) in (pfn..).zip(pages) {
            let kind = kind(survey, page);
            if !kind.is_free() {
                self.queues.wired += u64::from(page.wire_count.get() != 0);
                self.queues.active += u64::from(page.queue.get() == PQ_ACTIVE);
                self.queues.inactive += u64::from(page.queue.get() == PQ_INACTIVE);
            }
            self.fill(pfn, pfn + 1, kind);
        }
    }

    fn fill(&mut self, start: u64, end: u64, kind: Use) {
        let end = index(end).min(self.uses.len());
        let start = index(start).min(end);
        self.uses[start..end].fill(kind);
    }

    /// Notes that `kind` uses the page at `phys`, which must have been allocated without an object.
    fn mark(&mut self, survey: &Survey<'_, '_>, phys: GuestPhys, kind: Use) {
        match self.uses.get_mut(index(phys.pfn())) {
            Some(page @ Use::Other) => *page = kind,
            Some(page) if page.is_free() => {
                let is = page.words();
                survey.damage.say(PAGE, GuestVirt::new(phys.page().get()), || {
                    format!("it is used for {}, but is {is}", kind.words())
                });
            }
            _ => {}
        }
    }

    /// Notes the page table at `table`, if the boot made it for kernel_map: then its page is not
    /// managed, and was never allocated.
    fn mark_boot_table(&mut self, survey: &Survey<'_, '_>, table: GuestPhys) {
        let Some(boots) = survey.roots().map(|roots| &roots.boot_tables) else { return };
        if boots.kpdphys.get() != table && boots.count(table).is_none() {
            return;
        }
        if let Some(page @ Use::Unmanaged) = self.uses.get_mut(index(table.pfn())) {
            *page = Use::PageTable;
        }
    }

    fn mark_virtual(&mut self, survey: &Survey<'_, '_>, va: GuestVirt, kind: Use) {
        if let Some(phys) = dmap_to_phys(va) {
            self.mark(survey, phys, kind);
        }
    }

    fn tables(&mut self, survey: &Survey<'_, '_>) {
        let mut leaves = Leaves::all(survey.view);
        let mut kentered = Vec::new();
        for leaf in &mut leaves {
            match leaf {
                Ok(leaf)
                    if leaf.flags.contains(PteFlags::KENTER)
                        && kentered.len() < self.uses.len() =>
                {
                    kentered.push(leaf.phys);
                }
                Ok(_) => {}
                Err(error) => survey.damage.note(error),
            }
        }
        for table in leaves.table_pages() {
            self.mark(survey, table, Use::PageTable);
            self.mark_boot_table(survey, table);
        }
        for page in kentered {
            self.mark(survey, page, Use::Kenter);
        }
        self.tables = leaves.tables();
    }

    fn objects(&mut self, survey: &Survey<'_, '_>) {
        let at: Vec<_> = self.objects.iter().map(|object| object.at.addr()).collect();
        for at in at {
            self.mark_virtual(survey, at, Use::Slab);
        }
    }

    fn maps(&mut self, survey: &Survey<'_, '_>) {
        for map in survey.maps() {
            self.mark_virtual(survey, map.at.addr(), Use::Map);
            for pool in [&map.map.reserve.entries, &map.map.reserve.nodes] {
                self.pool(survey, pool);
            }
        }
    }

    fn pool(&mut self, survey: &Survey<'_, '_>, pool: &MapPool) {
        for item in survey.view.list("pool page", pool.first.get(), |page| page.next.get()) {
            match item {
                Ok((at, _)) => self.mark_virtual(survey, at.addr(), Use::Map),
                Err(error) => survey.damage.note(error),
            }
        }
    }

    /// Slabs with free items are on their zone's list. Full slabs are on no list, and are found
    /// through the items in them.
    fn slabs(&mut self, survey: &Survey<'_, '_>) {
        let Some(roots) = survey.roots() else { return };
        for zone in &roots.zones {
            for item in
                survey.view.list("slab", zone.partial.get(), |slab: &SlabHeader| slab.next.get())
            {
                match item {
                    Ok((at, _)) => self.mark_virtual(survey, at.addr(), Use::Slab),
                    Err(error) => survey.damage.note(error),
                }
            }
        }
        let first = roots.sched.all.head.get();
        for (at, thread) in
            survey.view.list("thread", first, |thread| thread.all_next.get()).flatten()
        {
            self.mark_virtual(survey, at.addr(), Use::Slab);
            self.mark_virtual(survey, thread.sleepqueue.get().addr(), Use::Slab);
        }
    }
}

/// A number of pages as an index; a number that does not fit is past every end.
fn index(pfn: u64) -> usize {
    usize::try_from(pfn).unwrap_or(usize::MAX)
}

/// The use that the page's own structure states.
fn kind(survey: &Survey<'_, '_>, page: &VmPage) -> Use {
    if !page.flags.get().contains(PageFlags::ALLOCATED) {
        let is_cached = page.flags.get().contains(PageFlags::PCPU_CACHE);
        return if is_cached { Use::PerCpu } else { Use::Free };
    }
    if page.flags.get().contains(PageFlags::BALLOON) {
        return Use::Balloon;
    }
    match survey.object(page.object.get()) {
        ObjectRef::Kernel => Use::Kernel,
        ObjectRef::Kmem => Use::Kmem,
        ObjectRef::None => Use::Other,
        ObjectRef::Anonymous(_) | ObjectRef::SubMap(_) => Use::Anonymous,
    }
}

/// The structure of page `pfn`, if the page array has one.
pub(super) fn page_at(survey: &Survey<'_, '_>, pfn: u64) -> Option<KPtr<VmPage>> {
    let roots = survey.roots()?;
    let number =
        pfn.checked_sub(roots.first_page.get()).filter(|n| *n < roots.vm_page_array_size.get())?;
    let offset = number.checked_mul(size_of::<VmPage>() as u64)?;
    roots.vm_page_array.get().addr().checked_add(offset).map(KPtr::new)
}

/// The segments, without those that make no sense.
pub(super) fn segments(survey: &Survey<'_, '_>) -> Vec<SegmentReport> {
    let Some(roots) = survey.roots() else { return Vec::new() };
    let first = roots.vm_phys_segs.get().addr();
    let count = roots.vm_phys_nsegs.get();
    if count > SEGMENTS_MAX {
        survey.damage.say(SEGMENT, first, || format!("the kernel counts {count} segments"));
    }
    let ram_end =
        survey.view.source().segments().last().map_or(0, |segment| segment.end.get() >> PAGE_SHIFT);
    let mut segments: Vec<SegmentReport> = Vec::new();
    for number in 0..count.min(SEGMENTS_MAX) {
        let Some(at) = first.checked_add(number * size_of::<VmPhysSeg>() as u64) else { break };
        let Some(segment) = survey.damage.ok(survey.view.copy::<VmPhysSeg>(SEGMENT, KPtr::new(at)))
        else {
            break;
        };
        let (start, end) = (u64::from(segment.start.get()), u64::from(segment.end.get()));
        let fresh = u64::from(segment.fresh.get());
        let limit = u64::from(segment.limit.get());
        let below = segments.last().map_or(0, |segment| segment.limit);
        if start < below || ![start, fresh, end, limit, ram_end].is_sorted() {
            survey.damage.say(SEGMENT, at, || {
                format!("pages {start:#x} to {end:#x}, fresh from {fresh:#x} on, limit {limit:#x}")
            });
            continue;
        }
        segments.push(SegmentReport { start, end, fresh, limit });
    }
    segments
}
