//! Taking frames.

use super::lists::{Block, End, Kind, orders};
use super::{Frames, Refused, Seize, Structures};
use crate::layout::{PageFlags, Pcpu, VM_NFREELIST};

impl<'a, S: Structures> Seize<'a, S> {
    /// Takes `want` free pages, or all that are free if there are fewer, and calls `taken` with the
    /// frames of each piece, once it is recorded. Fresh memory goes first, then the largest blocks
    /// of the free lists, and last the pages in CPUs' caches.
    ///
    /// # Errors
    /// [`Refused::Damaged`], after which the pieces of which `taken` has heard are seized, and
    /// nothing else.
    pub fn take(&self, want: u64, mut taken: impl FnMut(Frames)) -> Result<(), Refused> {
        let mut want = want.min(self.free());
        // 1. Fresh memory: ordinary memory before that which ISA DMA reaches, as in an allocation.
        for flind in 0..VM_NFREELIST {
            for number in (0..self.segments()?).rev() {
                want -= self.take_fresh(number, flind, want, &mut taken)?;
            }
        }
        // 2. Whole blocks, as long as one fits; then the smallest that is larger, split.
        while want > 0
            && let Some((flind, block)) = self.find_block(want)?
        {
            want -= self.take_block(flind, block, want, &mut taken)?;
        }
        // 3. Pages in caches, those that were freed first.
        self.each_cpu(|cpu| {
            want -= self.take_cached(cpu, want, &mut taken)?;
            Ok(())
        })
    }

    /// Takes up to `want` pages off the end of the fresh part of segment `number`, if the segment
    /// is of list `flind`. Returns how many.
    fn take_fresh(
        &self,
        number: u64,
        flind: usize,
        want: u64,
        taken: &mut impl FnMut(Frames),
    ) -> Result<u64, Refused> {
        let seg = self.segment(number)?;
        let (fresh, end) = (seg.fresh.get(), seg.end.get());
        let pages = u64::from(end - fresh).min(want);
        if pages == 0 || seg.freelist.get() as usize != flind {
            return Ok(0);
        }
        // It is no more than the difference of two of these words.
        let start = end - u32::try_from(pages).unwrap_or(0);
        seg.end.set(start);
        self.uncount(pages, if self.fresh_is_zero() { pages } else { 0 });
        taken(start.into()..end.into());
        Ok(pages)
    }

    /// The largest free block of at most `want` pages, and if there is none the smallest of more,
    /// with the number of its list.
    fn find_block(&self, want: u64) -> Result<Option<(usize, Block)>, Refused> {
        for order in orders(want) {
            for flind in 0..VM_NFREELIST {
                let list = &self.free_lists(flind)[order];
                if let Some(block) = self.first(Kind::Free, list, order)? {
                    return Ok(Some((flind, block)));
                }
            }
        }
        Ok(None)
    }

    /// Takes `block` off its free list of list `flind`, or as large a part of it as `want` pages
    /// allow: the upper halves go back, as in an allocation. Returns how many pages it took.
    fn take_block(
        &self,
        flind: usize,
        block: Block,
        want: u64,
        taken: &mut impl FnMut(Frames),
    ) -> Result<u64, Refused> {
        let (block, segind) = self.cut(Kind::Free, self.free_lists(flind), block, want)?;
        let zero = self.zero_pages(block)?;
        self.record(block, segind, taken)?;
        self.uncount(block.pages(), zero);
        Ok(block.pages())
    }

    /// Takes up to `want` pages out of the cache of `cpu`. Returns how many.
    fn take_cached(
        &self,
        cpu: &'a Pcpu,
        want: u64,
        taken: &mut impl FnMut(Frames),
    ) -> Result<u64, Refused> {
        let list = &cpu.page_cache.pages;
        let pages = want.min(list.count.get());
        for _ in 0..pages {
            let pfn = list.tail.get();
            let page = self.page(pfn)?;
            let flags = page.flags.get();
            if !flags.contains(PageFlags::PCPU_CACHE) || flags.contains(PageFlags::ALLOCATED) {
                return Err(self.damaged(pfn));
            }
            self.unlink_page(list, pfn)?;
            page.flags.set(flags - PageFlags::PCPU_CACHE);
            self.record(Block { pfn, order: 0 }, page.segind.get(), taken)?;
            self.uncount(1, self.is_zero(flags).into());
        }
        Ok(pages)
    }

    /// Records that `block`, which is on no list, is seized.
    fn record(
        &self,
        block: Block,
        segind: u16,
        taken: &mut impl FnMut(Frames),
    ) -> Result<(), Refused> {
        let list = &self.roots.vm_seized_queues[block.order];
        self.link(Kind::Seized, list, block, (segind, End::Tail))?;
        let first = u64::from(block.pfn);
        taken(first..first + block.pages());
        Ok(())
    }

    /// How many pages of `block` the kernel takes for zeros. The pages are looked at only if there
    /// are such pages outside of the fresh parts at all.
    fn zero_pages(&self, block: Block) -> Result<u64, Refused> {
        let mut fresh = 0;
        if self.fresh_is_zero() {
            for number in 0..self.segments()? {
                let seg = self.segment(number)?;
                fresh += u64::from(seg.end.get() - seg.fresh.get());
            }
        }
        if self.roots.vm_page_zero_count.get() <= fresh {
            return Ok(0);
        }
        self.count_zero(block)
    }

    /// How many pages of `block` the kernel takes for zeros, by their flags.
    pub(super) fn count_zero(&self, block: Block) -> Result<u64, Refused> {
        let mut zero = 0;
        for pfn in (block.pfn..).take(1 << block.order) {
            zero += u64::from(self.is_zero(self.page(pfn)?.flags.get()));
        }
        Ok(zero)
    }

    /// `pages` pages are no longer free, of which `zero` were known to be zeros.
    fn uncount(&self, pages: u64, zero: u64) {
        self.roots.meter.v_free_count.update_locked(|free| free.saturating_sub(pages));
        self.roots.vm_page_zero_count.update_locked(|count| count.saturating_sub(zero));
    }
}
