//! Giving frames back.

use super::lists::{Block, End, Kind, orders};
use super::{Contents, Frames, Refused, Seize, Structures};
use crate::layout::{PageFlags, VM_NFREELIST, VM_NFREEORDER};

impl<S: Structures> Seize<'_, S> {
    /// Gives back `want` seized pages, or all if there are fewer, and calls `given` with the frames
    /// of each piece: first blocks, the largest that fit, then fresh memory. Blocks merge with free
    /// buddies and go to the tails of their lists, as in a free. Nobody is woken. Returns the
    /// number of pages.
    ///
    /// # Errors
    /// [`Refused::Damaged`], after which the pieces of which `given` has heard are free, and
    /// nothing else.
    pub fn give_back(
        &self,
        want: u64,
        contents: Contents,
        mut given: impl FnMut(Frames),
    ) -> Result<u64, Refused> {
        let all = self.seized()?.min(want);
        let mut want = all;
        while want > 0
            && let Some(block) = self.find_seized(want)?
        {
            want -= self.give_block(block, want, contents, &mut given)?;
        }
        for flind in (0..VM_NFREELIST).rev() {
            for number in 0..self.segments()? {
                want -= self.give_fresh(number, flind, want, &mut given)?;
            }
        }
        Ok(all - want)
    }

    /// The largest seized block of at most `want` pages, and if there is none the smallest of more.
    fn find_seized(&self, want: u64) -> Result<Option<Block>, Refused> {
        for order in orders(want) {
            let list = &self.roots.vm_seized_queues[order];
            if let Some(block) = self.first(Kind::Seized, list, order)? {
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// Gives `block` back, or as large a part of it as `want` pages allow. Returns how many pages.
    fn give_block(
        &self,
        block: Block,
        want: u64,
        contents: Contents,
        given: &mut impl FnMut(Frames),
    ) -> Result<u64, Refused> {
        let lists = &self.roots.vm_seized_queues;
        let (block, segind) = self.cut(Kind::Seized, lists, block, want)?;
        let zero = match contents {
            Contents::Discarded => self.now_zero(block)?,
            Contents::Kept => self.count_zero(block)?,
        };
        self.merge(block, segind)?;
        self.count(block.pages(), zero);
        let first = u64::from(block.pfn);
        given(first..first + block.pages());
        Ok(block.pages())
    }

    /// Has the pages of `block` say that they are zeros. Returns their number.
    fn now_zero(&self, block: Block) -> Result<u64, Refused> {
        for pfn in (block.pfn..).take(1 << block.order) {
            let page = self.page(pfn)?;
            let flags = page.flags.get();
            if !self.is_zero(flags) {
                page.flags.set(flags | PageFlags::ZERO);
            }
        }
        Ok(block.pages())
    }

    /// Puts `block`, which is on no list, on the free list of its segment, number `segind`, merged
    /// with its buddies as far as they are free (`vm_phys_free_pages`).
    fn merge(&self, mut block: Block, segind: u16) -> Result<(), Refused> {
        let seg = self.segment(segind.into())?;
        let flind = seg.freelist.get() as usize;
        if flind >= VM_NFREELIST {
            return Err(self.damaged(block.pfn));
        }
        let lists = self.free_lists(flind);
        while block.order < VM_NFREEORDER - 1 {
            let buddy = Block { pfn: block.pfn ^ (1 << block.order), order: block.order };
            let end = u64::from(buddy.pfn) + buddy.pages();
            if buddy.pfn < seg.start.get()
                || end > u64::from(seg.fresh.get())
                || usize::from(self.page(buddy.pfn)?.block.get()) != block.order + 1
            {
                break;
            }
            self.unlink(Kind::Free, &lists[buddy.order], buddy)?;
            block = Block { pfn: block.pfn & buddy.pfn, order: block.order + 1 };
        }
        self.link(Kind::Free, &lists[block.order], block, (segind, End::Tail))
    }

    /// Gives up to `want` pages back to the fresh part of segment `number`, if the segment is of
    /// list `flind`. Returns how many.
    fn give_fresh(
        &self,
        number: u64,
        flind: usize,
        want: u64,
        given: &mut impl FnMut(Frames),
    ) -> Result<u64, Refused> {
        let seg = self.segment(number)?;
        let (start, limit) = (seg.end.get(), seg.limit.get());
        let pages = u64::from(limit - start).min(want);
        if pages == 0 || seg.freelist.get() as usize != flind {
            return Ok(0);
        }
        // It is no more than the difference of two of these words.
        let end = start + u32::try_from(pages).unwrap_or(0);
        seg.end.set(end);
        self.count(pages, if self.fresh_is_zero() { pages } else { 0 });
        given(start.into()..end.into());
        Ok(pages)
    }

    /// `pages` pages are free again, of which `zero` are known to be zeros.
    fn count(&self, pages: u64, zero: u64) {
        self.roots.vm_page_zero_count.fetch_add(zero);
        self.roots.meter.v_free_count.fetch_add(pages);
    }
}
